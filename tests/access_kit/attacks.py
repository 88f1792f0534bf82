"""What a caller of `team-a.>` may try against the rest of the mesh, one line each, and what must become of it.

Names in braces stand for what only a run knows: `{bank}` and `{shop}` are inboxes of two callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from agentmesh.subjects import MAIL_LANES, WAYS, Subjects, Way

type Must = str
"""`refused`: the server says a permissions violation. Else the code of the error in the answer, or `served`: it is served as if
what was forged were not there."""
S = Subjects("mesh")
MINE, THEIRS = "team-a.coder", "team-b.coder"
KV = S.registry_key("agents")
GET, LAST = "$JS.API.DIRECT.GET", "$JS.API.STREAM.MSG.GET"
STREAMS = (
    *(S.stream(role) for role in ("mail", "timer", "result", "journal", "dead", "session", "trace", "registry")),
    S.blob_stream,
)


TRACED = "Nats-Trace-Dest"
"""Has the server send its way through it to a subject: refused by that subject's name."""


class Attack(NamedTuple):
    """One try."""

    subject: str
    must: Must = "refused"
    body: bytes = b""
    headers: Mapping[str, str] = {}
    verb: Literal["publish", "subscribe"] = "publish"
    queue: str = ""

    @property
    def name(self) -> str:
        """How a failure is told."""
        with_headers = f" with {', '.join(self.headers)}" if self.headers else ""
        return f"{self.verb} {self.subject}{f' {self.queue}' if self.queue else ''}{with_headers} {self.body[:60]!r}"


def _others() -> list[Attack]:
    """Agents of others, by every way in."""
    found = [Attack(S.way(way, THEIRS), body=b"hello") for way in WAYS]
    found += [
        Attack(S.way(way, agent), body=b"hello")
        for way in WAYS
        for agent in (">", "*.coder", "team-b.*", "team-ab.coder", "team-a")
    ]
    found += [Attack(S.caller(way, agent), body=b"hello") for way in WAYS for agent in (MINE, THEIRS)]
    found += [Attack(f"{S.root}.live.control-status.{agent}", body=b"{}") for agent in (THEIRS, ">", "*.coder")]
    found += [Attack(S.way(way, MINE), body=b"hello", headers={TRACED: "{bank}"}) for way in WAYS]
    return found


def _of_the_mesh() -> list[Attack]:
    """What only the mesh's own processes publish, for agents of one's own, too."""
    agents = (MINE, THEIRS)
    found = [
        Attack(S.lane(lane, agent), body=b"forged", headers={"Mesh-From": MINE, "Mesh-Origin": "1.1.0"})
        for lane in (*MAIL_LANES, "due")
        for agent in agents
    ]
    found += [
        Attack(f"{S.root}.live.{lane}.{agent}", body=b"forged", headers={"Nats-Sequence": "999999"})
        for lane in (*MAIL_LANES, "due")
        for agent in agents
    ]
    found += [
        Attack(subject, body=b"forged")
        for agent in agents
        for subject in (
            S.result(agent, "1"),
            S.done(agent, "1"),
            S.journal(agent),
            S.dead(agent),
            S.session(agent, "a", "b", "c"),
            S.timer(agent, "t1"),
            S.event(agent, "failed"),
            S.trace(agent, "began"),
            S.registry_change(f"agents.{agent}"),
            S.registry_key(f"agents.{agent}"),
            S.registry_key(f"placements.n1.{agent}"),
            S.registry_key(f"applied.{agent}.00"),
            S.control(agent),
        )
    ]
    found += [
        Attack(subject, body=b'{"op":"drain"}')
        for subject in (
            S.node("n1"),
            S.node("s1"),
            S.supervisors(),
            S.registry_key("nodes.n1"),
            S.registry_key("supervisor"),
            S.registry_key("epoch"),
            S.event("_supervisor", "placed"),
            S.blob_chunks("x"),
            S.blob_meta("x"),
        )
    ]
    found += [
        Attack(S.due(MINE), headers={"Nats-Rollup": "all"}),
        Attack(S.inbox(MINE), headers={"Nats-Rollup": "all"}),
        Attack(S.timer(MINE, "mine"), body=b"{}", headers={"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": S.due(THEIRS)}),
        Attack(S.journal(MINE), headers={"Nats-Rollup": "all", "Mesh-Record": "forged"}),
        Attack(S.registry_key(f"agents.{MINE}"), headers={"KV-Operation": "PURGE", "Nats-Rollup": "sub"}),
    ]
    return found


