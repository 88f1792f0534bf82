"""The model calls and tool runs of an attempt, while it runs.

Each has its own id from its beginning, so that what it causes (a question to another agent, a child process) has the right
parent. It is told with the attempt: by the step that it led to, or, where there is none, by the record that ends the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from agentmesh import semconv
from agentmesh.backend import Event
from agentmesh.ledger_entries import Inner
from agentmesh.steps import Steps
from agentmesh.trace.context import TraceContext, inner_span_id
from agentmesh.trace.told import tokens_of
from agentmesh_node.telemetry.open_spans import Additions

MOST = 64
"""Most calls without a step that are told of one attempt: the newest."""
CUT = "interrupted"
"""The error of a call that the end of its turn has cut off."""
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")


class InnerCall:
    """One call. `end` it, then `kept` if a step has it."""

    __slots__ = ("_attributes", "_began", "_calls", "_ended", "_error", "_name", "_op", "id")

    def __init__(
        self, calls: InnerCalls | None, op: Literal["chat", "execute_tool"], id: str, name: str, attributes: dict[str, Any]
    ) -> None:
        """`calls`: None if nothing is told of the attempt, or no attempt runs."""
        self._calls = calls
        self._op: Literal["chat", "execute_tool"] = op
        self.id = id
        """The id of its span; empty if nothing is told of it."""
        self._name = name
        self._attributes = attributes
        self._error = ""
        self._ended: float | None = None
        self._began = calls.now() if calls is not None else 0.0

    def tokens(self, model: str, usage: Mapping[str, Any]) -> None:
        """Note the tokens that a model call used, and the model that answered it."""
        if self._calls is not None:
            self._attributes = {
                **self._attributes,
                **({semconv.RESPONSE_MODEL: model} if model else {}),
                **tokens_of(usage),
            }

    def failed(self, error: str) -> None:
        """Note that it failed, with the error's code."""
        self._error = error

    def end(self, began: float | None = None) -> None:
        """It is over now. `began`: when it began, if that was before it was noted."""
        if self._calls is not None and self._ended is None:
            self._ended = self._calls.now()
            if began is not None:
                self._began = began

    def kept(self) -> None:
        """A step has it."""
        if self._calls is not None:
            self._calls.forget(self.id)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._ended is not None

    @property
    def inner(self) -> Inner | None:
        """It as records have it; None if nothing is told of it."""
        if self._calls is None:
            return None
        ended = self._ended
        return Inner(
            id=self.id,
            op=self._op,
            name=self._name,
            began=self._began,
            ended=self._calls.now() if ended is None else ended,
            error=self._error or (CUT if ended is None else ""),
            attributes=self._attributes,
        )

    @property
    def context(self) -> TraceContext | None:
        """The context of what it causes; None if nothing is told of it."""
        return None if self._calls is None else msgspec.structs.replace(self._calls.context, span_id=self.id)


_step_of: ContextVar[InnerCall | None] = ContextVar("agentmesh_step_of", default=None)


async def take(steps: Steps, step: Any, call: InnerCall | None) -> None:
    """Take a step (`agentmesh.steps.Steps.take`), which has the result of `call`."""
    if call is None or call.inner is None:
        await steps.take(step)
        return
    token = _step_of.set(call)
    try:
        await steps.take(step)
    finally:
        _step_of.reset(token)
    call.kept()


def inner_of_step() -> Inner | None:
    """The call whose result the step has that is being taken, if `take` takes it."""
    call = _step_of.get()
    return None if call is None else call.inner


