"""Mail that waits for names that no agent has (docs/architecture.md#mail-for-nobody)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping

from agentmesh.edge.manage import count, count_all
from agentmesh.edge.read import get_next
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest
from agentmesh.names import agent_name
from agentmesh.subjects import Subjects, spec_key
from agentmesh_client.results import UnclaimedMail

MOST_NAMES = 1000
"""Names that are listed, at most."""
SPECS = spec_key("")


class Unclaimed:
    """Lists such mail."""

    def __init__(self, transport: Transport, subjects: Subjects, registry: Registry) -> None:
        self._t = transport
        self._subjects = subjects
        self._registry = registry

    async def list(self, agent: str | None) -> list[UnclaimedMail]:
        """See `Mesh.unclaimed_mail`."""
        found = await (self._all() if agent is None else self._of(agent))
        listed = [await self._entry(name, found[name]) for name in sorted(found)[:MOST_NAMES]]
        return sorted((entry for entry in listed if entry is not None), key=lambda entry: entry.oldest)

    async def _all(self) -> dict[str, int]:
        stored = await count_all(self._t, self._subjects.stream("mail"))  # first: a name that is started meanwhile is known then
        entries, _ = await self._registry.load(SPECS)
        return counts(self._subjects, stored.subjects, {entry.key for entry in entries})

    async def _of(self, agent: str) -> dict[str, int]:
        agent_name(agent)
        if await self._registry.get(spec_key(agent)) is not None:
            return {}
        stored = await count(self._t, self._subjects.stream("mail"), self._subjects.mail_filter(agent))
        return {agent: sum(stored.values())} if stored else {}

    async def _entry(self, name: str, messages: int) -> UnclaimedMail | None:
        first = await get_next(self._t, self._subjects.stream("mail"), self._subjects.mail_filter(name), 1)
        if first is None:
            return None  # it has just ended
        return UnclaimedMail(agent=name, messages=messages, oldest=dt.datetime.fromtimestamp(first.time, dt.UTC))


def counts(subjects: Subjects, stored: Mapping[str, int], keys: Collection[str]) -> dict[str, int]:
    """How many messages lie there for each name without a spec.

    Args:
        stored: the subjects of the mail stream, with their counts.
        keys: of the registry, all specs among them.
    """
    found: dict[str, int] = {}
    for subject, number in stored.items():
        parsed = subjects.parse_lane(subject)
        if parsed is not None and spec_key(parsed[1]) not in keys and _is_name(parsed[1]):
            found[parsed[1]] = found.get(parsed[1], 0) + number
    return found


def _is_name(text: str) -> bool:
    """Whether an agent can have this name: subjects may hold anything, wildcards too."""
    try:
        agent_name(text)
    except BadRequest:
        return False
    return True
