"""Ends mail for a name that no agent has (docs/architecture.md#mail-for-nobody).

One record in the name's journal decides, behind the newest one that was read, so that it and the first record of an owner exclude
each other: an agent that is started under the name either has the mail, or finds that it is answered. Then each message becomes a
dead letter, a prompt gets its outcome, a tombstone says that this is done, and the mail is purged. Where this process dies, the
next leader goes on, because the mail lies there until the last step; or the owner of a new life, which performs what the record
has left open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from agentmesh import wire
from agentmesh.edge.endings import bury, send_answer, send_outcome
from agentmesh.edge.journal import Journal
from agentmesh.edge.manage import purge
from agentmesh.edge.read import read_by_leader
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.results import store_outcome
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable
from agentmesh.ledger import apply, fold, is_taken, journal_version, record_of, settle
from agentmesh.records import Bury, Effect, Ledger, Open, Record, Resolve, Seen, SendMail, encode_record
from agentmesh.registry_values import Spec
from agentmesh.subjects import LANES, MAIL_LANES, Subjects, spec_key
from agentmesh.turn.draft import digest
from agentmesh.turn.late_mail import rested, unclaimed
from agentmesh.wire import ErrorBody, Mail, decode_mail
from agentmesh_node.store_loss import has_ended

log = logging.getLogger("agentmesh.supervisor")

KEEP_S = 7 * 24 * 3600
"""How long the record that ends mail is kept, and the tombstone behind it: as long as that of an agent."""
BATCH = 500
"""Most messages that one record ends."""


class Moment(NamedTuple):
    """What a sweep must know of the mesh."""

    epoch: int
    since: float
    """From when on the mail stream knows the ids of messages: what is older is not sent again (seconds since the epoch)."""


class _Letter(NamedTuple):
    mail: Mail
    msg_id: str | None
    time: float


class UnclaimedSweep:
    """Ends the mail of names without an agent. `token(n)` is random, `now()` in seconds since the epoch."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        journal: Journal,
        *,
        token: Callable[[int], str],
        now: Callable[[], float],
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._registry = registry
        self._journal = journal
        self._token = token
        self._now = now
        self._odd: set[str] = set()
        """Names that cannot be dealt with: each is reported once."""

    async def end(self, agent: str, upto: int, reason: ErrorBody, moment: Moment) -> int:
        """End the mail of `agent` up to the sequence `upto` with `reason`, and finish what was begun before. Returns how many
        messages have ended now.

        Nothing is done where the name has a spec, or a life that its journal does not know to be over.

        Raises:
            Fenced: somebody else has written to the journal meanwhile.
            MeshError, Uncertain, WrongLastSequence: it cannot be finished now.
        """
        contents = await self._journal.read(agent)
        ledger, last = fold(contents.records)
        if contents.wiped or (ledger is not None and not _is_over(ledger)):
            if agent not in self._odd:
                self._odd.add(agent)
                log.warning("mail waits for a name whose spec is gone, and whose life is not over", extra={"agent": agent})
            return 0
        if ledger is None:
            ledger = Ledger(incarnation=self._token(8), epoch=moment.epoch, phase="over")
        v, ended, fence, more = journal_version(contents.records), 0, contents.fence, True
        while True:
            if ledger.effects:
                await self._perform(agent, ledger)
                ledger = rested(settle(ledger, (), tuple(ledger.effects), seq=last, nonce="", at=self._now()))
                record = record_of(ledger, "tombstone", id=self._token(8), at=self._now(), snapshot=ledger, v=v)
                fence = last = await self._append(agent, record, last, fence)
            if more and await self._spec(agent) is not None:
                break  # the mail is its owner's
            letters, behind = await self._letters(agent, ledger, upto) if more else ([], [])
            if not letters:
                await self._purge(agent, ledger)
                break
            more = len(letters) == BATCH
            mail = [letter.mail for letter in letters]
            seen = {digest(x.msg_id): Seen(x.mail.ref, x.time) for x in letters if x.msg_id and x.time > moment.since}
            change, effects = unclaimed(agent, ledger, mail, reason, behind=behind, seen=seen, since=moment.since)
            record = record_of(
                ledger, "swept", id=self._token(8), at=self._now(), change=change, effects=effects, snapshot=ledger, v=v
            )
            fence = last = await self._append(agent, record, last, fence)
            ledger = apply(ledger, record, last)
            ended += len(mail)
        return ended

    async def _spec(self, agent: str) -> Spec | None:
        """The spec of that name; a value of foreign form counts as one, for it is put back."""
        entry = await self._registry.get(spec_key(agent))
        return None if entry is None or entry.value is None else decode_spec(entry)

    async def _append(self, agent: str, record: Record, last: int, fence: int) -> int:
        body = encode_record(record)
        return await self._journal.append(agent, body, record_id=record.id, expected=last, fence=fence, rollup=True, ttl_s=KEEP_S)

    async def _letters(self, agent: str, ledger: Ledger, upto: int) -> tuple[list[_Letter], list[Mail]]:
        """The oldest mail beyond the ledger's positions, up to `upto`, in stream order; and what waits behind it, if the ledger
        has taken mail ahead of other mail. From the leader: what a listing of a replica lacks would be passed over, and purged.
        """
        found: list[_Letter] = []
        behind: list[Mail] = []
        after = min(ledger.positions.get(lane, 0) for lane in MAIL_LANES)
        filter_ = self._subjects.mail_filter(agent)
        async for message in read_by_leader(self._t, self._subjects.stream("mail"), filter_, from_seq=after + 1):
            parsed = self._subjects.parse_lane(message.subject)
            full = message.seq > upto or len(found) == BATCH
            if full and not ledger.taken:
                break
            if parsed is None or parsed[1] != agent or is_taken(ledger, parsed[0], message.seq):
                continue
            lane = LANES[parsed[0]]
            mail = decode_mail(lane, message.seq, message.data, message.headers, root=self._subjects.root)
            if full:
                behind.append(mail)
            else:
                found.append(_Letter(mail, message.headers.get(wire.MSG_ID), message.time))
        return found, behind

    async def _purge(self, agent: str, ledger: Ledger) -> None:
        for lane in MAIL_LANES:
            position = ledger.positions.get(lane, 0)
            await purge(self._t, self._subjects.stream("mail"), self._subjects.lane(lane, agent), below=position + 1)

    # --- effects ------------------------------------------------------------------------------------------------------
    async def _perform(self, agent: str, ledger: Ledger) -> None:
        for origin, entry in ledger.effects.items():
            await self._perform_one(agent, ledger, origin, entry)

    async def _perform_one(self, agent: str, ledger: Ledger, origin: str, entry: Open) -> None:
        effect: Effect = entry.effect
        match effect:
            case Bury():
                await bury(self._t, self._subjects, agent, effect, origin=origin, nonce=entry.nonce)
            case Resolve():
                await send_outcome(self._t, effect)
                await store_outcome(self._t, self._subjects, effect.outcome, effect.key)
            case SendMail() if effect.outcome is not None:
                spec = await self._spec(effect.to)
                if spec is None and not await has_ended(self._registry, self._journal, effect.to, effect.life):
                    raise Unavailable(f"the registry does not know agent {effect.to}, whose journal says that it lives")
                sender = agent, ledger.incarnation
                await send_answer(self._t, self._subjects, effect, spec, sender=sender, origin=origin, nonce=entry.nonce)
            case _:
                raise AssertionError(f"no sweep calls for {type(effect).__name__}")


def _is_over(ledger: Ledger) -> bool:
    """Whether the life has ended, and nothing is open but what sweeps call for."""
    return ledger.phase == "over" and all(isinstance(one.effect, Bury | Resolve | SendMail) for one in ledger.effects.values())
