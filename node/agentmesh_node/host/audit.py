"""Looks for mail that plain subscriptions have missed (docs/architecture.md#mail-and-lanes), for records that the store has lost
(docs/architecture.md#is-the-newest-record-mine), and for purged mail that is back and fills a lane
(docs/nats.md#what-a-killed-server-forgets).

A subscription can lose a message without a sign. So every lane's last sequence is compared with what its owner has seen, or with
a sleeping agent's `rest` record: a group of agents at a time, spread over a minute.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Sequence

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.manage import count_all
from agentmesh.edge.read import get_last_many
from agentmesh.edge.tasks import Background
from agentmesh_node.host.work_scan import GROUP, agents_with_work
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.services import Services
from agentmesh_node.store_loss import Acknowledged, lost_journals

log = logging.getLogger("agentmesh.node")

PERIOD_S = 60.0
"""How long one pass over all agents takes."""
ROUNDS_PER_COUNT = 10
"""The mail of all lanes is counted in every so many passes."""


class Audit:
    """Checks a node's agents, over and over.

    `agents()` returns names with mailboxes (None while an agent sleeps); `wake(name)` wakes an agent; `loaded()` returns what the
    store has acknowledged of each loaded agent; `lost(name)` is called for an agent of which the store has lost some of that;
    `newer(name, seq)` for one whose journal goes on behind that, up to `seq`.
    """

    def __init__(
        self,
        services: Services,
        agents: Callable[[], Sequence[tuple[str, Mailbox | None]]],
        wake: Callable[[str], None],
        loaded: Callable[[], dict[str, Acknowledged]],
        lost: Callable[[str], None],
        *,
        newer: Callable[[str, int], None] = lambda name, seq: None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._s = services
        self._agents = agents
        self._wake = wake
        self._loaded = loaded
        self._lost = lost
        self._newer = newer
        self._period_s = period_s
        self._uncounted = False
        """The mail of all lanes should have been counted, and could not be."""
        self._rounds = Background("audit")

    def start(self) -> None:
        self._rounds.begin(self._run())

    async def close(self) -> None:
        await self._rounds.close()

    async def _run(self) -> None:
        for number in itertools.count():
            await self.check_store()
            if number % ROUNDS_PER_COUNT == 0 or self._uncounted:
                await self.check_lanes()
            agents = list(self._agents())
            groups = max(1, math.ceil(len(agents) / GROUP))
            for index in range(groups):
                try:
                    await self._check(agents[index * GROUP : (index + 1) * GROUP])
                except EDGE_ERRORS as error:
                    log.debug("self-check not possible now: %s", error)
                await asyncio.sleep(self._period_s / groups)

    async def check_store(self) -> None:
        """Compare the store with what was committed. Called also when the store may have been replaced."""
        try:
            loaded = self._loaded()
            committed = {name: known.record for name, known in loaded.items()}
            lost = await lost_journals(
                self._s.transport, self._s.subjects, committed, journals=self._s.journal, on_newer=self._newer
            )
            lost |= await self._s.ends.lost_mail(loaded)
        except EDGE_ERRORS as error:
            log.debug("the store cannot be checked now: %s", error)
            return
        for name in sorted(lost):
            self._lost(name)

    async def check_lanes(self) -> None:
        """Find lanes that are half full, and have what they hold read anew: what was purged, and is back, would refuse all
        senders, and no new mail would come to show it. Called also when servers may have been killed."""
        self._uncounted = True
        s, half = self._s, max(1, self._s.settings.mailbox_limit // 2)
        try:
            stored = (await count_all(s.transport, s.subjects.stream("mail"))).subjects
            stored |= (await count_all(s.transport, s.subjects.stream("timer"))).subjects
        except EDGE_ERRORS as error:
            log.debug("mail cannot be counted now: %s", error)
            return
        self._uncounted = False
        lanes = (s.subjects.parse_lane(subject) for subject, number in stored.items() if number >= half)
        full = {lane[1] for lane in lanes if lane is not None}
        for name, mailbox in self._agents():
            if name in full:
                if mailbox is None:
                    self._wake(name)
                else:
                    mailbox.survey()

    async def _check(self, agents: Sequence[tuple[str, Mailbox | None]]) -> None:
        asleep = [name for name, mailbox in agents if mailbox is None]
        for name in await agents_with_work(self._s, asleep) if asleep else ():
            self._wake(name)
        awake = {name: mailbox for name, mailbox in agents if mailbox is not None}
        if not awake:
            return
        t, subjects = self._s.transport, self._s.subjects
        mail, _ = await get_last_many(t, subjects.stream("mail"), [subjects.mail_filter(name) for name in awake])
        due, _ = await get_last_many(t, subjects.stream("timer"), [subjects.due(name) for name in awake])
        for subject, message in (*mail.items(), *due.items()):
            lane, name = subjects.parse_lane(subject) or ("", "")
            if name in awake and not awake[name].knows(lane, message.seq):
                log.warning("mail was missed and is read now", extra={"agent": name, "lane": lane, "seq": message.seq})
                awake[name].catch_up()
