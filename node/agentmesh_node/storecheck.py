"""Whether the store still has what this process has committed (design 3, "Is the newest record mine?").

An append would find out by itself. But an agent that has nothing to write would go on as if nothing had happened, and on streams
that were put back sequences are given again, so that its new mail looks like old mail. So the journals of loaded agents are
compared with what their owners know: at once after a reconnect, and with each round of the self-check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agentmesh.edge.jetstream import StoredMessage, get_last, get_last_many
from agentmesh.edge.transport import Transport
from agentmesh.subjects import Subjects

GROUP = 500
PROOF_S = 1.0
"""A loss must be seen twice, so far apart, before it is believed."""


async def missing(t: Transport, subjects: Subjects, committed: Mapping[str, int]) -> set[str]:
    """The agents in `committed` (each with the sequence of a record that was acknowledged) whose journals end before that.

    Raises:
        Unavailable: it cannot be told now.
    """
    names = list(committed)
    stream = subjects.stream("journal")
    suspects: set[str] = set()
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        found, _ = await get_last_many(t, stream, [subjects.journal(name) for name in group])
        # A replica may lag behind: that makes a suspect, no more.
        suspects.update(name for name in group if _seq(found.get(subjects.journal(name))) < committed[name])
    for _ in range(2):
        if not suspects:
            break
        await asyncio.sleep(PROOF_S)
        newest = {name: _seq(await get_last(t, stream, subjects.journal(name))) for name in sorted(suspects)}
        suspects = {name for name, seq in newest.items() if seq < committed[name]}
    return suspects


def _seq(message: StoredMessage | None) -> int:
    return 0 if message is None else message.seq
