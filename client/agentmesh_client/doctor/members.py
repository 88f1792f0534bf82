"""The processes of a mesh as they answer: nodes and supervisors, with their clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

import msgspec

from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.transport import UNANSWERED, Message
from agentmesh.errors import NotPermitted
from agentmesh.subjects import Subjects
from agentmesh.wire import encode
from agentmesh_client.doctor.servers import ahead

LOOK_S = 2.0
"""Wait for one node."""
GATHER_S = 0.5
"""Wait for the supervisors: it is not known how many there are."""
AT_ONCE = 64
"""Nodes that are asked at the same time."""

_stats = msgspec.json.Decoder(NodeStats)


class MemberFacts(msgspec.Struct, kw_only=True):
    """One node or supervisor."""

    id: str
    role: Literal["node", "supervisor"]
    version: str | None = None
    """Of its program, as its lease says."""
    answers: bool = False
    permitted: bool = True
    """Whether this user may ask it."""
    clock_ahead_s: float | None = None
    """How far its clock is ahead of this machine's; None: it does not say (it does not answer, or is of an older build)."""
    server_ahead_s: float | None = None
    """How far ahead of this machine's clock it takes the servers' to be."""


async def look(t: NatsTransport, subjects: Subjects, nodes: Mapping[str, str], leader: str | None) -> list[MemberFacts]:
    """Ask all processes. `nodes` are the live ones' versions, by id; the leading supervisor is in the list if there is one."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(node: str) -> MemberFacts:
        async with slots:
            found = await _ask(t, subjects.node(node))
        return _member(node, "node", found, version=nodes[node])

    supervisors, members = await asyncio.gather(_supervisors(t, subjects), asyncio.gather(*(ask(node) for node in nodes)))
    if leader is not None and leader not in {found.id for found in supervisors}:
        supervisors.append(_member(leader, "supervisor", await _ask(t, subjects.node(leader))))
    return [*sorted(supervisors, key=lambda one: one.id), *members]


type _Answer = tuple[NodeStats, float, float]


async def _ask(t: NatsTransport, subject: str) -> _Answer | Literal["refused"] | None:
    sent = SYSTEM.now()
    try:
        message = await t.request(subject, encode(ControlRequest(op="stats")), timeout=LOOK_S)
        return _stats.decode(message.data), sent, SYSTEM.now()
    except NotPermitted:
        return "refused"
    except (*UNANSWERED, msgspec.MsgspecError):
        return None


async def _supervisors(t: NatsTransport, subjects: Subjects) -> list[MemberFacts]:
    found: dict[str, MemberFacts] = {}
    sent = 0.0

    def take(message: Message) -> None:
        if message.data:
            stats = _stats.decode(message.data)
            found[stats.node] = _member(stats.node, "supervisor", (stats, sent, SYSTEM.now()))

    inbox = t.new_inbox()
    subscription = await t.subscribe(inbox, take)
    try:
        await t.flush()
        sent = SYSTEM.now()
        await t.publish(subjects.supervisors(), encode(ControlRequest(op="stats")), reply=inbox)
        await asyncio.sleep(GATHER_S)
    except (*UNANSWERED, NotPermitted):
        pass
    finally:
        await subscription.unsubscribe()
    return list(found.values())


def _member(
    member: str, role: Literal["node", "supervisor"], answer: _Answer | Literal["refused"] | None, *, version: str | None = None
) -> MemberFacts:
    if answer is None or answer == "refused":
        return MemberFacts(id=member, role=role, version=version, permitted=answer is None)
    stats, sent, heard = answer
    return MemberFacts(
        id=member,
        role=role,
        version=version,
        answers=True,
        clock_ahead_s=None if stats.time is None else ahead(stats.time, sent, heard),
        server_ahead_s=None if stats.server_time is None else ahead(stats.server_time, sent, heard),
    )
