"""Whether the store still has what was committed (docs/architecture.md#is-the-newest-record-mine).

An append finds a loss by itself. But an agent that has nothing to write would go on as if nothing had happened; and a restored
stream gives sequences again, so that new mail looks like old mail. So the journals of loaded agents are compared with what their
owners know, and the ends of the mail and timer streams with what was consumed: at once after a reconnect, and in each pass of the
audit. The ends are also compared before an agent is activated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal_reader import JournalReader, is_foreign
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import StoredMessage, get_last, get_last_many
from agentmesh.edge.registry import Registry
from agentmesh.edge.results import OlderMail, describe, is_replaced, older_mail
from agentmesh.edge.transport import Message, Transport
from agentmesh.errors import Fenced, StoreLost
from agentmesh.ledger import fold
from agentmesh.outcomes import AnsweredMessage
from agentmesh.subjects import LANES, Subjects, spec_key

log = logging.getLogger("agentmesh.node")

GROUP = 500
PROOF_S = 1.0
"""A loss must be seen twice, this far apart, before it is believed."""


class Acknowledged(NamedTuple):
    """What the store has acknowledged to a loaded agent's owner."""

    record: int
    """Sequence of its newest record."""
    positions: dict[str, int]
    """Per lane, the sequence up to which it has consumed."""
    answered: AnsweredMessage | None = None
    """The newest message of the mail that it is known to have answered."""


async def lost_journals(
    t: Transport,
    subjects: Subjects,
    committed: Mapping[str, int],
    *,
    journals: JournalReader | None = None,
    on_newer: Callable[[str, int], None] = lambda name, seq: None,
) -> set[str]:
    """The agents in `committed` (each with the sequence of a record that was acknowledged) whose journals end before that, or
    were rolled up by a message that is not the mesh's. `journals` reports such messages.

    `on_newer(name, seq)` is called for an agent whose journal goes on behind its record, with the mesh's own, up to `seq`.

    Raises:
        Unavailable: it cannot be told now.
    """
    names = list(committed)
    stream = subjects.stream("journal")
    suspects: set[str] = set()
    doubtful: dict[str, int] = {}
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        found, _ = await get_last_many(t, stream, [subjects.journal(name) for name in group])
        for name in group:
            message = found.get(subjects.journal(name))
            if _seq(message) < committed[name]:
                suspects.add(name)  # a replica may lag behind, so this is only a suspicion
            elif message is not None and message.seq > committed[name]:
                if is_foreign(message):
                    doubtful[name] = message.seq
                else:
                    on_newer(name, message.seq)
    known = {name: (committed[name], doubtful[name]) for name in sorted(doubtful)}
    lost = await _rolled_up(journals or JournalReader(t, subjects), known, on_newer)
    for _ in range(2):
        if not suspects:
            break
        await asyncio.sleep(PROOF_S)
        newest = {name: _seq(await get_last(t, stream, subjects.journal(name))) for name in sorted(suspects)}
        suspects = {name for name, seq in newest.items() if seq < committed[name]}
    return suspects | lost


async def has_ended(registry: Registry, journals: JournalReader, agent: str, life: str | None) -> bool:
    """Whether a life (None: the newest) of an agent without a spec has ended. That its spec is gone proves nothing where nobody
    has deleted it: somebody may have emptied the registry, which is put back.

    Raises:
        StoreLost, UnreadableRecord, Unavailable: as `JournalReader.read`.
    """
    trace = await registry.get_trace(spec_key(agent))
    if trace is not None:
        return trace.value is None  # else it is back
    ledger, _ = fold((await journals.read(agent)).records)
    return ledger is None or ledger.phase == "over" or life not in (None, ledger.incarnation)


async def _rolled_up(
    journals: JournalReader, known: Mapping[str, tuple[int, int]], on_newer: Callable[[str, int], None]
) -> set[str]:
    """Those of `known` (each with its record, and the foreign message that its journal ends with) whose record is gone."""
    lost: set[str] = set()
    for name, (seq, end) in known.items():
        try:
            await journals.check(name, seq)
        except StoreLost:
            lost.add(name)
        except Fenced:
            on_newer(name, end)
    return lost


