"""Claude Code's messages as events. Importing this module imports the SDK (1.5 s): do it in a thread."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import claude_agent_sdk as sdk

from agentmesh.backend import Event
from agentmesh.budget import Prices
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BackendError
from agentmesh_node.backends.claude.failures import failed, reason_of
from agentmesh_node.backends.claude.process import Malformed
from agentmesh_node.backends.claude.transcript import UNREADABLE, added, event_of, text_of, tokens_of
from agentmesh_node.backends.reasons import again_after, plainly, seconds
from agentmesh_node.backends.retries import told_again
from agentmesh_node.backends.shapes import shaped
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import InnerCall
from agentmesh_node.tools.turn_bounds import Driven

log = logging.getLogger("agentmesh.node")

PROVIDER = "anthropic"
"""Whose models Claude Code calls, in the telemetry conventions."""
TYPES = {
    sdk.TextBlock: "text",
    sdk.ThinkingBlock: "thinking",
    sdk.ToolUseBlock: "tool_use",
    sdk.ToolResultBlock: "tool_result",
}


class MessageReader:
    """Turns the messages of one run into events. Text and thinking come as they are written; subagents' own are left out."""

    def __init__(
        self, session: str, before: dict[str, int], *, prices: Prices | None = None, most_usd: float | None = None
    ) -> None:
        """
        Args:
            session: the id of this run's session.
            before: tokens that earlier runs of the turn used.
            prices: the node's table. What an operator has put into it goes before Claude Code's own idea of a price.
            most_usd: what the turn may cost, if the model has a price of the operator's.
        """
        self._prices = prices or Prices()
        self._most_usd = most_usd
        self._spent = False
        """Whether the turn may not go on."""
        self._session = session
        self._before = before
        self._total = before
        self._counters: dict[str, Any] = {}
        self._model = ""
        self._streamed: set[str] = set()
        self._message = ""
        self._partial = False
        """Whether text of a block was given that has not come whole yet."""
        self._kind: str | None = None
        self._stopped = False
        """Whether the newest answer has come to its end."""
        self._said: list[str] = []
        self._whole = 0
        """How many of these texts no answer that breaks off can make void."""
        self._retry_after_s: float | None = None
        self._unkept: str | None = None
        self._call: InnerCall | None = None
        """The call to the model that runs now."""

    def events(self, message: Any) -> Iterator[Event]:
        """The events for a message; none for messages of an unknown kind.

        Raises:
            Malformed: a message has not the form that it should have.
        """
        try:
            for event in self._events(message):
                self._note(shaped(event))
                yield event
        except UNREADABLE as error:
            raise Malformed(f"{type(error).__name__}: {error}") from error

    def _note(self, event: Event) -> None:
        """Keep the text of the turn, without that of answers that broke off."""
        match event.kind:
            case "text" if event.data.get("restart"):
                del self._said[self._whole :]
            case "text":
                self._said.append(event.data["text"])
            case "usage" | "tool_result":
                self._whole = len(self._said)

    def _events(self, message: Any) -> Iterator[Event]:
        match message:
            case sdk.StreamEvent(parent_tool_use_id=None):
                yield from self._streaming(message.event)
            case sdk.AssistantMessage(parent_tool_use_id=None):
                yield from self._answer(message)
            case sdk.UserMessage(parent_tool_use_id=None):
                # What else it tells the model, as when an answer was cut, is not the model's.
                yield from (event for event in _blocks(message.content) if event.kind == "tool_result")
            case sdk.MirrorErrorMessage():
                self._unkept = message.error
            case sdk.RateLimitEvent():
                self._note_limit(message.rate_limit_info)
            case sdk.SystemMessage(subtype="api_retry"):
                yield self._retry(message.data)
            case sdk.ResultMessage():
                yield from self._result(message)

    def _streaming(self, event: dict[str, Any]) -> Iterator[Event]:
        match event.get("type"):
            case "message_start":
                yield from self._restarted()
                if self._spent:
                    yield failed("budget_exceeded", f"the turn has cost more than {self._most_usd:g} US dollars")
                    return
                begun = event.get("message") or {}
                self._message, self._model = begun.get("id", ""), begun.get("model", "")
                self._end_call("stream_broken")
                self._call = tracing.chat(PROVIDER, str(self._model))
                self._counters = dict(begun.get("usage") or {})
                self._stopped = False
            case "message_delta":
                self._counters.update(event.get("usage") or {})
                self._stopped = bool((event.get("delta") or {}).get("stop_reason"))
            case "message_stop":
                if not self._stopped:  # Claude Code ends what broke off in this way, ahead of another try
                    yield from self._restarted()
                used = tokens_of(self._counters)
                if self._call is not None:
                    self._call.tokens(str(self._model), used)
                self._end_call(None if self._stopped else "stream_broken")
                self._total = added(self._total, used)
                yield Event("usage", {**self._total, "model": self._model})
                price = self._prices.given(self._model)
                self._spent = price is not None and self._most_usd is not None and price.of(self._total) >= self._most_usd
        delta = event.get("delta") or {}
        if delta.get("type") == "text_delta":
            self._streamed.add(self._message)
            self._partial = True
            yield Event("text", {"text": delta["text"]})
        elif delta.get("type") == "thinking_delta" and delta.get("thinking"):
            self._streamed.add(self._message)
            yield Event("thinking", {"text": delta["thinking"]})

    def _end_call(self, error: str | None) -> None:
        """The call to the model is over, if one runs."""
        call, self._call = self._call, None
        if call is not None:
            if error is not None:
                call.failed(error)
            call.end()

    def _retry(self, data: Mapping[str, Any]) -> Event:
        """Claude Code asks again: what it has given of the answer is void."""
        self._kind = str(data.get("error") or "") or self._kind
        delay, attempt, status = data.get("retry_delay_ms"), data.get("attempt"), data.get("error_status")
        wait_s = seconds(delay)
        restart, self._partial = self._partial, False
        return told_again(
            attempt + 1 if isinstance(attempt, int) else None,
            None if wait_s is None else wait_s / 1000,
            reason_of("", self._kind, status if isinstance(status, int) else None),
            restart=restart,
        )

    def _restarted(self) -> Iterator[Event]:
        """An answer begins. If the one before it broke off, its events are void: it is asked for again."""
        if self._partial:
            self._partial = False
            yield Event("text", {"text": "", "restart": True})

    def _answer(self, message: sdk.AssistantMessage) -> Iterator[Event]:
        if message.error is not None:
            self._kind = message.error  # the result has the same text
            return
        if message.message_id == self._message:
            self._partial = False
        else:
            yield from self._restarted()
        for event in _blocks(message.content):
            if event.kind == "tool_use" or message.message_id not in self._streamed:
                yield event

    def _note_limit(self, info: sdk.RateLimitInfo) -> None:
        if info.status == "rejected" and info.resets_at is not None:
            self._retry_after_s = max(1.0, info.resets_at - SYSTEM.now())

    def _result(self, message: sdk.ResultMessage) -> Iterator[Event]:
        # Only the tokens of an earlier run are known: if there was one, no cost is given.
        usd = None if self._before else self._cost(message)
        cost = {} if usd is None else {"cost_usd": usd}
        used = added(self._before, _by_models(message.model_usage or {}) or tokens_of(message.usage or {}))
        yield Event("usage", {**used, "model": self._model, **cost})
        if message.is_error:
            yield self._failure(message)
        elif self._unkept is not None:
            yield failed("store_unavailable", f"the transcript could not be stored: {self._unkept}")
        else:
            yield Event.result(message.result or "", session_id=self._session, turns=message.num_turns)

    def _failure(self, message: sdk.ResultMessage) -> Event:
        text = message.result or "; ".join(message.errors or ()) or message.subtype
        status = message.api_error_status
        reason = reason_of(message.subtype, self._kind, status, words=text, terminal=message.terminal_reason)
        after = self._retry_after_s if reason == "rate_limited" else None
        said = again_after(text)
        came = "".join(self._said) if reason == "max_tokens" else ""
        return failed(reason, plainly(text), after if said is None else said, status=status, text=came or None)

    def _cost(self, message: sdk.ResultMessage) -> float | None:
        """What the run cost, in US dollars: by the operator's prices where there are such, else as Claude Code says."""
        usage = message.model_usage or {}
        prices = {model: self._prices.given(model) for model in usage}
        if not any(price is not None for price in prices.values()):
            return message.total_cost_usd
        return sum(
            price.of(_by_models({model: usage[model]})) if price is not None else float(usage[model].get("costUSD") or 0.0)
            for model, price in prices.items()
        )


