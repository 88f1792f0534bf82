"""What each role may publish and subscribe: one table, from which configurations, the page and the tests are made.

Everything that is not listed is denied. Nodes trust each other: any of them may own any agent, so they share one role. No role
but `setup` makes streams (docs/design/019-creating-is-a-verb.md), and none inside the mesh's account may publish to
`mesh.caller.>`: what arrives there has come through an import, so that the server's word on who sent it can be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from agentmesh.control_operations import GIVEN
from agentmesh.errors import BadRequest
from agentmesh.names import agent_name
from agentmesh.subjects import PROBE, WAYS, StreamRole, Subjects, spec_key

type Role = Literal["node", "supervisor", "setup", "operator", "observer", "caller"]
ROLES: tuple[Role, ...] = get_args(Role.__value__)
INSIDE: tuple[Role, ...] = ("node", "supervisor", "setup", "operator", "observer")
"""The roles in the mesh's own account."""
STREAMS: tuple[StreamRole, ...] = ("mail", "timer", "result", "journal", "dead", "session", "trace", "registry")
API = "$JS.API"
USER_INFO = "$SYS.REQ.USER.INFO"
"""Where every user asks for its own permissions."""
REPLIES = ("_INBOX.>", "_R_.>")
"""Where answers go: to inboxes in the account, and to requests that came from another one."""
DEFAULT_OPERATIONS = ("status",)
"""The control requests that a caller may send, unless it is given others."""


class Lists(msgspec.Struct, frozen=True):
    """What a user may do."""

    publish_allow: tuple[str, ...]
    subscribe_allow: tuple[str, ...]
    """Subjects, some with a queue group behind a space."""


def lists(
    role: Role,
    subjects: Subjects,
    *,
    user: str,
    agents: Sequence[str] = (),
    ops: Sequence[str] = DEFAULT_OPERATIONS,
) -> Lists:
    """The lists of a user with this role.

    Args:
        user: its name: answers reach it below `_INBOX.<user>`.
        agents: of a caller: names, and prefixes that end in a dot (`team-a.` is every agent below it).
        ops: of a caller: the control requests that it may send.

    Raises:
        BadRequest: an agent is neither a name nor a prefix; or a caller has none.
    """
    publish, subscribe = _caller(subjects, agents, ops) if role == "caller" else _INSIDE[role](subjects)
    return Lists((*publish, USER_INFO), (*subscribe, f"_INBOX.{user}.>"))


def _node(s: Subjects) -> tuple[list[str], list[str]]:
    lanes = ("inbox", "notify", "peer-inbox", "peer-notify", "peer-answer")
    stored = ("timer", "result", "journal", "dead", "session", "event", "trace")
    publish = [
        *(s.lane(name, ">") for name in (*lanes, *stored)),
        s.control(">"),
        *(s.registry_key(key) for key in ("agents.>", "applied.>", "nodes.*", "placements.>")),
        s.blob_chunks(">"),
        s.blob_meta(">"),
        *_reads(s, STREAMS, "STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET"),
        *(f"{API}.{verb}.{s.blob_stream}" for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "STREAM.PURGE")),
        *_reads(s, ("mail", "timer", "journal", "session"), "STREAM.PURGE"),
        *REPLIES,
    ]
    return publish, [f"{s.root}.live.*.>", s.node("*"), s.registry_change(), s.lane("done", ">"), *_ways(s)]


def _supervisor(s: Subjects) -> tuple[list[str], list[str]]:
    # Mail that no agent has come for is answered by a supervisor, which writes the name's journal for that.
    lanes = ("inbox", "notify", "peer-inbox", "peer-notify", "peer-answer", "dead", "result", "journal")
    publish = [
        *(s.lane(name, ">") for name in lanes),
        s.control(">"),
        s.node("*"),
        s.event("_supervisor", "*"),
        *(s.registry_key(key) for key in ("agents.>", "nodes.*", "placements.>", "supervisor")),
        *_reads(s, STREAMS, "STREAM.INFO"),
        s.blob_chunks(">"),
        s.blob_meta(">"),
        *(f"{API}.{verb}.{s.blob_stream}" for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "STREAM.PURGE")),
        *_reads(s, ("registry", "mail", "result", "journal"), "STREAM.MSG.GET"),
        *_reads(s, ("registry", "mail", "journal", "timer", "result", "dead"), "DIRECT.GET"),
        *_reads(s, ("mail",), "STREAM.PURGE"),
        *REPLIES,
    ]
    # A node hears these anyway, and both send them on while owners of an older build run.
    older = [f"{s.control_op(op, '>')} {s.ask_queue}" for op in GIVEN]
    return publish, [s.node("*"), s.registry_change(), s.lane("done", ">"), *_ways(s), *older]


