"""Tools that are functions of the agent's own code."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from agentmesh.errors import BadRequest
from agentmesh.tools import Done, FunctionTool, NotDone, ToolCall, ToolError
from agentmesh_node.stepping import timed
from agentmesh_node.tools.calls import Call, Result, TimedOut, bounded

log = logging.getLogger("agentmesh.node")


class _Raised:
    """What user code raised, carried as a value: a SystemExit must not end the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def run(tool: FunctionTool, call: Call, info: ToolCall) -> Result:
    """Run a call to its end, or to its time-out. Never raises, but for cancellation."""
    try:
        arguments = tool.signature.arguments(call.input)
    except BadRequest as error:
        return Result.failed(call, "bad_input", f"the input does not fit this tool: {error.message}")
    if tool.signature.call is not None:
        arguments[tool.signature.call] = info
    try:
        value = await bounded(_call(tool.function, arguments, call.name), tool.timeout_s, call.name)
    except TimedOut:
        return Result.failed(call, "timeout", timed_out(tool.timeout_s, again=tool.effect != "once"))
    if isinstance(value, _Raised):
        return Result.failed(call, "raised", _told(value.error))
    return Result.of(call, value)


async def reconcile(tool: FunctionTool, call: Call, info: ToolCall) -> Result | None:
    """What became of a call that may have been fired by an owner that died; None if it was not, and may be fired now."""
    found: Any = None
    if tool.reconcile is not None:
        try:
            found = await bounded(_call(tool.reconcile, {"key": info.key}, call.name), tool.timeout_s, call.name)
        except TimedOut:
            log.warning("a tool's reconcile took too long", extra={"agent": info.agent, "tool": call.name})
    if isinstance(found, Done):
        return Result.of(call, found.result)
    if isinstance(found, NotDone):
        return None
    if isinstance(found, _Raised):
        log.warning("a tool's reconcile raised", extra={"agent": info.agent, "tool": call.name, "error": repr(found.error)})
    return Result.failed(call, "unknown_outcome", UNKNOWN)


UNKNOWN = (
    "The outcome of this call is unknown: the process that made it died before it could tell. It may or may not have taken "
    "effect, and it was not made again. Find out before you repeat it."
)


def timed_out(seconds: float, *, again: bool) -> str:
    """What the model is told of a call that was cut off."""
    effect = "" if again else " Whether it took effect is unknown."
    return f"The tool did not answer within {seconds:g} s and was cancelled.{effect}"


async def _call(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
    """What the function returns, on the loop if it is `async` and in a thread if it is plain, or what it raised."""

    def report(what: str, seconds: float) -> None:
        log.warning("a tool blocked the loop", extra={"tool": what, "seconds": round(seconds, 3)})

    try:
        if inspect.iscoroutinefunction(function):
            return await timed(function(**arguments), name, report)
        value = await asyncio.to_thread(function, **arguments)
        return await timed(value, name, report) if inspect.isawaitable(value) else value
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if not inspect.iscoroutinefunction(function):
                # A thread cannot be killed: what it still returns is thrown away.
                log.warning("a plain tool is left behind in its thread", extra={"tool": name})
            raise
        return _Raised(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything
        return _Raised(error)


def _told(error: BaseException) -> str:
    if isinstance(error, ToolError):
        return str(error) or "the tool failed"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
