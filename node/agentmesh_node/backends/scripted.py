"""The scripted backend: answers without a model, for tests, demos and first steps (cases 108 to 110).

The script is the class attribute `script` of the agent, or the backend option `script` when it is plain data:

- nothing: the answer is the prompt;
- a function of the prompt, plain or `async`, which returns an item (an exception that it raises is an immediate error); it
  also gets the turn if it has a parameter `turn`; if it is an async generator, its values are the steps of the answer;
- a list of items, used in order; the session holds the position in it.

An item is one of:

- text: one text event and the result;
- a list of steps: `Event`, `Delay(seconds)`, an exception (raised out of the stream), or their plain-data forms
  `{"kind": ..., "data": {...}}`; besides the kinds of an event there are `delay` (`{"s": 0.1}`) and `raise`
  (`{"message": "..."}`); a single step stands for a list of one;
- `Raises(exception, *steps)`: a stream that raises after these steps;
- `Fail("reason")`, an exception, or `{"kind": "fail", "data": {"reason": "..."}}`: an immediate error, raised by `prompt()`.

The option or class attribute `delay_s` (seconds) is waited before the first event of every answer.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Event, Stream, Turn
from agentmesh.errors import BackendError

HISTORY = 1000
"""Most prompts that are remembered."""


class Delay(msgspec.Struct, frozen=True):
    """A step that waits, so that a demo looks realistic."""

    seconds: float


class Fail(msgspec.Struct, frozen=True):
    """An immediate error: the prompt is refused before a stream begins."""

    reason: str
    retry_after_s: float | None = None


class Raises:
    """A stream that raises `error` after `steps`."""

    __slots__ = ("error", "steps")

    def __init__(self, error: BaseException | type[BaseException], *steps: Any) -> None:
        self.error = error
        self.steps = steps


type ScriptStep = Event | Delay | BaseException | type[BaseException]


class ScriptedBackend:
    """A `Backend` that plays a script.

    The position in a list of items moves on with every prompt, also with failed ones. It is committed with the session of a turn
    that succeeded or ended in an error event; another process goes on from there, so an item whose turn left no session (an
    immediate error, a crash, an interrupt) may be played again after a takeover.
    """

    def __init__(self, agent: Agent[Any], options: Mapping[str, Any]) -> None:
        script = options.get("script", getattr(type(agent), "script", None))
        self._function: Callable[[str, Turn], Any] | None = None
        self._items: Sequence[Any] = ()
        self._problem: str | None = None
        self.prompts: deque[str] = deque(maxlen=HISTORY)
        """The newest prompts that reached this backend, as `pre_turn` left them."""
        self._place = 0
        if callable(script):
            self._function = _bound(script, agent)
        elif isinstance(script, Sequence) and not isinstance(script, str | bytes):
            self._items = script
        elif script is not None:
            self._problem = f"a script is a function or a list of answers, not {type(script).__name__}"
        self._listed = script is not None and self._function is None
        self._delay_s = self._delay(options.get("delay_s", getattr(type(agent), "delay_s", 0)))

    def _delay(self, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        self._problem = f"delay_s is a number of seconds, not {value!r}"
        return 0.0

    def remaining(self) -> int | None:
        """How many items of a list are still to be played; None without a list."""
        return max(0, len(self._items) - self._place) if self._listed else None

    async def start_session(self) -> Any:
        """Begin at the head of the script.

        Raises:
            BackendError: `details["reason"]` is `bad_script`: neither function nor list, or a bad `delay_s`.
        """
        if self._problem is not None:
            raise BackendError(f"the scripted backend cannot start: {self._problem}", details={"reason": "bad_script"})
        self._place = 0
        self.prompts.clear()
        return {"next": 0, "prompts": []} if self._listed else {}

    async def resume_session(self, session: Any) -> Any:
        """Go on where `session` stands.

        Raises:
            BackendError: as `start_session`.
        """
        if not isinstance(session, dict):
            return await self.start_session()
        if self._problem is not None:
            raise BackendError(f"the scripted backend cannot go on: {self._problem}", details={"reason": "bad_script"})
        self._place = int(session.get("next", 0))
        self.prompts.clear()
        self.prompts.extend(session.get("prompts", ()))
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Play the script's answer to `prompt`.

        Raises:
            BackendError: the script says so; `details["reason"]` is its reason, or `no_script` when the list has ended.
        """
        self.prompts.append(prompt)
        if self._listed:
            item, session = self._next(session)
        elif self._function is None:
            item = prompt
        else:
            item = await self._ask(self._function, prompt, turn)
            if isinstance(item, AsyncIterator):
                return Stream(_Timed(item), session)
        events = _events(item)
        if self._delay_s:
            return Stream(_Timed([Delay(self._delay_s), *events]), session)
        if type(item) is str or all(type(step) is Event for step in events):
            return Stream(_Ready(events), session)
        return Stream(_Timed(events), session)

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """Keep the session id that a result event bears."""
        session_id = result.get("session_id")
        if session_id is None or session.get("session_id") == session_id:
            return session
        return {**session, "session_id": session_id}

    async def terminate_session(self, session: Any) -> None:
        """Nothing to release; harmless at any time."""

    def _next(self, session: Any) -> tuple[Any, Any]:
        if self._place >= len(self._items):
            raise BackendError(
                f"the script has ended: all {len(self._items)} answers are used; give a longer list, or a function",
                details={"reason": "no_script"},
            )
        item = self._items[self._place]
        self._place += 1
        return item, {**session, "next": self._place, "prompts": list(self.prompts)}

    async def _ask(self, function: Callable[[str, Turn], Any], prompt: str, turn: Turn) -> Any:
        try:
            item = function(prompt, turn)
            return await item if inspect.isawaitable(item) else item
        except Exception as error:
            raise _refusal(error) from error


