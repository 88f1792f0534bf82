"""An agent's mail lanes, as its owner follows them.

Stored mail is republished to the owner's one plain subscription, with its sequence and the previous one of its subject. While
the sequences follow one another, mail costs no read at all. If they do not (a gap: slow consumer, reconnect, the beginning), the
lanes are read by direct get until nothing is missing; only then are copies trusted again (docs/architecture.md#mail-and-lanes).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.read import StoredMessage, get_last, get_next, read
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.tasks import Background
from agentmesh.edge.transport import Message, Transport
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import Mail, decode_mail

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
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._agent = agent
        self._deliver = deliver
        self._seen = {lane: positions.get(lane, 0) for lane in LANES}
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
        self._seen[lane_name] = seq
        self._deliver((decode_mail(lane, seq, message.data, headers, root=self._subjects.root),))

    def knows(self, lane: str, seq: int) -> bool:
        """Whether the message is delivered, or is being read."""
        return self._behind or seq <= self._seen.get(lane, 0)

    # --- reading --------------------------------------------------------------------------------------------------
    def catch_up(self) -> None:
        """Read what may be missing, in the background."""
        self._behind = True
        if not self._reader.running:
            self._reader.begin(self._read_all())

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
            try:
                await self._notice_last()
                await self._read_stream("mail")
                await self._read_stream("timer")
            except EDGE_ERRORS as error:
                log.debug("mail cannot be read now: %s", error, extra={"agent": self._agent})
                await asyncio.sleep(next(pauses))
                continue
            if self._complete():
                # No await between this check and trusting copies again: no copy can be missed in between.
                self._behind = False
                return
            await asyncio.sleep(RETRY.first_s)  # a replica does not have yet what a copy has shown

    async def _notice_last(self) -> None:
        """Note the newest sequences of the leader: the replica that is read may lag behind."""
        for stream, subject in (("mail", self._subjects.mail_filter(self._agent)), ("timer", self._subjects.due(self._agent))):
            name = self._subjects.stream("mail" if stream == "mail" else "timer")
            last = await get_last(self._t, name, subject)
            if last is not None:
                self._noticed[stream] = max(self._noticed[stream], last.seq)

    def _complete(self) -> bool:
        high = {"mail": 0, "timer": 0}
        for name, seq in self._seen.items():
            stream = LANES[name].stream
            high[stream] = max(high[stream], seq)
        return all(high[stream] >= noticed for stream, noticed in self._noticed.items())

    async def _read_stream(self, stream: str) -> None:
        lanes = [name for name, lane in LANES.items() if lane.stream == stream]
        subject = self._subjects.mail_filter(self._agent) if stream == "mail" else self._subjects.due(self._agent)
        name = self._subjects.stream("mail" if stream == "mail" else "timer")
        start = min(self._seen[lane] for lane in lanes) + 1
        while True:
            page = await read(self._t, name, subject, from_seq=start, batch=PAGE)
            self._deliver_read(page.messages)
            if not page.messages or page.pending == 0:
                return
            start = page.messages[-1].seq + 1

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
        if mail:
            self._deliver(tuple(mail))
