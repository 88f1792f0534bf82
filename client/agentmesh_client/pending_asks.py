"""Asks whose outcomes are waited for.

One wildcard inbox subscription serves every ask of a client: `<inbox>.<n>` is the reply subject of the n-th ask, and the live
events of its turn, if it wants them, go to `<inbox>.<n>-live`; on one subscription they arrive in the order in which they were
sent. An owner answers with a core message, and such a message can be lost (this client was disconnected, or too slow). The
outcome itself is stored, so pending asks also look it up: at once after a gap, and otherwise from time to time, all of them in
one read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.publish import Stored
from agentmesh.edge.read import StoredMessage
from agentmesh.edge.results import StoredOutcome, is_answer, outcome_in
from agentmesh.edge.tasks import Background
from agentmesh.edge.transport import Message, Subscription, Transport
from agentmesh.errors import MeshError, NotPermitted, Unavailable
from agentmesh.outcomes import Asked, answers, id_in_outcome
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, decode_outcome
from agentmesh_client.by_request import poll_by_request

LOOK_S = 2.0
"""Time between two rounds of look-ups."""
POLLS_AT_ONCE = 32
"""Requests that are polled at the same time."""
LONGEST_INTERVAL = 5
"""Most rounds between two look-ups of one ask: the interval begins at one and doubles, since turns last seconds to minutes."""
_LIVE = "-live"
log = logging.getLogger("agentmesh.client")


class PendingAsk:
    """One ask whose outcome is waited for. `outcome` resolves to it, or to None when the wait is over without one."""

    __slots__ = (
        "agent",
        "by_request",
        "followed",
        "interval",
        "key",
        "life",
        "message_id",
        "on_live_event",
        "outcome",
        "published",
        "ref",
        "repeats",
        "reply_to",
        "round",
        "secret",
    )

    def __init__(self, agent: str, key: str, reply_to: str, outcome: asyncio.Future[Outcome | None], first_round: int) -> None:
        self.agent = agent
        self.key = key
        self.reply_to = reply_to
        self.outcome = outcome
        self.ref: str | None = None
        self.message_id: str | None = None
        """The prompt's `Nats-Msg-Id`: an outcome that names another one is not this ask's."""
        self.by_request = False
        """Its outcome is asked of the gateway, where it does not come by itself."""
        self.repeats = False
        """It repeats an id, so its outcome goes to the first one's address alone."""
        self.secret: str | None = None
        """The request's `Mesh-Key`."""
        self.life = ""
        """The incarnation that is asked."""
        self.round = first_round
        self.interval = 1
        self.followed: Subscription | None = None
        self.published: Stored | Exception | None = None
        """Set when the wait was interrupted: the acknowledgement of the prompt, or why it was not stored."""
        self.on_live_event: Callable[[bytes], None] | None = None
        """Takes the turn's live events, which are sent to `stream_to`."""

    @property
    def stream_to(self) -> str:
        """The subject for the turn's live events."""
        return self.reply_to + _LIVE

    def answer(self, outcome: Outcome) -> None:
        """Take the outcome; copies of it that come later are ignored, and so is the outcome of another message."""
        if outcome.msg_id is not None and id_in_outcome(outcome.msg_id) != self.message_id:
            log.warning("an outcome of another message is stored as %s of agent %s: mail was put back", outcome.ref, self.agent)
        elif not self.outcome.done():
            self.outcome.set_result(outcome)

    def interrupt(self, published: Stored | Exception) -> None:
        """Wake the waiting task, which has something to do before it waits on. Does nothing if the outcome is here: that proves
        that the prompt was stored."""
        waiting = self.outcome
        if not waiting.done():
            self.published, self.outcome = published, waiting.get_loop().create_future()
            waiting.set_result(None)

    def give_up(self) -> None:
        """End the wait without an outcome: its time is over, or the client closes."""
        if not self.outcome.done():
            self.outcome.set_result(None)