def _seq(message: StoredMessage | None) -> int:
    return 0 if message is None else message.seq


class StreamEnds:
    """The last sequences of the mail and timer streams. A journal cannot have consumed more, unless the store has lost data."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._t = transport
        self._subjects = subjects
        self._known: dict[str, int] = {}
        """Per stream, a sequence that it has given. Streams only grow, unless a server comes back with an older store."""
        self._compared: set[str] = set()
        """Agents of which a message that they have answered was looked at since the last gap: what they have consumed since is of
        the same stream."""
        self._looking = asyncio.Lock()
        self._forget_gaps = transport.on_gap(self._doubt)

    def close(self) -> None:
        """No longer listen for gaps."""
        self._forget_gaps()

    def heard(self, lane: str, message: Message) -> None:
        """Note the sequence of mail that has just been stored: most agents are activated by new mail, and then need not ask."""
        if lane in LANES:
            with contextlib.suppress(KeyError, ValueError):
                self._note(LANES[lane].stream, int(message.headers["Nats-Sequence"]))

    def _doubt(self) -> None:
        self._known.clear()
        self._compared.clear()

    async def lost_mail(self, known: Mapping[str, Acknowledged]) -> set[str]:
        """The agents in `known` of which the mail or timer streams have lost something that they had consumed.

        Raises:
            ApiError, Unavailable: the store cannot be read now.
        """
        lost = await self.beyond({name: one.positions for name, one in known.items()})
        others = {name: one.answered for name, one in known.items() if one.answered is not None and name not in lost}
        return lost | await self._given_again(others)

    async def _given_again(self, answered: Mapping[str, AnsweredMessage]) -> set[str]:
        """The agents in `answered` whose newest answered message has another one in its place: the stream was put back, and has
        grown again since. (A message that was purged since says nothing.)"""
        lost: set[str] = set()
        for name, message in answered.items():
            if name in self._compared:
                continue
            if await is_replaced(self._t, self._subjects, message):
                lost.add(name)
            else:
                self._compared.add(name)
        return lost

    async def beyond(self, positions: Mapping[str, Mapping[str, int]]) -> set[str]:
        """The agents in `positions` (each with its positions by lane) that have consumed more than the streams have ever given.

        Raises:
            ApiError, Unavailable: the store cannot be read now.
        """
        suspects = set(positions)
        for look in range(3):
            if look:
                # A server that has just become the leader may lag behind itself.
                await asyncio.sleep(PROOF_S)
            suspects = {name for name in sorted(suspects) if not await self._has_given(positions[name])}
            if not suspects:
                break
        return suspects

    async def _has_given(self, positions: Mapping[str, int]) -> bool:
        for lane, seq in positions.items():
            stream = LANES[lane].stream
            if seq > self._known.get(stream, 0):
                await self._read_end(stream, seq)
            if seq > self._known.get(stream, 0):
                return False
        return True

    async def _read_end(self, stream: Literal["mail", "timer"], seq: int) -> None:
        async with self._looking:  # of many agents that are activated at once, only one asks
            if seq > self._known.get(stream, 0):
                state = await stream_state(self._t, self._subjects.stream(stream))
                self._note(stream, state.last_seq)

    def _note(self, stream: str, seq: int) -> None:
        self._known[stream] = max(seq, self._known.get(stream, 0))


async def report_older_mail(t: Transport, subjects: Subjects) -> None:
    """Log it if the mail was put back to an older state than the results: new requests get the refs of old ones then."""
    older: OlderMail | None = None
    for look in range(2):
        if look:
            await asyncio.sleep(PROOF_S)  # a server that has just become the leader may lag behind itself
        try:
            older = await older_mail(t, subjects)
        except EDGE_ERRORS as error:
            log.debug("mail and results cannot be compared now: %s", error)
            return
        if older is None:
            return
    assert older is not None
    log.critical("%s", describe(older), extra={"answered": older.answered, "end": older.end})
