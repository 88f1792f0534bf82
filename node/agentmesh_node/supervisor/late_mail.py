"""Finds mail that arrived after the last sweep of a stopped agent (docs/architecture.md#the-end-of-a-life).

The leader compares the lanes of stopped agents with their tombstones, a group at a time, spread over a minute, and asks a
node to sweep lanes with newer mail (`agentmesh_node.host.late_mail_sweep`). If the node dies during a sweep, the journal has open
effects and does not end in a tombstone: the leader finds that too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from agentmesh.control_values import ControlRequest
from agentmesh.edge.blobs import BLOB
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal_reader import JournalReader, is_marked
from agentmesh.edge.read import StoredMessage, get_last_many
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import NotPermitted, UnreadableRecord
from agentmesh.records import Record, record_in
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects
from agentmesh.wire import encode

log = logging.getLogger("agentmesh.node")

PERIOD_S = 60.0
"""How long one round over all stopped agents takes."""
STANDBY_S = 1.0
"""How often a supervisor that does not lead checks whether it does now."""
GROUP = 200
"""Agents that are checked with one request."""


class LateMailFinder:
    """Looks for such mail while `run` runs and `may_look()` holds. `stopped()` returns the stopped agents' specs by name;
    `nodes(version)` returns nodes that read such records and can be asked to sweep, the best first."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        stopped: Callable[[], dict[str, Spec]],
        nodes: Callable[[int], Sequence[str]],
        may_look: Callable[[], bool],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._journals = JournalReader(transport, subjects)
        self._stopped = stopped
        self._nodes = nodes
        self._may_look = may_look
        self._period_s = period_s

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        while True:
            if not self._may_look():
                await asyncio.sleep(STANDBY_S)
                continue
            specs = self._stopped()
            names = sorted(specs)
            groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
            if not groups:
                await asyncio.sleep(self._period_s)
            for group in groups:
                try:
                    found = await self._look({name: specs[name] for name in group})
                    for version in sorted(set(found.values())):
                        await self._ask([name for name in found if found[name] == version], version)
                except EDGE_ERRORS as error:
                    log.debug("stopped agents cannot be looked at now: %s", error)
                await asyncio.sleep(self._period_s / len(groups))

    async def _look(self, specs: dict[str, Spec]) -> dict[str, int]:
        """Those of `specs` that must be swept, and the version of records that a node must read for it."""
        t, subjects = self._t, self._subjects
        journals, _ = await get_last_many(t, subjects.stream("journal"), [subjects.journal(name) for name in specs])
        mail, _ = await get_last_many(t, subjects.stream("mail"), [subjects.mail_filter(name) for name in specs])
        positions: dict[str, dict[str, int]] = {}
        versions: dict[str, int] = {}
        found: set[str] = set()
        for name, spec in specs.items():
            record = await self._newest(name, journals.get(subjects.journal(name)))
            if record is None or record.incarnation != spec.incarnation:
                continue
            versions[name] = record.v
            if record.kind == "tombstone" and record.snapshot is not None:
                positions[name] = record.snapshot.positions
            else:
                found.add(name)  # a sweep was begun and not finished
        for subject, message in mail.items():
            lane, name = subjects.parse_lane(subject) or ("", "")
            if name in positions and message.seq > positions[name].get(lane, 0):
                found.add(name)
        return {name: versions[name] for name in sorted(found)}

    async def _newest(self, name: str, message: StoredMessage | None) -> Record | None:
        """The newest record of an agent whose journal ends with `message`; None if there is none that can be read here."""
        if message is None:
            return None
        try:
            if is_marked(message) and BLOB not in message.headers:
                return record_in(message.data, marked=True)
            found = await self._journals.last(name)
        except UnreadableRecord as error:
            log.debug("a stopped agent cannot be looked at: %s", error.message, extra={"agent": name})
            return None
        return None if found is None else found[1]

    async def _ask(self, agents: list[str], version: int) -> None:
        request = encode(ControlRequest(op="sweep", agents=tuple(agents)))
        for node in self._nodes(version):
            with contextlib.suppress(NoResponders, RequestTimeout, Disconnected, NotPermitted):
                await self._t.request(self._subjects.node(node), request, timeout=2.0)
                return
