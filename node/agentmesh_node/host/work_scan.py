"""Finds which of many placed agents have work: some 200 with one request, without loading any (docs/architecture.md#rest).

An agent has work if its newest record is not `rest`, or if its lanes have mail beyond that, or newer; the others stay asleep.
Agents whose mail is newer than their newest record come first: callers wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentmesh.edge.journal_reader import is_marked
from agentmesh.edge.read import StoredMessage, get_last_many
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import UnreadableRecord
from agentmesh.records import is_rest, record_in
from agentmesh.subjects import LANES
from agentmesh_node.services import Services

GROUP = 200
IN_FLIGHT = 4
"""Groups that are checked at the same time."""


async def agents_with_work(services: Services, agents: Sequence[str], urgent: Callable[[str], None] | None = None) -> set[str]:
    """The agents in `agents` that must be activated.

    `urgent` is called with each agent that callers wait for, as soon as it is found; the others are returned.

    Raises:
        Unavailable: it cannot be told now for at least one of them.
    """
    groups = iter([agents[start : start + GROUP] for start in range(0, len(agents), GROUP)])
    later: set[str] = set()

    async def work() -> None:
        for group in groups:
            first, others = await _group(services, group)
            later.update(others)
            if urgent is None:
                later.update(first)
                continue
            for agent in sorted(first):
                urgent(agent)

    tasks = [asyncio.ensure_future(work()) for _ in range(min(IN_FLIGHT, -(-len(agents) // GROUP)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
    return later


async def _group(services: Services, agents: Sequence[str]) -> tuple[set[str], set[str]]:
    """The agents with work that callers wait for, and the other agents with work."""
    t, subjects = services.transport, services.subjects
    journals, _ = await get_last_many(t, subjects.stream("journal"), [subjects.journal(a) for a in agents])
    newest = {agent: journals.get(subjects.journal(agent)) for agent in agents}
    rested = {agent: positions for agent in agents if (positions := _rested(newest[agent])) is not None}
    mail, _ = await get_last_many(t, subjects.stream("mail"), [subjects.mail_filter(a) for a in agents])
    due, _ = await get_last_many(t, subjects.stream("timer"), [subjects.due(a) for a in agents])
    urgent: set[str] = set()
    later = set(agents) - rested.keys()
    for subject, message in (*mail.items(), *due.items()):
        parsed = subjects.parse_lane(subject)
        if parsed is None or parsed[0] not in LANES or parsed[1] not in newest:
            continue
        lane, agent = parsed
        record = newest[agent]
        newer = record is None or message.time >= record.time
        # Mail that an agent has consumed is older than its `rest`, unless the stream was put back and has given sequences again:
        # the activation finds that out.
        waits = newer or (agent in rested and message.seq > rested[agent].get(lane, 0))
        if waits:
            urgent.add(agent)
    return urgent, later - urgent


def _rested(message: StoredMessage | None) -> dict[str, int] | None:
    """The lane positions of an agent whose newest record is `rest`, else None."""
    if message is None or not is_rest(message.data):
        return None
    try:
        record = record_in(message.data, marked=is_marked(message))
    except UnreadableRecord:
        return None  # the activation finds it too, and says so
    return (record.positions or {}) if record is not None and record.kind == "rest" else None