def _operations() -> list[Attack]:
    """Control operations that a caller was not given, and the old form, in which the body names the operation."""
    asked = (
        "interrupt",
        "cancel",
        "reply",
        "resume",
        "poll",
        "open",
        "set",
        "set_timer",
        "cancel_timer",
        "resend",
        "probe",
        "state",
        "configuration",
        "*",
        ">",
    )
    return [
        *(Attack(f"{S.root}.live.control-{op}.{MINE}", body=b"{}") for op in asked),
        *(Attack(S.control(MINE), body=b'{"op":"%s"}' % op.encode()) for op in asked),
        Attack(f"{S.root}.live.*.{MINE}", body=b"{}"),
    ]


def _reads() -> list[Attack]:
    """What is stored."""
    by_body = [
        b"",
        b'{"seq":1}',
        b'{"last_by_subj":"%s"}' % S.journal(THEIRS).encode(),
        b'{"multi_last":["%s.>"]}' % KV.encode(),
        b'{"seq":1,"next_by_subj":">","batch":1000}',
    ]
    found = [Attack(f"{verb}.{stream}", body=body) for verb in (GET, LAST) for stream in STREAMS for body in by_body]
    mail, result, registry, journal = (S.stream(role) for role in ("mail", "result", "registry", "journal"))
    found += [
        Attack(f"{GET}.{stream}.{subject}")
        for stream, subject in (
            (registry, f"{KV}.{THEIRS}"),
            (registry, f"{KV}.>"),
            (registry, f"{KV}.*.coder"),
            (registry, f"{KV}.team-a.>"),
            (registry, f"{KV}.team-a.*"),
            (registry, f"{KV}.{MINE}"),
            (registry, S.registry_key(">")),
            (registry, S.registry_key("nodes.n1")),
            (registry, ">"),
            (result, S.result(MINE, "1")),
            (result, S.result(MINE, "*")),
            (result, S.result(THEIRS, "1")),
            (result, ">"),
            (mail, S.inbox(MINE)),
            (mail, S.lane("*", MINE)),
            (journal, S.journal(MINE)),
            (journal, S.journal(THEIRS)),
        )
    ]
    return found


def _server() -> list[Attack]:
    """The server's own subjects."""
    found = [
        Attack(f"$JS.API.{verb}.{stream}")
        for verb in (
            "STREAM.INFO",
            "STREAM.CREATE",
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "STREAM.PURGE",
            "STREAM.MSG.DELETE",
            "STREAM.SNAPSHOT",
            "STREAM.RESTORE",
            "STREAM.LEADER.STEPDOWN",
            "STREAM.PEER.REMOVE",
            "CONSUMER.CREATE",
            "CONSUMER.LIST",
            "CONSUMER.NAMES",
        )
        for stream in STREAMS
    ]
    found += [
        Attack(f"$JS.API.{rest}")
        for rest in (
            "INFO",
            "STREAM.NAMES",
            "STREAM.LIST",
            "STREAM.CREATE.MINE",
            "META.LEADER.STEPDOWN",
            "SERVER.REMOVE",
            "ACCOUNT.PURGE.MESH",
            "CONSUMER.CREATE.MESH_MAIL.c1.mesh.inbox.team-b.coder",
            "CONSUMER.DURABLE.CREATE.MESH_MAIL.c1",
            "CONSUMER.MSG.NEXT.MESH_MAIL.c1",
            ">",
            "*",
        )
    ]
    found += [
        Attack(subject)
        for subject in (
            "$JS.ACK.MESH_MAIL.c1.1.1.1.1.0",
            "$JS.FC.MESH_MAIL.c1",
            "$JS.EVENT.ADVISORY.API",
            "$JSC.R.x",
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.ACCOUNT.MESH.CONNZ",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
            "$SYS.ACCOUNT.MESH.CONNECT",
            "$SYS.REQ.CLAIMS.UPDATE",
            "$SRV.PING",
            "$SRV.INFO",
            "$KV.other.key",
            "$O.other.M.x",
            "$MQTT.sub",
            "_R_.aaaaaa.bbbbbb",
            "_R_.>",
            "_GR_.x",
            "orders.new",
            "other.inbox.coder",
            "{bank}",
            "_INBOX.node.x",
            "_INBOX.bank.>",
            "_INBOX.>",
            "_INBOX.x",
            ">",
            "*",
        )
    ]
    return found


