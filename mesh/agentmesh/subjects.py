"""The only file that spells a subject, a stream or a bucket.

Templates, with the mesh's root token first (default `mesh`):

    mesh.inbox.<agent>           prompts from anyone                  stream MESH_MAIL
    mesh.notify.<agent>          events from anyone                   stream MESH_MAIL
    mesh.peer-inbox.<agent>      prompts from agents (nodes publish)  stream MESH_MAIL
    mesh.peer-notify.<agent>     events from agents, answers          stream MESH_MAIL
    mesh.peer-answer.<agent>     answers to waits inside a turn       stream MESH_MAIL
    mesh.timer.<agent>.<id>      a message schedule                   stream MESH_TIMER
    mesh.due.<agent>             timers that have fired               stream MESH_TIMER
    mesh.live.<lane>.<agent>     stored mail, republished             core
    mesh.live.control.<agent>    status, interrupt, ...               core request
    mesh.live.control-<op>.<agent>   one of these                     core request
    mesh.ask.<agent>             ask as a plain request               core request
    mesh.tell.<agent>            a prompt, answered once it is stored core request
    mesh.event-to.<agent>        an event, likewise                   core request
    mesh.poll.<agent>            what became of a request             core request
    mesh.caller.<way>.<agent>    the same four, through an import     core request; nobody in the mesh's account publishes there
    mesh.result.<agent>.<ref>    outcomes                             stream MESH_RESULT, republished to mesh.done.<agent>.<ref>
    mesh.journal.<agent>         the agent's records                  stream MESH_JOURNAL
    mesh.dead.<agent>            dead letters                         stream MESH_DEAD
    mesh.trace.<agent>.<what>    facts of traces: began, record, spans   stream MESH_TRACE
    mesh.session.<agent>.<project>.<session>.<part>   transcripts of backends' sessions   stream MESH_SESSION
    mesh.event.<agent>.<kind>    lifecycle facts                      core
    mesh.node.<id>               ping, drain, cordon                  core request
    mesh.registry.<key>          committed registry changes           core, republished by the bucket

Trailing ids are one token; filters use `*` and exact lengths, never `>`, so that `coder` does not hear `coder.17`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from agentmesh.names import root_token

PROBE = "_probe"
"""Where it is tried what hears a publish. No agent can have this name: tokens with a leading `_` are the mesh's own."""

type StreamRole = Literal["mail", "timer", "result", "journal", "dead", "session", "trace", "registry"]
type InputKind = Literal["prompt", "event", "answer"]
type Way = Literal["ask", "tell", "event-to", "poll"]

WAYS: tuple[Way, ...] = ("ask", "tell", "event-to", "poll")
"""What a caller can ask of the gateway by a plain request: `mesh.<way>.<agent>`."""
_WAYS: dict[str, Way] = {way: way for way in WAYS}


class WayIn(NamedTuple):
    """How a request has come to the gateway."""

    way: Way
    agent: str
    imported: bool
    """It came through an import from another account: only the server puts requests there."""


class Lane(msgspec.Struct, frozen=True):
    """One durable lane of an agent's mail. Lanes are data: code treats them alike.

    `trusted` lanes carry what only nodes may publish, so their sender headers can be believed.
    """

    name: str
    kind: InputKind
    trusted: bool
    stream: Literal["mail", "timer"] = "mail"


LANES: dict[str, Lane] = {
    lane.name: lane
    for lane in (
        Lane("inbox", "prompt", trusted=False),
        Lane("notify", "event", trusted=False),
        Lane("peer-inbox", "prompt", trusted=True),
        Lane("peer-notify", "event", trusted=True),
        Lane("peer-answer", "answer", trusted=True),
        Lane("due", "event", trusted=True, stream="timer"),
    )
}
MAIL_LANES = tuple(name for name, lane in LANES.items() if lane.stream == "mail")