def _bound(script: Callable[..., Any], agent: Agent[Any]) -> Callable[[str, Turn], Any]:
    """`script` as a function of prompt and turn: one that was written as a method gets its agent."""
    code = getattr(script, "__code__", None)
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code is not None else ()
    bound = functools.partial(script, agent) if len(names) > 1 and names[0] == "self" else script
    if "turn" in names:
        return lambda prompt, turn: bound(prompt, turn=turn)
    return lambda prompt, turn: bound(prompt)


def _events(item: Any) -> list[Any]:
    """The steps of an item.

    Raises:
        BackendError: the item is an immediate error, or has none of the forms that the module describes.
    """
    if type(item) is str:
        data = {"text": item}
        return [Event("text", data), Event("result", data)]
    if isinstance(item, Fail):
        raise _failed(item.reason, item.retry_after_s)
    if isinstance(item, Raises):
        return [*map(_step, item.steps), item.error]
    if _is_error(item):
        raise _refusal(item)
    if isinstance(item, Mapping) and item.get("kind") == "fail":
        refused: Mapping[str, Any] = item.get("data") or {}
        raise _failed(str(refused.get("reason", "unknown")), refused.get("retry_after_s"))
    if isinstance(item, Event | Delay | Mapping):
        return [_step(item)]
    if isinstance(item, Iterable):
        return list(map(_step, item))
    raise BackendError(f"a script's answer cannot be {type(item).__name__}", details={"reason": "bad_script"})


def _step(value: Any) -> ScriptStep:
    if isinstance(value, Event | Delay) or _is_error(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, Mapping):
        data = value.get("data") or {}
        match value.get("kind"):
            case "delay":
                return Delay(float(data.get("s", 0)))
            case "raise":
                return RuntimeError(str(data.get("message", "the script raised")))
        try:
            return msgspec.convert(value, Event)
        except msgspec.ValidationError as error:
            raise BackendError(f"a script's step has the wrong shape: {error}", details={"reason": "bad_script"}) from None
    raise BackendError(f"a script's step cannot be {type(value).__name__}", details={"reason": "bad_script"})


def _is_error(value: Any) -> bool:
    return isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))


def _failed(reason: str, retry_after_s: float | None) -> BackendError:
    details: dict[str, Any] = {"reason": reason}
    if retry_after_s is not None:
        details["retry_after_s"] = retry_after_s
    return BackendError(f"the backend refused the prompt: {reason}", details=details)


def _refusal(error: BaseException | type[BaseException]) -> BackendError:
    """The immediate error for an exception; a BackendError is returned as it is."""
    if isinstance(error, BackendError):
        return error
    kind = error if isinstance(error, type) else type(error)
    text = "" if isinstance(error, type) else str(error)
    reason = text or kind.__name__
    return BackendError(f"the script failed: {kind.__name__}{f': {text}' if text else ''}", details={"reason": reason})


class _Ready(AsyncIterator[Event]):
    """Events that are all known. A class and not a generator: readers stop at the terminal event, and an unfinished generator
    would cost its loop a finalizer."""

    __slots__ = ("_at", "_events")

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._at = 0

    async def __anext__(self) -> Event:
        at = self._at
        if at >= len(self._events):
            raise StopAsyncIteration
        self._at = at + 1
        return self._events[at]


class _Timed(AsyncIterator[Event]):
    """Steps, some of which wait or raise."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Sequence[ScriptStep] | AsyncIterator[Any]) -> None:
        self._steps = steps if isinstance(steps, AsyncIterator) else _one_by_one(steps)

    async def __anext__(self) -> Event:
        async for value in self._steps:
            step = _step(value)
            if isinstance(step, Event):
                return step
            if isinstance(step, Delay):
                await asyncio.sleep(step.seconds)
            else:
                raise step
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the generator that the steps come from."""
        close = getattr(self._steps, "aclose", None)
        if close is not None:
            await close()


async def _one_by_one(steps: Sequence[ScriptStep]) -> AsyncIterator[ScriptStep]:
    for step in steps:
        yield step
