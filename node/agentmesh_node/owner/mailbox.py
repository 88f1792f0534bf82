"""An agent's mail lanes, as its owner follows them.

Stored mail is republished to the owner's one plain subscription, with its sequence and the previous one of its subject. While
the sequences follow one another, mail costs no read at all. If they do not (a gap: slow consumer, reconnect, the beginning), the
lanes are read until nothing is missing; only then are copies trusted again (docs/architecture.md#mail-and-lanes).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.manage import count_up_to_now
from agentmesh.edge.read import StoredMessage, get_next, read_by_leader, read_counted
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.tasks import Background
from agentmesh.edge.transport import Message, Transport
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import Mail, decode_mail, withdrawal_in

log = logging.getLogger("agentmesh.node")

PAGE = 256
RETRY = ExponentialBackoff(0.05, 1.0)


class Mailbox:
    """Follows the lanes of one agent. `deliver` gets mail in the order of its lane, each message once."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        agent: str,
        positions: Mapping[str, int],
        deliver: Callable[[tuple[Mail, ...]], None],
        *,
        stored: Callable[[str, list[StoredMessage]], None],
    ) -> None:
        """`stored` hears what a lane holds of mail that has been seen before: at the beginning and with each survey, before what
        is new is delivered."""
        self._t = transport
        self._subjects = subjects
        self._agent = agent
        self._deliver = deliver
        self._seen = {lane: positions.get(lane, 0) for lane in LANES}
        self._stored = stored
        self._survey = True
        """The next read is of all that is stored, also of what was consumed: it may have ids that come again, or be back."""
        self._behind = True
        self._noticed = {"mail": 0, "timer": 0}
        """Highest sequences of copies that came while copies were not trusted."""
        self._reader = Background(f"mailbox {agent}")

    # --- copies -----------------------------------------------------------------------------------------------------
    def on_copy(self, lane_name: str, message: Message) -> None:
        """Handle a republished copy of stored mail."""
        headers = message.headers
        lane = LANES[lane_name]
        try:
            seq, previous = int(headers["Nats-Sequence"]), int(headers.get("Nats-Last-Sequence", 0))
        except (KeyError, ValueError):
            return  # not from the server
        if self._behind:
            self._noticed[lane.stream] = max(self._noticed[lane.stream], seq)
            return
        seen = self._seen[lane_name]
        if seq <= seen:
            return
        if previous > seen:
            self._noticed[lane.stream] = max(self._noticed[lane.stream], seq)
            self.catch_up()
            return
        mail = decode_mail(lane, seq, message.data, headers, root=self._subjects.root)
        if lane.kind == "answer" and withdrawal_in(mail) is not None:
            # Its request lies ahead of it in another lane, whose copy may be lost: all lanes are read up to here.
            self._noticed[lane.stream] = max(self._noticed[lane.stream], seq)
            self.catch_up()
            return
        self._seen[lane_name] = seq
        self._deliver((mail,))

    def knows(self, lane: str, seq: int) -> bool:
        """Whether the message is delivered, or is being read."""
        return self._behind or seq <= self._seen.get(lane, 0)

    # --- reading --------------------------------------------------------------------------------------------------
    def catch_up(self) -> None:
        """Read what may be missing, in the background."""
        self._behind = True
        if not self._reader.running:
            self._reader.begin(self._read_all())

    def survey(self) -> None:
        """Read all that the lanes hold, in the background: what was purged may be stored again."""
        self._survey = True
        self.catch_up()

    async def caught_up(self, *, proven: bool = False) -> None:
        """Return when everything stored before this call is delivered. With `proven` the leader confirms that for each lane:
        copies may be lost and replicas lag. A sweep needs that (docs/architecture.md#the-end-of-a-life)."""
        for pause in RETRY:
            self.catch_up()
            await self._reader.wait()
            try:
                if not proven or await self._nothing_beyond():
                    return
            except EDGE_ERRORS as error:
                log.debug("mail cannot be read now: %s", error, extra={"agent": self._agent})
            await asyncio.sleep(pause)

    async def _nothing_beyond(self) -> bool:
        for name, seen in self._seen.items():
            stream = self._subjects.stream(LANES[name].stream)
            if await get_next(self._t, stream, self._subjects.lane(name, self._agent), seen + 1) is not None:
                return False
        return True

    async def close(self) -> None:
        self._behind = True
        await self._reader.close()

    async def _read_all(self) -> None:
        pauses = iter(RETRY)
        while True:
            survey, self._survey = self._survey, False
            try:
                for stream in ("mail", "timer"):
                    await (self._read_whole(stream) if survey else self._read_new(stream))
            except EDGE_ERRORS as error:
                log.debug("mail cannot be read now: %s", error, extra={"agent": self._agent})
                self._survey = self._survey or survey
                await asyncio.sleep(next(pauses))
                continue
            if self._survey:
                continue
            if self._complete():
                # No await between this check and trusting copies again: no copy can be missed in between.
                self._behind = False
                return
            await asyncio.sleep(RETRY.first_s)  # a server that has just become the leader lags behind what a copy has shown

    def _complete(self) -> bool:
        high = {"mail": 0, "timer": 0}
        for name, seq in self._seen.items():
            stream = LANES[name].stream
            high[stream] = max(high[stream], seq)
        return all(high[stream] >= noticed for stream, noticed in self._noticed.items())

    async def _read_whole(self, stream: str) -> None:
        """Read all that the lanes of `stream` hold, also what was consumed: a listing, of which the leader says how many there
        must be; or one by one from the leader."""
        name = self._subjects.stream("mail" if stream == "mail" else "timer")
        subject = self._subjects.mail_filter(self._agent) if stream == "mail" else self._subjects.due(self._agent)
        wanted, end = await count_up_to_now(self._t, name, subject)
        found = await read_counted(self._t, name, subject, wanted, end)
        for lane in LANES.values():
            if lane.stream == stream:
                self._stored(lane.name, self._seen_in(lane.name, found))
        self._deliver_read(found)

    def _seen_in(self, lane: str, found: list[StoredMessage]) -> list[StoredMessage]:
        subject, seen = self._subjects.lane(lane, self._agent), self._seen[lane]
        return [message for message in found if message.subject == subject and message.seq <= seen]

    async def _read_new(self, stream: str) -> None:
        """Read what the lanes of `stream` hold behind what has been seen, one by one from the leader: a listing of a replica may
        lack a message, and what follows it would pass over it for ever."""
        name = self._subjects.stream("mail" if stream == "mail" else "timer")
        found: list[StoredMessage] = []
        # The lane of answers first: a withdrawal that is read has its request in a lane that is read after it.
        for lane, seen in reversed(self._seen.items()):
            if LANES[lane].stream == stream:
                subject = self._subjects.lane(lane, self._agent)
                found += [message async for message in read_by_leader(self._t, name, subject, from_seq=seen + 1)]
        self._deliver_read(sorted(found, key=_seq))

    def _deliver_read(self, messages: list[StoredMessage]) -> None:
        mail: list[Mail] = []
        for message in messages:
            parsed = self._subjects.parse_lane(message.subject)
            if parsed is None or parsed[1] != self._agent:
                continue
            lane = LANES[parsed[0]]
            if message.seq <= self._seen[lane.name]:
                continue
            self._seen[lane.name] = message.seq
            mail.append(
                decode_mail(lane, message.seq, message.data, message.headers, root=self._subjects.root, stored_at=message.time)
            )
        for start in range(0, len(mail), PAGE):
            self._deliver(tuple(mail[start : start + PAGE]))


def _seq(message: StoredMessage) -> int:
    return message.seq
