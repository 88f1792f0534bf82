"""Answers mail that arrived after the last sweep of a stopped agent, when the leading supervisor asks for it.

Mail for that life is answered by records behind the tombstone: they are fenced, so the name's next life and another sweep cannot
collide with them (docs/architecture.md#the-end-of-a-life). `agentmesh_node.supervisor.late_mail` finds
the agents that need it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.read import get_last, read_by_leader
from agentmesh.edge.registry import decode_spec
from agentmesh.errors import Fenced
from agentmesh.ledger import fold, journal_version, record_of, settle
from agentmesh.message_ids import MessageIds
from agentmesh.records import Ledger, Resolve, encode_record
from agentmesh.subjects import LANES, spec_key
from agentmesh.turn.late_mail import put_away, rested
from agentmesh.wire import Mail, decode_mail
from agentmesh_node.owner.effect_handlers import EffectHandlers
from agentmesh_node.owner.spec_status import KEEP_STOPPED_S
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")

TRIES = 10
TRY_S = 1.0
"""How often an effect is tried, and the pause between tries; effects that are open then are left to the next sweep."""


class LateMailSweep:
    """Sweeps behind tombstones, one agent at a time."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._turn = asyncio.Lock()

    async def sweep(self, agents: Iterable[str]) -> None:
        """Answer the late mail of `agents`. If that fails, the leading supervisor finds it again."""
        async with self._turn:
            for agent in agents:
                try:
                    await self._sweep(agent)
                except Fenced:
                    log.debug("somebody else acts for it", extra={"agent": agent})
                except EDGE_ERRORS as error:
                    log.warning("late mail not swept now: %s", error, extra={"agent": agent})

    async def _sweep(self, agent: str) -> None:
        s = self._s
        entry = await s.registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        records = (await s.journal.read(agent)).records
        ledger, last = fold(records)
        v = journal_version(records)
        if spec is None or spec.status != "stopped" or ledger is None or ledger.incarnation != spec.incarnation:
            return
        if ledger.phase != "over":
            return  # the stop itself is not finished: an owner must do that
        waiting, late = await self._mail(agent, ledger)
        again = await s.registry.get(spec_key(agent))
        if entry is None or again is None or again.revision != entry.revision:
            return  # a next life has begun: its owner answers the mail
        if late:
            change, effects = put_away(agent, ledger, waiting, late)
            # In the name of the life's last owner: the sweep does not become an owner.
            record = record_of(ledger, "swept", id=s.token(), at=s.now(), change=change, effects=effects, v=v)
            last = await s.journal.append(agent, encode_record(record), record_id=record.id, expected=last)
            ledger, _ = fold((await s.journal.read(agent)).records)
            assert ledger is not None
        if not ledger.effects:
            return
        await self._perform(agent, ledger)
        kept = rested(settle(ledger, (), tuple(ledger.effects), seq=last, nonce="", at=s.now()))
        record = record_of(ledger, "tombstone", id=s.token(), at=s.now(), snapshot=kept, v=v)
        await s.journal.append(
            agent, encode_record(record), record_id=record.id, expected=last, rollup=True, ttl_s=KEEP_STOPPED_S
        )

    async def _mail(self, agent: str, ledger: Ledger) -> tuple[list[Mail], list[Mail]]:
        """The mail beyond the tombstone's positions, in stream order, and the part of it that is late.

        Mail is late if it names a life (which is over, if the spec is still the same after this read), or if it names none and
        was stored before the spec became `stopped`. Both times are the server's, because the clocks of nodes may be wrong.
        """
        s = self._s
        stopped = await get_last(s.transport, s.subjects.stream("registry"), s.subjects.registry_key(spec_key(agent)))
        since = stopped.time if stopped is not None else 0.0
        ids = MessageIds(s.remember_s)
        waiting: list[Mail] = []
        late: list[Mail] = []
        for lane in LANES.values():
            stream, subject = s.subjects.stream(lane.stream), s.subjects.lane(lane.name, agent)
            beyond = ledger.positions.get(lane.name, 0) + 1
            taken = ledger.taken.get(lane.name, ())
            async for message in read_by_leader(s.transport, stream, subject):
                mail = decode_mail(lane, message.seq, message.data, message.headers, root=s.subjects.root, stored_at=message.time)
                (mail,) = ids.marked((mail,))
                if message.seq < beyond or message.seq in taken:
                    continue
                waiting.append(mail)
                if mail.for_life is not None or message.time < since:
                    late.append(mail)
        return sorted(waiting, key=_seq), sorted(late, key=_seq)

    async def _perform(self, agent: str, ledger: Ledger) -> None:
        """Perform every open answer, in order.

        Raises:
            MeshError, Uncertain, WrongLastSequence: an answer cannot be given now.
        """
        s = self._s
        handlers = EffectHandlers(
            s,
            agent,
            ledger.incarnation,
            emit=lambda kind, fields: s.events.emit(agent, kind, ledger.turn, fields),
            end_stream=lambda effect: None,
            is_gone=partial(_is_answered, ledger),
        )
        for origin, entry in ledger.effects.items():
            for number in range(1, TRIES + 1):
                try:
                    await handlers.perform(origin, entry)
                    break
                except EDGE_ERRORS:
                    if number == TRIES:
                        raise
                await asyncio.sleep(TRY_S)


def _seq(mail: Mail) -> int:
    return mail.seq


async def _is_answered(ledger: Ledger, ref: str) -> bool:
    """Whether a request to an agent that has ended was answered: it was, unless its outcome is still an open effect."""
    return not any(isinstance(entry.effect, Resolve) and entry.effect.outcome.ref == ref for entry in ledger.effects.values())