class InnerCalls:
    """The calls of one attempt. Used on the node's loop only."""

    def __init__(
        self, context: TraceContext, now: Callable[[], float], additions: Additions | None = None, *, began: float | None = None
    ) -> None:
        """
        Args:
            context: the attempt's.
            now: in seconds since the epoch, by the servers' clock.
            additions: where what user code adds to their spans is noted; None if they will not be exported here.
            began: when the attempt began; None: now.
        """
        self.context = context
        self.now = now
        self.additions = additions
        self._calls: dict[str, InnerCall] = {}
        """By the ids of their spans, those that no step has."""
        self._known: set[str] = set()
        """All tool runs so far."""
        self._seen: set[str] = set()
        """Tool runs that only their events tell of, and that have not ended."""
        self._chats = 0
        self._tells_chats = False
        """Whether the backend tells of its model calls itself."""
        self._mark = now() if began is None else began
        """When the newest tool run or answer that an event tells of had ended."""
        self._usage: dict[str, int] = {}

    def chat(self, provider: str, model: str) -> InnerCall:
        """A call to a model begins."""
        self._tells_chats = True
        return self._chat(provider, model)

    def answered(self, provider: str, model: str, usage: Mapping[str, Any]) -> InnerCall:
        """A call to a model is over that nobody knew of while it ran: it began when the newest answer or tool run had ended."""
        self._tells_chats = True
        call = self._chat(provider, model)
        call.tokens(model, usage)
        call.end(self._mark)
        self._mark = self.now()
        return call

    def _chat(self, provider: str, model: str) -> InnerCall:
        self._chats += 1
        attributes: dict[str, Any] = {semconv.PROVIDER: provider} if provider else {}
        attributes[semconv.REQUEST_MODEL] = model
        return self._put(
            InnerCall(self, "chat", inner_span_id(self.context.span_id, "chat", str(self._chats)), model, attributes)
        )

    def tool(self, name: str, call: str, target: str | None = None) -> InnerCall:
        """A run of a tool begins. `call`: the model's id of the call; `target`: the agent that it asks."""
        span = inner_span_id(self.context.span_id, "execute_tool", call)
        self._known.add(span)
        self._seen.discard(span)
        attributes = {semconv.TOOL_CALL_ID: call, **({semconv.TRANSFER_TARGET: target} if target else {})}
        return self._put(InnerCall(self, "execute_tool", span, name, attributes))

    def _put(self, call: InnerCall) -> InnerCall:
        self._calls.pop(call.id, None)
        self._calls[call.id] = call
        if len(self._calls) > MOST:
            del self._calls[next(iter(self._calls))]
        return call

    def forget(self, span: str) -> None:
        """A step has the call with this id."""
        self._calls.pop(span, None)

    def observe(self, event: Event) -> None:
        """Note what an event tells of a call that the backend makes without this module: Claude Code's, Codex's, any other's."""
        if event.replayed:
            return
        data = event.data
        match event.kind:
            case "tool_use":
                span = inner_span_id(self.context.span_id, "execute_tool", str(data.get("id")))
                if span not in self._known:  # else it was made here, and may have its step already
                    self.tool(str(data.get("name")), str(data.get("id")))
                    self._seen.add(span)
            case "tool_result":
                span = inner_span_id(self.context.span_id, "execute_tool", str(data.get("id")))
                self._mark = self.now()
                if span in self._seen and span in self._calls:
                    self._seen.discard(span)
                    if not data.get("ok"):
                        self._calls[span].failed(str(data.get("error") or "error"))
                    self._calls[span].end()
            case "usage" if not self._tells_chats and data.get("model"):
                self._answered(data)

    def _answered(self, usage: Mapping[str, Any]) -> None:
        """The model has answered: `usage` has the tokens of the turn so far."""
        total = {name: usage[name] for name in _COUNTS if isinstance(usage.get(name), int)}
        used = {name: count - self._usage.get(name, 0) for name, count in total.items()}
        self._usage = total
        if used.get("output_tokens", 0) > 0:
            self.answered("", str(usage["model"]), used)
            self._tells_chats = False
        self._mark = self.now()

    def ended(self) -> InnerCall | None:
        """The oldest call that has ended and that no step has."""
        return next((call for call in self._calls.values() if call.is_over), None)

    @property
    def without_step(self) -> tuple[Inner, ...]:
        """The calls that no step has, those that still run cut off now."""
        if not self._calls:
            return ()
        return tuple(inner for call in self._calls.values() if (inner := call.inner) is not None)
