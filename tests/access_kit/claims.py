"""Headers by which a sender claims to be somebody else, each way in, and who may send there: what must become of each claim.

Of a request that crosses accounts the NATS server says who sent it. On the lanes that only nodes and supervisors may write to,
their word is taken: they are trusted, and the expected outcome says so. Everywhere else a claim has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import agentmesh
import agentmesh_client
import agentmesh_node
from agentmesh.access.roles import Role
from agentmesh.identity import Chain, Party, chain_in
from agentmesh.subjects import WAYS, Subjects

S = Subjects("mesh")
AGENT = "team-a.witness"
SHOP = Party(kind="user", name="shop", account="MESH_CALLERS")
REQUEST_INFO = "Nats-Request-Info"
BANK = '{"acc":"MESH_CALLERS","user":"bank"}'
LATER = "2999-01-01T00:00:00Z"

type Header = tuple[str, str]

MESH: dict[str, str] = {
    "Mesh-Chain": '[{"kind":"user","name":"root","account":"SYS"}]',
    "Mesh-From": "team-b.boss",
    "Mesh-From-Life": "life",
    "Mesh-Origin": "{number}.1.0",
    "Mesh-Tag": "t",
    "Mesh-Path": "team-b.boss",
    "Mesh-Root": "team-b.boss/1",
    "Mesh-Relayed": "1",
    "Mesh-Record": "turn",
    "Mesh-Lane": "peer-inbox",
    "Mesh-Ref": "1",
    "Mesh-Reason": "stopped",
    "Mesh-Reason-Text": "x",
    "Mesh-Blob": "x",
    "Mesh-Part": "x",
    # These a sender may set; they say nothing of who it is.
    "Mesh-Reply-To": "{own}",
    "Mesh-Stream-To": "{own}",
    "Mesh-For": "{life}",
    "Mesh-Deadline": LATER,
    "Mesh-End-By": LATER,
    "Mesh-Timeout": "3600",
    "Mesh-Budget": '{"tool_calls":5}',
    "Mesh-Key": "k" * 40,
    "Mesh-Key-Digest": "0" * 64,
}
"""A value for each header of the mesh's own. What is in braces only a run knows."""


def known() -> set[str]:
    """The headers that the product's code names."""
    folders = [Path(package.__path__[0]) for package in (agentmesh, agentmesh_node, agentmesh_client)]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    return {name for text in texts for name in re.findall(r'"(Mesh-[A-Z][A-Za-z-]*)"', text)}


class Claim(NamedTuple):
    """Headers that somebody sends, doubled ones too."""

    headers: tuple[Header, ...]

    @property
    def name(self) -> str:
        return " and ".join(name for name, _ in self.headers) if len(self.headers) < 5 else "all at once"

    @property
    def doubled(self) -> bool:
        """Whether one name stands there twice, which not every client can send."""
        names = [name for name, _ in self.headers]
        return len(names) != len(set(names))

    def value(self, name: str) -> str | None:
        return next((value for of, value in self.headers if of == name), None)


_SPELLINGS = (REQUEST_INFO, "nats-request-info", "NATS-REQUEST-INFO", "Nats-request-INFO")
CLAIMS: tuple[Claim, ...] = (
    *(Claim(((name, BANK),)) for name in _SPELLINGS),
    *(Claim(((first, BANK), (second, BANK))) for first in _SPELLINGS[:2] for second in _SPELLINGS[:2]),
    *(Claim((header,)) for header in MESH.items()),
    *(Claim(((name.lower(), value),)) for name, value in MESH.items() if name in ("Mesh-Chain", "Mesh-From")),
    *(Claim(((name, MESH[name]), (name, MESH[name]))) for name in ("Mesh-Chain", "Mesh-From")),
    Claim((*((name, BANK) for name in _SPELLINGS), *MESH.items())),
)

type Trust = Literal["the server's word", "nobody's word", "the sender's word"]
"""Whose word counts for who is behind a request."""
type Makes = Literal["prompt", "event", "nothing"]


class Entry(NamedTuple):
    """A way in."""

    name: str
    subject: str
    makes: Makes
    trusts: Trust = "nobody's word"

    def body(self, label: str, ref: str) -> bytes:
        """What is sent there: `label` tells it from all others, `ref` is that of a request that is answered."""
        if self.name == "poll":
            return b'{"ref":"%s"}' % ref.encode()
        if self.name == "control, old form":
            return b'{"op":"status"}'
        if self.name == "control":
            return b"{}"
        return b'{"n":"%s"}' % label.encode() if self.makes == "event" else label.encode()


ENTRIES: tuple[Entry, ...] = (
    Entry("ask", S.way("ask", AGENT), "prompt"),
    Entry("tell", S.way("tell", AGENT), "prompt"),
    Entry("event-to", S.way("event-to", AGENT), "event"),
    Entry("poll", S.way("poll", AGENT), "nothing"),
    Entry("mail", S.lane("inbox", AGENT), "prompt"),
    Entry("mail of an event", S.lane("notify", AGENT), "event"),
    Entry("peer mail", S.lane("peer-inbox", AGENT), "prompt", "the sender's word"),
    Entry("peer mail of an event", S.lane("peer-notify", AGENT), "event", "the sender's word"),
    Entry("control", S.control_op("status", AGENT), "nothing"),
    Entry("control, old form", S.control(AGENT), "nothing"),
    *(Entry(f"imported {way}", S.caller(way, AGENT), "prompt") for way in WAYS),
)
_TRUSTED = frozenset({"mail", "mail of an event", "peer mail", "peer mail of an event", "control, old form"})
MAY: dict[Role, frozenset[str]] = {
    "node": _TRUSTED,
    "supervisor": _TRUSTED,
    "setup": frozenset(),
    "operator": frozenset({"ask", "tell", "event-to", "poll", "mail", "mail of an event", "control, old form"}),
    "observer": frozenset(),
    "caller": frozenset({"ask", "tell", "event-to", "poll", "control"}),
}
"""The ways in that a role may use; the server refuses it every other. Roles inside the mesh's account send control requests whose
body names the operation; callers alone have lists of operations, and so the other form."""


class Sent(NamedTuple):
    """A claim that is made once."""

    entry: Entry
    claim: Claim
    role: Role
    label: str

    @property
    def told_of(self) -> tuple[Chain, str | None]:
        """What must be known of who is behind it: the chain, empty if no user is known, and the agent that sends it."""
        if self.role == "caller":
            return (SHOP,), None
        if self.entry.trusts == "the sender's word":
            return chain_in(self.claim.value("Mesh-Chain") or ""), self.claim.value("Mesh-From")
        return (), None


def attempts(role: Role, entry: Entry) -> Iterator[Sent]:
    """Each claim of this role on this way in."""
    for number, claim in enumerate(CLAIMS):
        # An owner of this build passes over what a gateway has sent on to older ones: nobody answers its sender.
        if entry.name != "control, old form" or claim.value("Mesh-Relayed") is None:
            yield Sent(entry, claim, role, f"{role} {entry.name} {number}")


def filled(headers: Sequence[Header], **values: str) -> tuple[Header, ...]:
    """`headers` with what only a run knows."""
    made: list[Header] = []
    for name, text in headers:
        for what, value in values.items():
            text = text.replace(f"{{{what}}}", value)
        made.append((name, text))
    return tuple(made)