def _ears() -> list[Attack]:
    """What is said to others."""
    heard = (
        ">",
        "*",
        "*.>",
        "mesh.>",
        "_INBOX.>",
        "_INBOX.*.>",
        "_INBOX.bank.>",
        "_INBOX.node.>",
        "_INBOX.*",
        "_R_.>",
        "$SYS.>",
        "$JS.>",
        "$JS.EVENT.>",
        "$KV.>",
        "$O.>",
        *(
            f"mesh.{rest}"
            for rest in (
                "live.>",
                "done.>",
                f"done.{MINE}.*",
                f"done.{MINE}.>",
                f"done.{THEIRS}.*",
                "result.>",
                "registry.>",
                f"registry.agents.{MINE}",
                "event.>",
                f"event.{MINE}.*",
                "trace.>",
                "node.>",
                "node.n1",
                "inbox.>",
                "journal.>",
                f"live.*.{MINE}",
                f"live.control-status.{MINE}",
            )
        ),
    )
    found = [Attack(subject, verb="subscribe") for subject in heard]
    for way in WAYS:
        found += [
            Attack(subject, verb="subscribe", queue="mesh")
            for subject in (S.way(way, ">"), S.caller(way, ">"), S.way(way, MINE), S.way(way, THEIRS))
        ]
    return found


REFUSED: tuple[Attack, ...] = (*_others(), *_of_the_mesh(), *_operations(), *_reads(), *_server(), *_ears())
"""What a caller with the list of its role cannot even send."""

FORGED = {
    "Mesh-From": "team-b.boss",
    "Mesh-From-Life": "life",
    "Mesh-Origin": "1.1.0",
    "Mesh-Path": "team-b.boss",
    "Mesh-Root": "team-b.coder/1",
    "Mesh-Tag": "t",
    "Mesh-Chain": '[{"kind":"user","name":"root","account":"SYS"}]',
    "Mesh-Key-Digest": "0" * 64,
    "Mesh-Record": "forged",
    "Mesh-Lane": "peer-inbox",
    "Mesh-Ref": "1",
    "Mesh-Reason": "x",
    "Nats-Request-Info": '{"acc":"MESH_CALLERS","user":"bank"}',
    "Nats-Sequence": "999999",
    "Nats-Subject": "mesh.peer-inbox.team-a.coder",
    "Nats-Rollup": "all",
    "Nats-TTL": "1s",
    "Nats-Expected-Last-Sequence": "0",
    "Nats-Expected-Stream": "OTHER",
    "Nats-Expected-Last-Subject-Sequence": "0",
    "Nats-Schedule": "@every 1s",
    "Nats-Schedule-Target": "mesh.due.team-b.coder",
    "Nats-Schedule-TTL": "1s",
    "Nats-Batch-Id": "b",
    "Nats-Batch-Sequence": "1",
    "Nats-Incr": "1",
    "Status": "503",
}
"""Headers that a caller has no business to set: each is served as if it were not there."""

_PROMPTS: tuple[Way, ...] = ("ask", "tell")
SERVED: tuple[Attack, ...] = (
    *(
        Attack(S.way(way, MINE), "served", body=b"hello" if way != "event-to" else b'{"n":1}', headers={name: value})
        for way in ("ask", "tell", "event-to")
        for name, value in FORGED.items()
    ),
    *(
        Attack(S.way(way, MINE), "bad_request", body=b"hello", headers={name: address})
        for way in _PROMPTS
        for name in ("Mesh-Reply-To", "Mesh-Stream-To")
        for address in (
            "mesh.inbox.team-b.coder",
            "mesh.live.inbox.team-b.coder",
            "$JS.API.STREAM.DELETE.MESH_MAIL",
            "$KV.mesh-registry.epoch",
            "_INBOX.shop.*",
            ">",
        )
    ),
    *(
        Attack(S.way(way, MINE), "not_permitted", body=b"hello", headers={name: address})
        for way in _PROMPTS
        for name in ("Mesh-Reply-To", "Mesh-Stream-To")
        for address in (
            "{bank}",
            "_INBOX.node.x",
            "_INBOX.bank",
            "_INBOX.shop",
            "_INBOX.shopping.x",
            "_R_.aaaaaa.bbbbbb",
            "orders.new",
            "other.inbox.coder",
            "_GR_.x",
        )
    ),
    *(Attack(S.way("ask", f"team-a.{rest}"), "bad_request", body=b"hello") for rest in ("*", ">", "*.coder")),
    *(Attack(S.way(way, "team-a.nobody"), "not_found", body=b"hello") for way in _PROMPTS),
    Attack(S.way("poll", MINE), "bad_request", body=b'{"op":"cancel","ref":"1"}'),
    Attack(S.way("poll", MINE), "bad_request", body=b'{"op":"interrupt"}'),
    Attack(S.way("poll", MINE), "bad_request", body=b'{"ref":"*"}'),
    Attack(S.way("poll", MINE), "not_permitted", body=b'{"ref":"{keyed}"}'),
    Attack(S.way("poll", MINE), "not_permitted", body=b'{"ref":"{keyed}"}', headers={"Mesh-Key": "k" * 32}),
    Attack(S.way("poll", MINE), "not_permitted", body=b'{"ref":"{keyed}"}', headers={"Mesh-Key-Digest": "{digest}"}),
)
"""What a caller may send, and what the mesh makes of it."""
