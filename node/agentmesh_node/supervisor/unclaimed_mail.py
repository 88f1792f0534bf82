"""Finds mail for nobody: for names that have no spec, of whatever status (docs/architecture.md#mail-for-nobody).

A publisher to a name that nobody has started gets an acknowledgement, for an agent of that name may come. Such mail lives for a
while; and there is a bound on how many names and bytes of it are kept. What is beyond either is ended, the oldest first, by
`UnclaimedSweep`. The leader does it; two that both believe to lead do no harm.

It counts the subjects of the mail stream (the server takes 0.15 s for 100,000 of them) and passes over the names that have a
spec. Of the others it remembers what lies there, and reads what is new (`UnclaimedTable`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentmesh.edge.clock import Ambient
from agentmesh.edge.endings import REASON
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal import Journal
from agentmesh.edge.manage import SubjectCounts, delete
from agentmesh.edge.read import get_last_many
from agentmesh.edge.registry import Registry, decode_epoch
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, NotFound
from agentmesh.subjects import EPOCH_KEY, Subjects
from agentmesh.wire import ErrorBody
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.unclaimed_sweep import Moment, UnclaimedSweep
from agentmesh_node.supervisor.unclaimed_table import UnclaimedTable, beyond, some_at_a_time

log = logging.getLogger("agentmesh.supervisor")

PERIOD_S = 60.0
"""How often it is looked; more often where such mail lives for less than ten minutes."""
SHARE = 0.02
"""Most of its time that a supervisor spends on looking."""
STANDBY_S = 1.0
"""How often a supervisor that does not lead checks whether it does now."""
GROUP = 200
"""Journals whose ends are read with one request."""
TOLD = 20
"""Names that get a decision of their own in one look."""
MARGIN_S = 60.0
"""How much longer than the server ids are remembered."""
_SECOND = 1_000_000_000


class UnclaimedMailFinder:
    """Looks while `run` runs, `may_act()` holds and every process reads what this build writes (`reads_all()`).

    `is_known(agent)` says whether the name has a spec, as far as this supervisor knows.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        decisions: DecisionLog,
        settings: SupervisorSettings,
        *,
        is_known: Callable[[str], bool],
        may_act: Callable[[], bool],
        reads_all: Callable[[], bool],
        ambient: Ambient,
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._registry = registry
        self._decisions = decisions
        self._settings = settings
        self._is_known = is_known
        self._may_act = may_act
        self._reads_all = reads_all
        journal = Journal(transport, subjects)
        self._sweep = UnclaimedSweep(transport, subjects, registry, journal, token=ambient.token, now=ambient.now)
        self._mail = UnclaimedTable(
            transport, subjects.stream("mail"), name_of=self._name_in_lane, filter_of=subjects.mail_filter
        )
        self._dead = UnclaimedTable(
            transport,
            subjects.stream("dead"),
            name_of=lambda subject: subject.removeprefix(subjects.dead("")),
            filter_of=subjects.dead,
            counts=lambda letter: letter.headers.get(REASON) == NotFound.code,
        )

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        loop = asyncio.get_running_loop()
        period = min(PERIOD_S, max(STANDBY_S, self._settings.unclaimed_age_s / 10))
        while True:
            if not self._may_act() or not self._reads_all():
                self._mail.forget()
                self._dead.forget()
                await asyncio.sleep(STANDBY_S)
                continue
            began, more = loop.time(), False
            try:
                more = await self.look()
            except EDGE_ERRORS as error:
                log.debug("mail for nobody cannot be looked for now: %s", error)
            took = loop.time() - began
            await asyncio.sleep(took if more else max(period, took / SHARE))

    async def look(self) -> bool:
        """Look once, and end what is beyond the bounds. Returns whether there are names that were not read.

        Raises:
            MeshError, ApiError: it cannot be looked now.
        """
        found = await self._mail.look(self._is_known)
        await self._end(found.counts, await self._begun(found.new))
        dead = await self._dead.look(self._is_known)
        await self._drop_letters()
        return found.more or dead.more

    def _name_in_lane(self, subject: str) -> str | None:
        parsed = self._subjects.parse_lane(subject)
        return None if parsed is None else parsed[1]

    async def _begun(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that have a journal: a sweep was perhaps begun there, and not finished."""
        begun: list[str] = []
        for start in range(0, len(names), GROUP):
            subjects = {self._subjects.journal(name): name for name in names[start : start + GROUP]}
            newest, _ = await get_last_many(self._t, self._subjects.stream("journal"), list(subjects))
            begun += [subjects[subject] for subject in newest]
        return begun

    # --- ending it ----------------------------------------------------------------------------------------------------
    async def _end(self, found: SubjectCounts, begun: Iterable[str]) -> None:
        s = self._settings
        due = beyond(self._mail.kept, before=found.time - s.unclaimed_age_s, names=s.unclaimed_names, size=s.unclaimed_bytes)
        reasons = {name: f"no agent has had the name {name} for {s.unclaimed_age_s:g} s" for name in due.aged}
        for name in due.crowded:
            reasons[name] = (
                f"no agent has the name {name}, and more mail waits for such names than is kept ({s.unclaimed_names} names, "
                f"{s.unclaimed_bytes} bytes)"
            )
        upto = {**dict.fromkeys(begun, 0), **due.aged, **due.crowded}
        if not upto:
            return
        epoch = await self._registry.get(EPOCH_KEY)
        if epoch is None:
            return
        since = found.time - found.config["duplicate_window"] / _SECOND - MARGIN_S
        moment = Moment(decode_epoch(epoch), since)
        ended: dict[str, int] = {}

        async def end(name: str) -> None:
            if not self._may_act():
                return
            advice = f"start it with `mesh start {name} --kind KIND`; `mesh dead ls {name}` shows what can be sent again"
            reason = ErrorBody(code=NotFound.code, message=f"{reasons.get(name, '')}; {advice}")
            try:
                count = await self._sweep.end(name, upto[name], reason, moment)
            except Fenced:
                log.debug("somebody else acts for a name", extra={"agent": name})
            except EDGE_ERRORS as error:
                log.warning("mail for nobody cannot be ended now: %s", error, extra={"agent": name})
            else:
                if count:
                    ended[name] = count
            self._mail.forget(name)  # what is left, and what is not finished, is looked at anew

        kept = self._mail.kept
        await some_at_a_time(sorted(upto, key=lambda name: kept[name][0].seq if kept.get(name) else 0), end)
        self._tell(ended, reasons)

    async def _drop_letters(self) -> None:
        """Remove dead letters of such mail beyond the same bounds, the oldest first: no agent will ever send them again."""
        s = self._settings
        over = beyond(self._dead.kept, before=0.0, names=s.unclaimed_names, size=s.unclaimed_bytes)
        for name, upto in over.crowded.items():
            for letter in self._dead.kept[name]:
                if letter.seq <= upto and self._may_act():
                    await delete(self._t, self._subjects.stream("dead"), letter.seq)
            self._dead.forget(name)

    def _tell(self, ended: Mapping[str, int], reasons: Mapping[str, str]) -> None:
        names = list(ended)
        for name in names[:TOLD]:
            self._decisions.add("unclaimed", f"{reasons[name]}: its mail is dead letters now", agent=name, messages=ended[name])
        if rest := names[TOLD:]:
            count = sum(ended[name] for name in rest)
            self._decisions.add(
                "unclaimed", f"mail of {len(rest)} more names that no agent has is dead letters now", messages=count
            )
