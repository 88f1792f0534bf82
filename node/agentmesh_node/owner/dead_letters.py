"""Sending a dead letter of another agent again: only a node may send mail in an agent's name (docs/protocol.md#subjects)."""

from __future__ import annotations

from agentmesh import wire
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_next
from agentmesh.errors import BadRequest, NotFound
from agentmesh.headers import CONTENT_TYPE, TRACE_HEADERS
from agentmesh.subjects import LANES
from agentmesh_node.services import Services

_KEPT = (wire.FROM, wire.FROM_LIFE, wire.CHAIN, CONTENT_TYPE, *TRACE_HEADERS)
"""Headers that are kept. The sender has its answer already, and the origin is consumed, so the others are left out."""


async def resend(services: Services, agent: str, life: str, seq: int) -> int:
    """Put the dead letter `seq` of `agent` into its lane again, from the same sender and on behalf of the same user, for the
    agent's present `life`. The letter stays; a repetition of this changes nothing for as long as the mail's duplicate window
    lasts.

    Returns: the sequence in the lane: a prompt's ref.

    Raises:
        NotFound: there is no such letter.
        BadRequest: it did not come from an agent, nor from a user that is known.
        MailboxFull, TooLarge, Unavailable, Uncertain: as `store`.
    """
    s = services
    letter = await get_next(s.transport, s.subjects.stream("dead"), s.subjects.dead(agent), seq)
    if letter is None or letter.seq != seq:
        raise NotFound(f"agent {agent!r} has no dead letter {seq}; see `mesh dead ls {agent}`")
    lane = LANES.get(letter.headers.get("Mesh-Lane", ""))
    if lane is None or not lane.trusted or not (wire.FROM in letter.headers or wire.CHAIN in letter.headers):
        raise BadRequest(f"dead letter {seq} came from no agent and no user that is known: send it as mail of your own")
    headers = {key: letter.headers[key] for key in _KEPT if key in letter.headers}
    headers[wire.FOR] = life
    subject = s.subjects.lane(lane.name, agent)
    stored = await store(s.transport, subject, letter.data, headers=headers, msg_id=f"{agent}.dead-{seq}")
    return stored.seq
