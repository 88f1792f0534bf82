"""Which of many placed agents have work? Asked for some 200 at a time, without loading any (design 3, "Rest").

An agent whose newest record is not `rest`, or whose lanes reach beyond it, has work; the others stay asleep.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentmesh.edge.jetstream import get_last_many
from agentmesh.records import Record, decode_record
from agentmesh.subjects import LANES
from agentmesh_node.services import Services

GROUP = 200


async def restless(services: Services, agents: Sequence[str]) -> set[str]:
    """The agents in `agents` that must be activated.

    Raises:
        Unavailable: it cannot be told now.
    """
    found: set[str] = set()
    for start in range(0, len(agents), GROUP):
        found |= await _group(services, agents[start : start + GROUP])
    return found


async def _group(services: Services, agents: Sequence[str]) -> set[str]:
    t, subjects = services.transport, services.subjects
    journals, _ = await get_last_many(t, subjects.stream("journal"), [subjects.journal(a) for a in agents])
    rested: dict[str, Record] = {}
    for agent in agents:
        message = journals.get(subjects.journal(agent))
        record = decode_record(message.data) if message is not None and b'"kind":"rest"' in message.data else None
        if record is not None and record.kind == "rest":
            rested[agent] = record
    busy = set(agents) - set(rested)
    if rested:
        mail, _ = await get_last_many(t, subjects.stream("mail"), [subjects.mail_filter(a) for a in rested])
        due, _ = await get_last_many(t, subjects.stream("timer"), [subjects.due(a) for a in rested])
        for subject, message in (*mail.items(), *due.items()):
            parsed = subjects.parse_lane(subject)
            if parsed is None or parsed[0] not in LANES or parsed[1] not in rested:
                continue
            lane, agent = parsed
            if message.seq > (rested[agent].positions or {}).get(lane, 0):
                busy.add(agent)
    return busy
