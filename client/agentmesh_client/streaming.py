"""A prompt whose turn can be watched: text as it comes, tools as they are called, and the outcome at the end (case 243).

    async with mesh.stream("coder", "rename the module") as turn:
        async for event in turn:
            match event:
                case Text(text=text):
                    print(text, end="")
                case Restarted():
                    print(" [void: the turn begins again] ")
                case Ended(outcome=outcome):
                    print(outcome.ok)

Live events are not reliable: they are core messages, which can be lost, and a turn whose owner dies begins again. So every event
has a number `n`; `Restarted` says from which number on the events before it are void; `Missed` says that some are lost; and the
last event, `Ended`, bears the outcome, which is stored and arrives whatever else was lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from agentmesh.wire import Outcome
from agentmesh_client.pending_asks import PendingAsk
from agentmesh_client.results import Response

BUFFER = 10_000
"""Most events that wait for a slow reader; beyond that the oldest are dropped, and show as `Missed`."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A model is asked again."""

    reason: str
    """Why: the reason that the turn's error would have."""
    attempt: int | None = None
    """The number of the try that comes, from 2; None where the backend does not know it."""
    after_s: float | None = None
    """Seconds until then."""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all live events."""

    n: int
    """Counts the events of this stream, from 1, without gaps."""


class Started(Live, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """A node runs the turn."""

    owner: int
    """Generation of the agent's owner; grows with each takeover."""


class Restarted(Live, frozen=True, kw_only=True, tag_field="type", tag="restart"):
    """The turn runs again: another node took the agent over, or its first run failed; or an answer of its model broke off and is
    asked for again. Events from `void_from` on are void."""

    owner: int
    void_from: int
    """Events with this number or a greater one, up to this event, are void; its own number if nothing is."""
    retry: Retry | None = None
    """Why the model is asked again, if that is what happens."""


class Missed(Live, frozen=True, kw_only=True, tag_field="type", tag="missed"):
    """Some events were lost, or dropped because the reader was slow. The outcome is complete all the same."""

    count: int