class PendingAsks:
    """All pending asks of one client."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        inbox: str,
        *,
        reads: LastReads | None = None,
        may_hear: Callable[[str], bool] = lambda subject: True,
    ) -> None:
        self._may_hear = may_hear
        self._reads = reads or LastReads(transport)
        self._transport = transport
        self._subjects = subjects
        self._prefix = inbox + "."
        self._inboxes = inbox.rpartition(".")[0] + "."
        self._waiting: dict[str, PendingAsk] = {}
        self._count = 0
        self._round = 0
        self._hurry = asyncio.Event()
        self._all_due = False
        self._subscription: Subscription | None = None
        self._looker = Background("agentmesh-client-results")
        self._forget_refusals: Callable[[], None] = lambda: None
        self.closed = False
        self.refused: NotPermitted | None = None
        """Set while no answer can be heard, and no wait would change that."""

    async def start(self) -> None:
        """Listen for replies."""
        self._loop = asyncio.get_running_loop()
        self._forget_refusals = self._transport.on_refused(self._on_refused, tells=False)
        self._subscription = await self._transport.subscribe(self._prefix + "*", self._on_reply)
        self._looker.begin(self._look_for_ever())

    async def close(self) -> None:
        """End every wait, and stop listening."""
        self.closed = True
        forget, self._forget_refusals = self._forget_refusals, lambda: None
        forget()
        for ask in self._waiting.values():
            ask.give_up()
        await self._looker.close()
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def open(self, agent: str) -> PendingAsk:
        """A wait for the outcome of a prompt that is about to be published with `reply_to`."""
        self._count += 1
        key = str(self._count)
        ask = PendingAsk(agent, key, self._prefix + key, self._loop.create_future(), self._round + 2)
        self._waiting[key] = ask
        return ask

    async def end(self, ask: PendingAsk) -> None:
        """Forget `ask`: nobody waits for it any more."""
        self._waiting.pop(ask.key, None)
        if ask.followed is not None:
            await ask.followed.unsubscribe()

    async def follow(self, ask: PendingAsk) -> None:
        """Watch the stored result too: the answer to a prompt that repeats a key goes to the first prompt's reply subject."""
        subject = self._subjects.done(ask.agent, ask.ref or "")
        if self._may_hear(subject):
            ask.followed = await self._transport.subscribe(subject, lambda message: self._on_copy(ask, message))
        ask.round, ask.repeats = 0, True
        self.look_now()

    def _on_refused(self, error: NotPermitted) -> None:
        """The server refuses the credentials, or this client's inbox: end every wait."""
        if str(error.details.get("subject", self._inboxes)).startswith(self._inboxes):
            self.refused = error
            for ask in self._waiting.values():
                ask.give_up()

    def reconnected(self) -> None:
        """There is a connection again, and it is not known to be refused anything."""
        self.refused = None
        self.look_now(at_all=True)

    def waiting(self, agent: str, life: str) -> bool:
        """Whether an ask whose prompt was stored for that life is pending."""
        return any(
            ask.agent == agent and ask.life == life and ask.ref is not None and not ask.outcome.done()
            for ask in self._waiting.values()
        )

    def look_now(self, *, at_all: bool = False) -> None:
        """Look up results without delay: those that are due, or `at_all`."""
        self._all_due |= at_all
        self._hurry.set()

    def _on_reply(self, message: Message) -> None:
        key = message.subject[len(self._prefix) :]
        ask = self._waiting.get(key)
        if ask is None:
            ask = self._waiting.get(key.removesuffix(_LIVE))
            if ask is not None and ask.on_live_event is not None:
                ask.on_live_event(message.data)
            return  # a copy of a known outcome, or the outcome of an ask that has ended
        try:
            ask.answer(decode_outcome(message.data))
        except msgspec.DecodeError:
            log.warning("a reply for agent %s is no outcome; its stored result is looked up instead", ask.agent)
            ask.round = 0
            self.look_now()

    def _on_copy(self, ask: PendingAsk, message: Message) -> None:
        try:
            ask.answer(decode_outcome(message.data))
        except msgspec.DecodeError:
            log.warning("what was stored as %s of agent %s is no outcome", ask.ref, ask.agent)

    async def _look_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._hurry.wait()
            except TimeoutError:
                self._round += 1
            self._hurry.clear()
            every, self._all_due = self._all_due, False
            due = [ask for ask in self._waiting.values() if ask.ref and (every or ask.round <= self._round)]
            polled = [ask for ask in due if ask.by_request]
            found = await self._poll_all(polled)
            found &= await self._look_up([ask for ask in due if not ask.by_request])
            if not found:
                self._all_due |= every  # the gap is still open: the next round asks for all again

    async def _poll_all(self, asks: Sequence[PendingAsk]) -> bool:
        """Ask the gateway for the outcomes of these asks. Returns whether it has answered for all of them."""
        answered = True
        for start in range(0, len(asks), POLLS_AT_ONCE):
            answered &= all(await asyncio.gather(*(self._poll(ask) for ask in asks[start : start + POLLS_AT_ONCE])))
        return answered

    async def _poll(self, ask: PendingAsk) -> bool:
        ask.round = self._round + ask.interval
        if not ask.repeats:
            ask.interval = min(ask.interval * 2, LONGEST_INTERVAL)
        try:
            found = await poll_by_request(self._transport, self._subjects, ask.agent, ask.ref or "", key=ask.secret)
        except MeshError as error:
            log.debug("a request cannot be polled now: %s", error)
            return not isinstance(error, Unavailable)
        if found.outcome is not None:
            ask.answer(found.outcome)
        return True

    async def _look_up(self, asks: Sequence[PendingAsk]) -> bool:
        if not asks:
            return True
        by_subject: dict[str, list[PendingAsk]] = {}  # two asks may share a ref, by one idempotency key
        for ask in asks:
            ask.round = self._round + ask.interval
            ask.interval = min(ask.interval * 2, LONGEST_INTERVAL)
            by_subject.setdefault(self._subjects.result(ask.agent, ask.ref or ""), []).append(ask)
        try:
            found = await self._reads.newest_of(self._subjects.stream("result"), list(by_subject))
            for subject, newest in found.items():
                stored = await self._outcome_in(newest)
                if stored is None:
                    continue
                for ask in by_subject.get(subject, ()):
                    if await self._is_answer(stored, ask.message_id):
                        ask.answer(stored.outcome)
        except MeshError as error:
            log.debug("stored results cannot be looked up now: %s", error)
            return False
        return True

    async def _outcome_in(self, newest: StoredMessage) -> StoredOutcome | None:
        try:
            return await outcome_in(self._transport, self._subjects, newest)
        except NotPermitted:  # a stranger's message lies on it, and this user cannot look behind that
            return None

    async def _is_answer(self, stored: StoredOutcome, message_id: str | None) -> bool:
        try:
            return await is_answer(self._transport, self._subjects, stored, message_id)
        except NotPermitted:  # this user cannot read the mail, and goes by what the outcome says
            return answers(stored.outcome, Asked(message_id), stored.time)
