"""Claude Code's messages as events. Importing this module imports the SDK (1.5 s): do it in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import claude_agent_sdk as sdk

from agentmesh.backend import Event
from agentmesh.edge.clock import SYSTEM
from agentmesh_node.backends.claude.failures import failed, reason_of
from agentmesh_node.backends.claude.process import Malformed
from agentmesh_node.backends.claude.transcript import added, event_of, text_of, tokens_of
from agentmesh_node.tools.turn_bounds import Driven

TYPES = {
    sdk.TextBlock: "text",
    sdk.ThinkingBlock: "thinking",
    sdk.ToolUseBlock: "tool_use",
    sdk.ToolResultBlock: "tool_result",
}


class MessageReader:
    """Turns the messages of one run into events. Text and thinking come as they are written; subagents' own are left out."""

    def __init__(self, session: str, before: dict[str, int]) -> None:
        """
        Args:
            session: the id of this run's session.
            before: tokens that earlier runs of the turn used.
        """
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
        self._retry_after_s: float | None = None
        self._unkept: str | None = None

    def events(self, message: Any) -> Iterator[Event]:
        """The events for a message; none for messages of an unknown kind."""
        match message:
            case sdk.StreamEvent(parent_tool_use_id=None):
                yield from self._streaming(message.event)
            case sdk.AssistantMessage(parent_tool_use_id=None):
                yield from self._answer(message)
            case sdk.UserMessage(parent_tool_use_id=None):
                yield from _blocks(message.content)
            case sdk.MirrorErrorMessage():
                self._unkept = message.error
            case sdk.RateLimitEvent():
                self._note_limit(message.rate_limit_info)
            case sdk.SystemMessage(subtype="api_retry"):
                self._kind = str(message.data.get("error") or "") or self._kind
            case sdk.ResultMessage():
                yield from self._result(message)

    def _streaming(self, event: dict[str, Any]) -> Iterator[Event]:
        match event.get("type"):
            case "message_start":
                yield from self._restarted()
                begun = event.get("message") or {}
                self._message, self._model = begun.get("id", ""), begun.get("model", "")
                self._counters = dict(begun.get("usage") or {})
            case "message_delta":
                self._counters.update(event.get("usage") or {})
            case "message_stop":
                self._total = added(self._total, tokens_of(self._counters))
                yield Event("usage", {**self._total, "model": self._model})
        delta = event.get("delta") or {}
        if delta.get("type") == "text_delta":
            self._streamed.add(self._message)
            self._partial = True
            yield Event("text", {"text": delta["text"]})
        elif delta.get("type") == "thinking_delta" and delta.get("thinking"):
            self._streamed.add(self._message)
            yield Event("thinking", {"text": delta["thinking"]})

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
        known = message.total_cost_usd is not None and not self._before
        cost = {"cost_usd": message.total_cost_usd} if known else {}
        used = added(self._before, _by_models(message.model_usage or {}) or tokens_of(message.usage or {}))
        yield Event("usage", {**used, "model": self._model, **cost})
        if message.is_error:
            reason = reason_of(message.subtype, self._kind, message.api_error_status)
            text = message.result or "; ".join(message.errors or ()) or message.subtype
            after = self._retry_after_s if reason == "rate_limited" else None
            yield failed(reason, text, after, status=message.api_error_status)
        elif self._unkept is not None:
            yield failed("store_unavailable", f"the transcript could not be stored: {self._unkept}")
        else:
            yield Event.result(message.result or "", session_id=self._session, turns=message.num_turns)


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


def broken(error: Exception, said: str) -> Event:
    """The terminal event for a run that broke off.

    Args:
        said: the last lines of the child's standard error.
    """
    match error:
        case sdk.ResultError():
            return failed(reason_of(error.subtype or "", None, error.api_error_status), _short(error))
        case sdk.ProcessError():
            return failed("crashed", f"Claude Code ended in mid-turn: {_last(said) or _short(error)}", exit_code=error.exit_code)
        case Malformed() | sdk.ClaudeSDKError() | KeyError() | TypeError() | ValueError():
            return failed("bad_output", f"Claude Code wrote what cannot be read: {_short(error)}")
        case TimeoutError():
            return failed("start_timeout", "Claude Code did not begin in time")
        case OSError():
            return failed("not_installed", f"Claude Code cannot be started: {error.strerror}")
    return failed("crashed", f"Claude Code ended in mid-turn: {_last(said) or _short(error)}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _last(said: str) -> str:
    return said.strip().rpartition("\n")[2][:300]
