"""Tools that are functions of the agent's own code."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentmesh.errors import BadRequest
from agentmesh.tools import Done, FunctionTool, NotDone, ToolCall, ToolError
from agentmesh_node.tools.calls import Call, Result, TimedOut, bounded
from agentmesh_node.user_code.block_detector import timed
from agentmesh_node.user_code.threads import CaughtError, in_thread

log = logging.getLogger("agentmesh.node")


_at_work: Counter[str] = Counter()
"""Calls whose function runs. A plain one that was cancelled runs on in its thread: nobody can say yet what it will do."""


def _work(call: Call, info: ToolCall) -> str:
    return f"{info.agent} {call.name} {info.key}"


def _over(work: str) -> None:
    _at_work[work] -= bool(work)
    if _at_work[work] <= 0:
        del _at_work[work]


async def run(tool: FunctionTool, call: Call, info: ToolCall) -> Result:
    """Run a call to its end, or to its time-out. Raises nothing but cancellation."""
    try:
        arguments = tool.signature.arguments(call.input)
    except BadRequest as error:
        return Result.failed(call, "bad_input", f"the input does not fit this tool: {error.message}")
    if tool.signature.call is not None:
        arguments[tool.signature.call] = info
    try:
        value = await _bounded(tool.function, arguments, tool.timeout_s, call.name, _work(call, info))
    except TimedOut:
        return Result.failed(call, "timeout", timed_out(tool.timeout_s, again=tool.effect != "once"))
    if isinstance(value, CaughtError):
        if not isinstance(value.error, ToolError):  # which is meant for the model, and no defect
            log.warning("a tool raised", extra={"agent": info.agent, "tool": call.name}, exc_info=value.error)
        return Result.failed(call, "raised", _error_text(value.error))
    return Result.of(call, value)


async def reconcile(tool: FunctionTool, call: Call, info: ToolCall) -> Result | None:
    """The result of a call that may have been made; None if it was not made, and may be made now."""
    found: Any = None
    if _at_work[_work(call, info)]:
        log.warning("a call is not asked after: its function still runs", extra={"agent": info.agent, "tool": call.name})
    elif tool.reconcile is not None:
        try:
            found = await _bounded(tool.reconcile, {"key": info.key}, tool.timeout_s, call.name)
        except TimedOut:
            log.warning("a tool's reconcile took too long", extra={"agent": info.agent, "tool": call.name})
    if isinstance(found, Done):
        return Result.of(call, found.result)
    if isinstance(found, NotDone):
        return None
    if isinstance(found, CaughtError):
        log.warning("a tool's reconcile raised", extra={"agent": info.agent, "tool": call.name, "error": repr(found.error)})
    return Result.failed(call, "unknown_outcome", UNKNOWN)


async def ask_after_timeout(tool: FunctionTool, call: Call, info: ToolCall, timed_out: Result) -> Result:
    """The result of a `once` call that timed out: what its tool can tell of it."""
    found = await reconcile(tool, call, info)
    if found is None:
        return Result.failed(call, "timeout", timed_out.text.removesuffix(MAYBE) + NOT_DONE)
    return found if found.ok else timed_out


MAYBE = " Whether it took effect is unknown."
NOT_DONE = " It has not taken effect."
UNKNOWN = (
    "The outcome of this call is unknown: it was interrupted before it could tell. It may or may not have taken effect, and it "
    "was not made again. Find out before you repeat it."
)


def timed_out(seconds: float, *, again: bool) -> str:
    """The text that the model gets for a call that timed out."""
    effect = "" if again else MAYBE
    return f"The tool did not answer within {seconds:g} s and was cancelled.{effect}"


async def _bounded(function: Callable[..., Any], arguments: dict[str, Any], timeout_s: float, name: str, work: str = "") -> Any:
    """What the function returns, or a `CaughtError`. While it runs `work` counts as at work, also when its call was given up.

    Raises:
        TimedOut: it took too long.
    """
    try:
        return await bounded(_call(function, arguments, name, work), timeout_s, name)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return CaughtError(error)  # the function has cancelled its own task, not the turn's


async def _call(function: Callable[..., Any], arguments: dict[str, Any], name: str, work: str) -> Any:
    """What the function returns, or a `CaughtError`. It runs on the loop if it is `async`, and in a thread if it is plain."""

    def report(what: str, seconds: float) -> None:
        log.warning("a tool blocked the loop", extra={"tool": what, "seconds": round(seconds, 3)})

    _at_work[work] += bool(work)
    try:
        if inspect.iscoroutinefunction(function):
            try:
                return await timed(function(**arguments), name, report)
            finally:
                _over(work)
        value = await in_thread(function, arguments, name, over=lambda: _over(work))
        return await timed(value, name, report) if inspect.isawaitable(value) else value
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if not inspect.iscoroutinefunction(function):
                # A thread cannot be killed: what the function still returns is thrown away.
                log.warning("a plain tool is left behind in its thread", extra={"tool": name})
            raise
        return CaughtError(error)
    except BaseException as error:  # noqa: BLE001 - it would end the task of the turn, and nobody would get a result
        return CaughtError(error)


def _error_text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception's text is user code as well
        text = ""
    if isinstance(error, ToolError):
        return text or "the tool failed"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