class Text(Live, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of the answer."""

    text: str
    retry: Retry | None = None
    """The model is asked again, for an answer of which nothing has come; `text` is empty then."""


class Thinking(Live, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """A piece of the model's thinking, if its backend shows that."""

    text: str


class ToolUse(Live, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A tool is called."""

    id: str
    name: str
    input: Any = None


class ToolResult(Live, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """A tool has ended; `id` is that of its `ToolUse`."""

    id: str
    ok: bool = True
    text: str = ""


class Usage(Live, frozen=True, kw_only=True, tag_field="type", tag="usage"):
    """What the turn has used so far, as its backend counts."""

    usage: dict[str, Any]


class Ended(Live, frozen=True, kw_only=True, tag_field="type", tag="outcome"):
    """The end. `outcome.ok` tells an answer from an error."""

    outcome: Outcome


type LiveEvent = Started | Restarted | Missed | Text | Thinking | ToolUse | ToolResult | Usage | Ended


class _EventHead(msgspec.Struct, frozen=True):
    """The fields that every message of a stream has."""

    type: str
    seq: int
    owner: int = 0
    run: str = ""
    step: int = 0
    """How many steps of the turn were durable when this was sent: a takeover keeps them, and the events up to them."""


_head = msgspec.json.Decoder(_EventHead)
_any = msgspec.json.Decoder(dict[str, Any])
_CONTENT: dict[str, type[Text | Thinking | ToolUse | ToolResult]] = {
    "text": Text,
    "thinking": Thinking,
    "tool_use": ToolUse,
    "tool_result": ToolResult,
}


class EventReader:
    """Turns the messages of one stream into events, in order. No I/O."""

    def __init__(self) -> None:
        self.text = ""
        """The text so far, without void parts."""
        self._n = 0
        self._run: str | None = None
        self._owner = 0
        self._seq = 0
        self._over: set[str] = set()
        self._marks: list[tuple[int, int, int]] = []
        """Per step: how many steps were durable, the number of the first event behind them, and the length of the text."""
        self._answer = (1, 0)
        """Where the model's current answer begins: the number of its first event, and the length of the text before it."""

    def read(self, body: bytes) -> list[LiveEvent]:
        """The events in a message. The outcome is not among them: it arrives separately (`ended`). Its message tells by its
        number what is missing in the end, and whether this run of the turn had events at all."""
        try:
            head = _head.decode(body)
        except msgspec.DecodeError:
            return []  # anybody may publish to an inbox of a known name
        run = head.run or str(head.owner)
        if run in self._over or head.owner < self._owner:
            return []  # from a former owner that does not know yet that it is fenced
        if head.type == "outcome" and run != self._run and head.seq == 1:
            return []  # its owner has not run the turn
        events = self._turn_to(run, head) if run != self._run else []
        if head.seq <= self._seq:
            return events
        missed, self._seq = head.seq - self._seq - 1, head.seq
        if missed:
            events.append(Missed(n=self._next(), count=missed))
        if head.type == "outcome":
            return events
        if head.type == "handover":  # all that was sent holds: the next node goes on behind it
            self._marks = [mark for mark in self._marks if mark[0] < head.step]
            self._marks.append((head.step, self._n + 1, len(self.text)))
            return events
        if self._marks[-1][0] != head.step and head.type != "tool_result":  # a result is shown once it is durable
            self._marks.append((head.step, self._n + 1, len(self.text)))
        content = self._content(head.type, body)
        if content is not None:
            events.append(content)
        if not isinstance(content, Text | Thinking):
            self._answer = (self._n + 1, len(self.text))
        return events

    def ended(self, outcome: Outcome) -> Ended:
        """The last event."""
        return Ended(n=self._next(), outcome=outcome)

    def _next(self) -> int:
        self._n += 1
        return self._n

    def _turn_to(self, run: str, head: _EventHead) -> list[LiveEvent]:
        """Begin with the events of a new run of the turn, perhaps the first."""
        self._owner, self._seq = head.owner, 0
        dead, self._run = self._run, run
        if dead is None:
            self._marks = [(head.step, self._n + 2, 0)]
            return [Started(n=self._next(), owner=head.owner)]
        self._over.add(dead)
        nothing = (head.step, self._n + 1, len(self.text))
        _, void_from, length = next((mark for mark in self._marks if mark[0] >= head.step), nothing)
        self.text = self.text[:length]
        self._marks = [mark for mark in self._marks if mark[0] < head.step]
        self._marks.append((head.step, self._n + 2, length))
        return [Restarted(n=self._next(), owner=head.owner, void_from=void_from)]

    def _content(self, kind: str, body: bytes) -> LiveEvent | None:
        fields = _any.decode(body)
        if kind == "usage":
            usage = {key: value for key, value in fields.items() if key not in _HEAD}
            return Usage(n=self._next(), usage=usage)
        if kind == "text" and fields.get("restart"):
            return self._begin_anew(fields.get("retry"))
        made = _CONTENT.get(kind)
        if made is None:
            return None  # `start`, or something newer than this client
        try:
            event: LiveEvent = msgspec.convert({**fields, "n": self._n + 1}, made, strict=False)
        except msgspec.ValidationError:
            return None
        self._n += 1
        if isinstance(event, Text):
            self.text += event.text
        return event

    def _begin_anew(self, told: Any) -> Restarted:
        """The model's answer broke off and is asked for again: its events are void, those before it are not."""
        void_from, length = self._answer
        self.text = self.text[:length]
        try:
            retry = None if told is None else msgspec.convert(told, Retry, strict=False)
        except msgspec.ValidationError:
            retry = None
        return Restarted(n=self._next(), owner=self._owner, void_from=void_from, retry=retry)


_HEAD = frozenset({"v", "agent", "ref", "type", *_EventHead.__struct_fields__})


class LiveTurn:
    """A prompt that was accepted, and the events of its turn. Made by `Mesh.stream`; iterate over it once."""

    def __init__(self, ask: PendingAsk, result: Callable[[PendingAsk], Outcome]) -> None:
        """`result` is called when the wait for `ask` is over, and raises if that brought no outcome."""
        self._ask = ask
        self._result = result
        self._reader = EventReader()
        self._bodies: deque[bytes] = deque(maxlen=BUFFER)
        self._events: deque[LiveEvent] = deque()
        self._news = asyncio.Event()
        self._outcome: Outcome | None = None
        ask.on_live_event = self._take
        ask.outcome.add_done_callback(lambda _: self._news.set())

    @property
    def ref(self) -> str:
        """The request's ref, as in `Response`."""
        return self._ask.ref or ""

    @property
    def text(self) -> str:
        """The text that has been read so far, without void parts."""
        return self._reader.text

    @property
    def ended(self) -> bool:
        """Whether the wait is over; some events may still be unread."""
        return self._ask.outcome.done()

    async def outcome(self) -> Outcome:
        """Read on to the end, and return how the request ended.

        Raises:
            AskTimeout, Unavailable: as `Mesh.ask`.
        """
        async for _ in self:
            pass
        assert self._outcome is not None
        return self._outcome

    async def response(self) -> Response:
        """Read on to the end, and return the answer.

        Raises:
            As `Mesh.ask`.
        """
        return Response.of(await self.outcome())

    def __aiter__(self) -> LiveTurn:
        return self

    async def __anext__(self) -> LiveEvent:
        """The next event; `Ended` is the last.

        Raises:
            AskTimeout: `timeout` ended; the turn goes on.
            Unavailable: the client was closed.
        """
        while not self._events:
            if self._outcome is not None:
                raise StopAsyncIteration
            if self._bodies:
                self._events.extend(self._reader.read(self._bodies.popleft()))
            elif self._ask.outcome.done():
                self._outcome = self._result(self._ask)
                self._events.append(self._reader.ended(self._outcome))
            else:
                self._news.clear()
                await self._news.wait()
        return self._events.popleft()

    def _take(self, body: bytes) -> None:
        self._bodies.append(body)
        self._news.set()
