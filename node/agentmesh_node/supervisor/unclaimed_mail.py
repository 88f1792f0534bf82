"""Finds mail for nobody: for names that have no spec, of whatever status (docs/architecture.md#mail-for-nobody).

A publisher to a name that nobody has started gets an acknowledgement, for an agent of that name may come. Such mail lives for a
while; and there is a bound on how many names and bytes of it are kept. What is beyond either is ended, the oldest first, by
`UnclaimedSweep`. The leader does it; two that both believe to lead do no harm.

It counts the subjects of the mail stream (the server takes 0.15 s for 100,000 of them) and passes over the names that have a
spec. Of the others it remembers what lies there, and reads what is new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from agentmesh.edge.batches import in_parts
from agentmesh.edge.clock import Ambient
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal import Journal
from agentmesh.edge.manage import SubjectCounts, count_all
from agentmesh.edge.read import get_last_many, read_pages
from agentmesh.edge.registry import Registry, decode_epoch
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, Fenced, NotFound
from agentmesh.names import agent_name
from agentmesh.subjects import EPOCH_KEY, Subjects
from agentmesh.wire import ErrorBody
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.unclaimed_sweep import Moment, UnclaimedSweep

log = logging.getLogger("agentmesh.supervisor")

PERIOD_S = 60.0
"""How often it is looked; more often where such mail lives for less than ten minutes."""
SHARE = 0.02
"""Most of its time that a supervisor spends on looking."""
STANDBY_S = 1.0
"""How often a supervisor that does not lead checks whether it does now."""
MOST_READ = 2000
"""Names that are read in one look; if there are more, the next one follows at once."""
AT_ONCE = 16
"""Names that are read, or whose mail is ended, at the same time."""
GROUP = 200
"""Journals whose ends are read with one request."""
TOLD = 20
"""Names that get a decision of their own in one look."""
OVERHEAD = 256
"""What a message counts beside its body and headers: the store and this table need room for it too."""
MARGIN_S = 60.0
"""How much longer than the server ids are remembered."""
_SECOND = 1_000_000_000


class Waiting(NamedTuple):
    """A message for nobody. `time`: when it was stored, by the server's clock."""

    seq: int
    time: float
    size: int


class Beyond(NamedTuple):
    """By name, the sequences up to which mail must be ended: because it is old, or because too much is kept."""

    aged: dict[str, int]
    crowded: dict[str, int]


def beyond(kept: Mapping[str, Sequence[Waiting]], *, before: float, names: int, size: int) -> Beyond:
    """What of `kept` (by name, in stream order) is beyond a bound.

    Args:
        before: what was stored up to then is old.
        names: most names.
        size: most bytes.
    """
    aged = {name: max(seqs) for name, mail in kept.items() if (seqs := [one.seq for one in mail if one.time <= before])}
    left = {name: rest for name, mail in kept.items() if (rest := [one for one in mail if one.time > before])}
    oldest_first = sorted(left, key=lambda name: left[name][0].seq)
    crowded = {name: left.pop(name)[-1].seq for name in oldest_first[: max(0, len(left) - names)]}
    total = sum(one.size for mail in left.values() for one in mail)
    if total > size:
        for one, name in sorted((one, name) for name, mail in left.items() for one in mail):
            if total <= size:
                break
            total -= one.size
            crowded[name] = one.seq
    return Beyond(aged, crowded)


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
        self._kept: dict[str, list[Waiting]] = {}

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        loop = asyncio.get_running_loop()
        period = min(PERIOD_S, max(STANDBY_S, self._settings.unclaimed_age_s / 10))
        while True:
            if not self._may_act() or not self._reads_all():
                self._kept.clear()
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
        found = await count_all(self._t, self._subjects.stream("mail"))
        counts = await self._nobodys(found)
        self._kept = {name: mail for name, mail in self._kept.items() if name in counts}
        unread = [name for name, count in counts.items() if count != len(self._kept.get(name, ()))]
        new = [name for name in unread[:MOST_READ] if name not in self._kept]
        await _some_at_a_time(unread[:MOST_READ], self._read)
        begun = await self._begun(new)
        await self._end(found, begun)
        return len(unread) > MOST_READ

    async def _nobodys(self, found: SubjectCounts) -> dict[str, int]:
        """The names without a spec, with the number of their messages."""
        counts: dict[str, int] = {}
        async for part in in_parts(found.subjects.items()):
            for subject, count in part:
                parsed = self._subjects.parse_lane(subject)
                if parsed is not None and not self._is_known(parsed[1]) and _is_name(parsed[1]):
                    counts[parsed[1]] = counts.get(parsed[1], 0) + count
        return counts

    async def _read(self, name: str) -> None:
        """Note what lies there for `name`."""
        mail: list[Waiting] = []
        async for page in read_pages(self._t, self._subjects.stream("mail"), self._subjects.mail_filter(name)):
            for message in page:
                headers = sum(len(key) + len(value) for key, value in message.headers.items())
                mail.append(Waiting(message.seq, message.time, len(message.data) + headers + OVERHEAD))
        self._kept[name] = mail

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
        due = beyond(self._kept, before=found.time - s.unclaimed_age_s, names=s.unclaimed_names, size=s.unclaimed_bytes)
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
                self._kept.pop(name, None)  # read again, if anything is left
                if count:
                    ended[name] = count

        await _some_at_a_time(sorted(upto, key=lambda name: self._kept[name][0].seq if self._kept.get(name) else 0), end)
        self._tell(ended, reasons)

    def _tell(self, ended: Mapping[str, int], reasons: Mapping[str, str]) -> None:
        names = list(ended)
        for name in names[:TOLD]:
            self._decisions.add("unclaimed", f"{reasons[name]}: its mail is dead letters now", agent=name, messages=ended[name])
        if rest := names[TOLD:]:
            count = sum(ended[name] for name in rest)
            self._decisions.add(
                "unclaimed", f"mail of {len(rest)} more names that no agent has is dead letters now", messages=count
            )


def _is_name(text: str) -> bool:
    """Whether an agent can have this name. Subjects hold other things too, wildcards among them, which must be no filters."""
    try:
        agent_name(text)
    except BadRequest:
        return False
    return True


async def _some_at_a_time[T](items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on each of `items`, in order, `AT_ONCE` of them at a time. The first error ends it."""
    waiting = iter(items)

    async def some() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.ensure_future(some()) for _ in range(min(AT_ONCE, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