class Subjects(msgspec.Struct, frozen=True):
    """Builds and parses every address of one mesh."""

    root: str = "mesh"

    def __post_init__(self) -> None:
        root_token(self.root)

    # --- mail -------------------------------------------------------------------------------------------------
    def lane(self, lane: str, agent: str) -> str:
        """Subject of one mail lane of `agent`; `lane` is a key of `LANES`."""
        return f"{self.root}.{lane}.{agent}"

    def inbox(self, agent: str) -> str:
        return f"{self.root}.inbox.{agent}"

    def notify(self, agent: str) -> str:
        return f"{self.root}.notify.{agent}"

    def mail_filter(self, agent: str) -> str:
        """All mail lanes of `agent` in `MESH_MAIL`, merged in stream order."""
        return f"{self.root}.*.{agent}"

    def due(self, agent: str) -> str:
        return f"{self.root}.due.{agent}"

    def timer(self, agent: str, timer_id: str) -> str:
        return f"{self.root}.timer.{agent}.{timer_id}"

    # --- copies of mail, control requests -----------------------------------------------------------------------
    def copies(self, agent: str) -> str:
        """The one subscription of an agent's owner: copies of its stored mail, and control requests."""
        return f"{self.root}.live.*.{agent}"

    def control(self, agent: str) -> str:
        return f"{self.root}.live.control.{agent}"

    def control_op(self, op: str, agent: str) -> str:
        """Where a control request is sent whose subject names its operation."""
        return f"{self.root}.live.control-{op}.{agent}"

    def parse_copy(self, subject: str) -> tuple[str, str] | None:
        """`(lane, agent)` of a subject under `mesh.live`, or None."""
        root, *rest = subject.split(".", 3)
        return (rest[1], rest[2]) if root == self.root and len(rest) == 3 and rest[0] == "live" else None

    def parse_lane(self, subject: str) -> tuple[str, str] | None:
        """`(lane, agent)` of a stored mail subject, or None."""
        head = self.root + "."
        if not subject.startswith(head):
            return None
        lane, dot, agent = subject[len(head) :].partition(".")
        return (lane, agent) if dot and lane in LANES else None

    # --- the rest ---------------------------------------------------------------------------------------------
    def ask(self, agent: str) -> str:
        return f"{self.root}.ask.{agent}"

    def tell(self, agent: str) -> str:
        return f"{self.root}.tell.{agent}"

    def event_to(self, agent: str) -> str:
        return f"{self.root}.event-to.{agent}"

    def poll(self, agent: str) -> str:
        return f"{self.root}.poll.{agent}"

    def way(self, way: Way, agent: str) -> str:
        """Where a request of that kind is sent; `>` stands for all agents."""
        return f"{self.root}.{way}.{agent}"

    def caller(self, way: Way, agent: str) -> str:
        """Where `way` arrives that came through an import from another account."""
        return f"{self.root}.caller.{way}.{agent}"

    def ways_in(self) -> tuple[str, ...]:
        """All subjects that the gateway serves, in its queue group."""
        return tuple(where(way, ">") for where in (self.way, self.caller) for way in WAYS)

    def parse_way(self, subject: str) -> WayIn | None:
        """How a request has come to the gateway; None if it is on none of its subjects."""
        rest = subject.removeprefix(f"{self.root}.")
        imported = rest.startswith("caller.")
        way, _, agent = rest.removeprefix("caller.").partition(".") if imported else rest.partition(".")
        known = _WAYS.get(way)
        return WayIn(known, agent, imported) if known is not None else None

    def result(self, agent: str, ref: str) -> str:
        return f"{self.root}.result.{agent}.{ref}"

    def done(self, agent: str, ref: str) -> str:
        return f"{self.root}.done.{agent}.{ref}"

    def journal(self, agent: str) -> str:
        return f"{self.root}.journal.{agent}"

    def dead(self, agent: str) -> str:
        return f"{self.root}.dead.{agent}"

    def event(self, agent: str, kind: str) -> str:
        return f"{self.root}.event.{agent}.{kind}"

    def trace(self, agent: str, what: str = "*") -> str:
        """Facts of an agent's traces: that an attempt `began`, what a `record` tells, or `spans` that have ended."""
        return f"{self.root}.trace.{agent}.{what}"

    def trace_all(self) -> str:
        """Facts of all agents' traces."""
        return f"{self.root}.trace.>"

    def parse_trace(self, subject: str) -> tuple[str, str]:
        """Agent and `began`, `record` or `spans` of such a fact."""
        agent, _, what = subject[len(self.root) + 7 :].rpartition(".")
        return agent, what

    def session(self, agent: str, project: str = "*", session: str = "*", part: str = "*") -> str:
        """Where the transcript of one part of a session is kept; `*` stands for any. The last three are any text (`as_token`)."""
        tokens = ".".join(text if text == "*" else as_token(text) for text in (project, session, part))
        return f"{self.root}.session.{agent}.{tokens}"

    def parse_session(self, subject: str) -> tuple[str, str, str]:
        """`(project, session, part)` of a transcript's subject."""
        project, session, part = subject.rsplit(".", 3)[1:]
        return of_token(project), of_token(session), of_token(part)

    def event_all(self) -> str:
        return f"{self.root}.event.>"

    def supervisors(self) -> str:
        """Where every supervisor answers, leading or not."""
        return f"{self.root}.node._supervisors"

    def node(self, node: str) -> str:
        return f"{self.root}.node.{node}"

    @property
    def ask_queue(self) -> str:
        """Queue group of the processes that serve `ways_in`."""
        return self.root

    # --- registry ---------------------------------------------------------------------------------------------
    @property
    def bucket(self) -> str:
        return f"{self.root}-registry"

    def registry_key(self, key: str) -> str:
        """Subject that a write of registry key `key` is published to."""
        return f"$KV.{self.root}-registry.{key}"

    def registry_change(self, key: str = ">") -> str:
        """Subject on which a committed change of `key` is republished, with its revision in `Nats-Sequence`."""
        return f"{self.root}.registry.{key}"

    def parse_registry_change(self, subject: str) -> str:
        return subject[len(self.root) + 10 :]

    # --- streams ----------------------------------------------------------------------------------------------
    def stream(self, role: StreamRole) -> str:
        """Name of the stream that plays `role`."""
        if role == "registry":
            return f"KV_{self.bucket}"
        return f"{self.root.upper()}_{role.upper()}"

    def stream_subjects(self, role: StreamRole) -> list[str]:
        """What the stream that plays `role` stores. Agent names have 1 to 8 tokens, hence `>`."""
        if role == "registry":
            return [self.registry_key(">")]
        if role == "mail":
            return [self.lane(lane, ">") for lane in MAIL_LANES]
        if role == "timer":
            return [f"{self.root}.timer.>", self.due(">")]
        return [f"{self.root}.{role}.>"]

    def republished(self, role: StreamRole) -> tuple[str, str] | None:
        """`(source, destination)` of what the stream that plays `role` republishes, or None."""
        if role == "mail":
            return f"{self.root}.>", f"{self.root}.live.>"
        if role == "timer":
            return self.due(">"), f"{self.root}.live.due.>"
        if role == "result":
            return f"{self.root}.result.>", f"{self.root}.done.>"
        if role == "registry":
            return self.registry_key(">"), self.registry_change(">")
        return None

    # --- blobs ------------------------------------------------------------------------------------------------
    @property
    def blobs(self) -> str:
        """Object-store bucket for what exceeds the server's payload limit."""
        return f"{self.root}-blobs"

    @property
    def blob_stream(self) -> str:
        """Stream of the object store, named and laid out as every NATS client expects it."""
        return f"OBJ_{self.blobs}"

    def blob_subjects(self) -> list[str]:
        return [self.blob_chunks(">"), self.blob_meta(">")]

    def blob_chunks(self, chunk_id: str) -> str:
        return f"$O.{self.blobs}.C.{chunk_id}"

    def blob_meta(self, encoded_name: str) -> str:
        return f"$O.{self.blobs}.M.{encoded_name}"


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def as_token(text: str) -> str:
    """`text` as one token of a subject, so that `of_token` gives it back: what is not plain becomes `_` and two hex digits."""
    return "".join(chr(b) if chr(b) in _PLAIN else f"_{b:02x}" for b in text.encode()) or "_"


def of_token(token: str) -> str:
    """The text that `as_token` made `token` of."""
    if token == "_":
        return ""
    first, *escaped = token.split("_")
    return (first.encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in escaped)).decode()


def spec_key(agent: str) -> str:
    return f"agents.{agent}"


def node_key(node: str) -> str:
    return f"nodes.{node}"


def placement_key(node: str, agent: str) -> str:
    return f"placements.{node}.{agent}"


def applied_key(agent: str, sender_hash: str) -> str:
    return f"applied.{agent}.{sender_hash}"


SUPERVISOR_KEY = "supervisor"
EPOCH_KEY = "epoch"