def _setup(s: Subjects) -> tuple[list[str], list[str]]:
    made = [*(s.stream(role) for role in STREAMS), s.blob_stream]
    publish = [f"{API}.STREAM.{verb}.{name}" for verb in ("CREATE", "UPDATE", "INFO") for name in made]
    publish += [*_reads(s, ("registry",), "STREAM.MSG.GET"), s.registry_key("epoch"), f"{API}.STREAM.NAMES"]
    # It looks for a second set of the streams within hearing; every stream refuses what it sends for that.
    return [*publish, s.inbox(PROBE)], []


def _operator(s: Subjects) -> tuple[list[str], list[str]]:
    publish = [
        *(s.lane(name, ">") for name in ("ask", "tell", "event-to", "poll", "inbox", "notify")),
        s.control(">"),
        s.node("*"),
        *(s.registry_key(key) for key in ("agents.>", "epoch")),
        f"{API}.INFO",
        *_reads(s, STREAMS, "STREAM.INFO"),
        *(f"{API}.{verb}.{s.blob_stream}" for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")),
        *_reads(s, ("registry", "result", "mail", "journal", "dead", "trace"), "STREAM.MSG.GET", "DIRECT.GET"),
        *_reads(s, ("dead",), "STREAM.PURGE", "STREAM.MSG.DELETE"),
    ]
    return publish, [*_watched(s), s.lane("done", ">")]


def _observer(s: Subjects) -> tuple[list[str], list[str]]:
    # Facts of traces hold no content; journals and results do, so `mesh graph` and `mesh trace` go by the facts alone.
    publish = [
        s.node("_supervisors"),
        *_reads(s, ("registry", "trace"), "STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET"),
    ]
    return publish, [*_watched(s), s.trace_all()]


_INSIDE = {"node": _node, "supervisor": _supervisor, "setup": _setup, "operator": _operator, "observer": _observer}


def _reads(s: Subjects, roles: Sequence[StreamRole], *verbs: str) -> list[str]:
    """Requests to the server about streams."""
    return [f"{API}.{verb}.{s.stream(role)}" for verb in verbs for role in roles]


def _ways(s: Subjects) -> list[str]:
    """What the gateway serves, in its queue group."""
    return [f"{subject} {s.ask_queue}" for subject in s.ways_in()]


def _watched(s: Subjects) -> list[str]:
    return [s.event_all(), s.registry_change()]


# --- callers ----------------------------------------------------------------------------------------------------------
def _caller(s: Subjects, agents: Sequence[str], ops: Sequence[str]) -> tuple[list[str], list[str]]:
    if not agents:
        raise BadRequest("a caller needs agents: names, or prefixes that end in a dot (`team-a.` is every agent below it)")
    publish: list[str] = []
    for agent in agents:
        where = below(agent)
        publish += [s.way(way, where) for way in WAYS]
        publish += [control_subject(s, op, where) for op in ops]
        if not is_prefix(agent):
            # A direct get honours wildcards in its own subject, so only one that ends in a name is given.
            publish.append(spec_read(s, agent))
    return publish, []


def is_prefix(agent: str) -> bool:
    """Whether it stands for all agents below it."""
    return agent.endswith(".")


def below(agent: str) -> str:
    """The end of a subject that stands for an agent, or for all below a prefix.

    Raises:
        BadRequest: it is neither a name nor a prefix.
    """
    return f"{agent_name(agent[:-1])}.>" if is_prefix(agent) else agent_name(agent)


def control_subject(s: Subjects, op: str, agent: str) -> str:
    """Where the control request `op` to an agent is sent whose subject names its operation."""
    return s.control_op(op, agent)


def spec_read(s: Subjects, agent: str) -> str:
    """The direct get of an agent's spec."""
    return f"{API}.DIRECT.GET.{s.stream('registry')}.{s.registry_key(spec_key(agent))}"
