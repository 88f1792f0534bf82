"""Mail that slips in behind the last sweep of a stopped agent (design 3, "The end").

The leader compares the lanes of stopped agents with their tombstones, a group at a time, spread over a minute, and has a node
sweep those that reach beyond. The node answers what was meant for that life by records behind the tombstone: they are fenced, so
the name's next life and another sweep cannot collide with it. A sweep that its node does not survive leaves its effects open in
the journal, which then does not end in a tombstone: the leader finds that too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from agentmesh.edge.jetstream import ApiError, Uncertain, WrongLastSequence, get_last, get_last_many, read_all
from agentmesh.edge.registry import decode_spec
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import Fenced, MeshError
from agentmesh.ledger import fold, record_of, settle
from agentmesh.records import Ledger, Resolve, decode_record, encode_record
from agentmesh.subjects import LANES, Subjects, spec_key
from agentmesh.turn.late_mail import put_away, rested
from agentmesh.wire import ControlRequest, Mail, Spec, decode_mail, encode
from agentmesh_node.owner.effect_handlers import EffectHandlers
from agentmesh_node.owner.spec_status import KEEP_STOPPED_S
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")

PERIOD_S = 60.0
"""How long one round over all stopped agents takes."""
STANDBY_S = 1.0
"""How often a supervisor that does not lead sees whether it does."""
GROUP = 200
TRIES = 10
TRY_S = 1.0
"""How often an effect is tried, and how long apart; what is open then is left to the next round."""


# --- the leader -----------------------------------------------------------------------------------------------------
class LateMailFinder:
    """Looks for such mail while `run` runs and `may_look()` holds. `stopped()` are the stopped agents' specs by name;
    `nodes()` are nodes that can be asked to sweep, the best first."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        stopped: Callable[[], dict[str, Spec]],
        nodes: Callable[[], Sequence[str]],
        may_look: Callable[[], bool],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self._t = transport
        self._subjects = subjects
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
                    if found:
                        await self._ask(found)
                except (MeshError, ApiError) as error:
                    log.debug("stopped agents cannot be looked at now: %s", error)
                await asyncio.sleep(self._period_s / len(groups))

    async def _look(self, specs: dict[str, Spec]) -> list[str]:
        """Those of `specs` that must be swept."""
        t, subjects = self._t, self._subjects
        journals, _ = await get_last_many(t, subjects.stream("journal"), [subjects.journal(name) for name in specs])
        mail, _ = await get_last_many(t, subjects.stream("mail"), [subjects.mail_filter(name) for name in specs])
        positions: dict[str, dict[str, int]] = {}
        found: set[str] = set()
        for name, spec in specs.items():
            message = journals.get(subjects.journal(name))
            record = decode_record(message.data) if message is not None and b'"blob"' not in message.data[:32] else None
            if record is None or record.incarnation != spec.incarnation:
                continue
            if record.kind == "tombstone" and record.snapshot is not None:
                positions[name] = record.snapshot.positions
            else:
                found.add(name)  # a sweep that was begun
        for subject, message in mail.items():
            lane, name = subjects.parse_lane(subject) or ("", "")
            if name in positions and message.seq > positions[name].get(lane, 0):
                found.add(name)
        return sorted(found)

    async def _ask(self, agents: list[str]) -> None:
        request = encode(ControlRequest(op="sweep", agents=tuple(agents)))
        for node in self._nodes():
            with contextlib.suppress(NoResponders, RequestTimeout, Disconnected):
                await self._t.request(self._subjects.node(node), request, timeout=2.0)
                return