def _by_models(usage: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of all models together, with those of subagents, which the result's own counters leave out."""
    total: dict[str, int] = {}
    for one in usage.values():
        total = added(
            total,
            {
                "input_tokens": one.get("inputTokens", 0),
                "output_tokens": one.get("outputTokens", 0),
                "cache_read_input_tokens": one.get("cacheReadInputTokens", 0),
                "cache_write_input_tokens": one.get("cacheCreationInputTokens", 0),
            },
        )
    return total


def _blocks(content: Any) -> Iterator[Event]:
    for block in content if isinstance(content, list) else ():
        kind = TYPES.get(type(block))
        if kind is not None:
            event = event_of({"type": kind, **vars(block)})
            if event is not None:
                yield event


def count(message: Any, driven: Driven) -> None:
    """Count what tools do in a message, those of subagents too.

    Raises:
        BackendError: the turn has reached a bound.
    """
    content = message.content if isinstance(message, sdk.AssistantMessage | sdk.UserMessage) else None
    for block in content if isinstance(content, list) else ():
        if isinstance(block, sdk.ToolUseBlock):
            driven.may_run()
        elif isinstance(block, sdk.ToolResultBlock):
            driven.take(text_of({"content": block.content}))
    driven.check()


async def heard(
    conversation: AsyncGenerator[Any], reader: MessageReader, child: ChildState, driven: Driven, agent: str = ""
) -> AsyncGenerator[Event]:
    """The events of a run, up to one terminal event.

    Raises:
        BackendError: the turn has reached a bound.
    """
    ended = False
    try:
        async with aclosing(conversation) as said:
            async for one in said:
                for event in reader.events(one):
                    ended = event.terminal
                    yield event
                    if ended:
                        return
                count(one, driven)
    except BackendError:
        raise
    except Exception as error:
        log.warning("a run of Claude Code broke off", extra={"agent": agent, "error": type(error).__name__})
        if ended:  # a failure after the result does not change the result
            raise
        yield broken(error, child.errors, alive=child.is_ready())
        return
    yield failed("bad_output", "Claude Code ended without a result")


class ChildState(Protocol):
    """What is told of a child when a run breaks off."""

    @property
    def errors(self) -> str: ...

    def is_ready(self) -> bool: ...


def broken(error: Exception, said: str, *, alive: bool = False) -> Event:
    """The terminal event for a run that broke off.

    Args:
        said: the last lines of the child's standard error.
        alive: whether the child was still running.
    """
    match error:
        case sdk.ResultError():
            text = error.result or _short(error)
            status, terminal = error.api_error_status, error.terminal_reason
            reason = reason_of(error.subtype or "", None, status, words=text, terminal=terminal)
            return failed(reason, plainly(text), again_after(text), status=status)
        case sdk.ProcessError():
            return failed("crashed", f"Claude Code ended in mid-turn: {_last(said) or _short(error)}", exit_code=error.exit_code)
        case sdk.CLINotFoundError():
            return failed("not_installed", f"Claude Code cannot be started: {_short(error)}")
        case sdk.CLIConnectionError():
            return failed("crashed", f"Claude Code ended in mid-turn: {_last(said) or _short(error)}")
        case Malformed() | sdk.ClaudeSDKError():
            return failed("bad_output", f"Claude Code wrote what cannot be read: {_short(error)}")
        case TimeoutError():
            return failed("start_timeout", "Claude Code did not begin in time")
        case OSError():
            return failed("not_installed", f"Claude Code cannot be started: {error.strerror}")
        case _ if alive or isinstance(error, UNREADABLE):
            return failed("bad_output", f"Claude Code wrote what cannot be read: {_short(error)}")
    return failed("crashed", f"Claude Code ended in mid-turn: {_last(said) or _short(error)}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _last(said: str) -> str:
    return said.strip().rpartition("\n")[2][:300]