# --- the node -------------------------------------------------------------------------------------------------------
class Sweeper:
    """Sweeps behind tombstones, one agent at a time."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._turn = asyncio.Lock()

    async def sweep(self, agents: Iterable[str]) -> None:
        """Answer the late mail of `agents`. What cannot be done now is found again by the leader."""
        async with self._turn:
            for agent in agents:
                try:
                    await self._sweep(agent)
                except Fenced:
                    log.debug("somebody else acts for it", extra={"agent": agent})
                except (MeshError, ApiError, Uncertain, WrongLastSequence) as error:
                    log.warning("late mail not swept now: %s", error, extra={"agent": agent})

    async def _sweep(self, agent: str) -> None:
        s = self._s
        entry = await s.registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        ledger, last = fold([(seq, decode_record(body)) for seq, body in await s.journal.read(agent)])
        if spec is None or spec.status != "stopped" or ledger is None or ledger.incarnation != spec.incarnation:
            return
        if ledger.phase != "over":
            return  # the stop itself is not finished: that is work to place
        waiting, late = await self._mail(agent, ledger)
        again = await s.registry.get(spec_key(agent))
        if entry is None or again is None or again.revision != entry.revision:
            return  # a next life has begun: that owner sees to all of it
        if late:
            change, effects = put_away(agent, ledger, waiting, late)
            # In the name of the life's last owner: a finisher makes itself no owner.
            record = record_of(ledger, "swept", id=s.token(), at=s.now(), change=change, effects=effects)
            last = await s.journal.append(agent, encode_record(record), record_id=record.id, expected=last)
            ledger, _ = fold([(seq, decode_record(body)) for seq, body in await s.journal.read(agent)])
            assert ledger is not None
        if not ledger.effects:
            return
        await self._perform(agent, ledger)
        kept = rested(settle(ledger, (), tuple(ledger.effects), seq=last, nonce="", at=s.now()))
        record = record_of(ledger, "tombstone", id=s.token(), at=s.now(), snapshot=kept)
        await s.journal.append(
            agent, encode_record(record), record_id=record.id, expected=last, rollup=True, ttl_s=KEEP_STOPPED_S
        )

    async def _mail(self, agent: str, ledger: Ledger) -> tuple[list[Mail], list[Mail]]:
        """What lies beyond the tombstone's positions, in stream order, and the part of it that is late: it names a life (which
        is over, if the spec is still the same after this read), or names none and was stored before the spec became `stopped`.
        Both times are the server's: the clocks of nodes may be wrong."""
        s = self._s
        stopped = await get_last(s.transport, s.subjects.stream("registry"), s.subjects.registry_key(spec_key(agent)))
        since = stopped.time if stopped is not None else 0.0
        waiting: list[Mail] = []
        late: list[Mail] = []
        for lane in LANES.values():
            stream, subject = s.subjects.stream(lane.stream), s.subjects.lane(lane.name, agent)
            beyond = ledger.positions.get(lane.name, 0) + 1
            taken = ledger.taken.get(lane.name, ())
            for message in await read_all(s.transport, stream, subject, from_seq=beyond):
                if message.seq in taken:
                    continue
                mail = decode_mail(lane, message.seq, message.data, message.headers, root=s.subjects.root)
                waiting.append(mail)
                if mail.for_life is not None or message.time < since:
                    late.append(mail)
        return sorted(waiting, key=_seq), sorted(late, key=_seq)

    async def _perform(self, agent: str, ledger: Ledger) -> None:
        """Give every answer that is open, in order.

        Raises:
            MeshError, Uncertain, WrongLastSequence: one of them cannot be given now.
        """
        s = self._s
        deeds = EffectHandlers(
            agent=agent,
            life=ledger.incarnation,
            transport=s.transport,
            subjects=s.subjects,
            registry=s.registry,
            specs=s.specs,
            journal=s.journal,
            token=s.token,
            now=s.now,
            emit=lambda kind, fields: s.events.emit(agent, kind, ledger.turn, fields),
            live=lambda effect: None,
            is_gone=partial(_is_answered, ledger),
        )
        for origin, entry in ledger.effects.items():
            for number in range(1, TRIES + 1):
                try:
                    await deeds.perform(origin, entry)
                    break
                except (MeshError, ApiError, Uncertain, WrongLastSequence, Disconnected):
                    if number == TRIES:
                        raise
                await asyncio.sleep(TRY_S)


def _seq(mail: Mail) -> int:
    return mail.seq


async def _is_answered(ledger: Ledger, ref: str) -> bool:
    """Whether a request to an agent that has ended was answered: all were, and what is not yet stored is open."""
    return not any(isinstance(entry.effect, Resolve) and entry.effect.outcome.ref == ref for entry in ledger.effects.values())
