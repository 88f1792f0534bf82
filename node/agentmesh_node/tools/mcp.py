"""Tools of MCP servers, by the official SDK: sessions are opened when needed, kept, and opened again when they have died."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError
from agentmesh.tools import Effect, McpHttp, McpStdio, ToolCall, ToolSpec
from agentmesh_node.tools.calls import PATIENCE_S, Call, Result, TimedOut, bounded
from agentmesh_node.tools.functions import UNKNOWN, timed_out

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("agentmesh.node")

OPEN_S = 30.0
"""Longest time for starting or reaching a server, and listing its tools."""
IDEMPOTENCY_META = "agentmesh/idempotencyKey"
"""The field of a call's `_meta` that bears its key."""


class McpServer:
    """One declared server, and the session with it in this process."""

    def __init__(self, declaration: McpStdio | McpHttp, environ: Mapping[str, str] | None = None) -> None:
        self.declaration = declaration
        self._environ = os.environ if environ is None else environ
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._tools: dict[str, Any] = {}
        self._specs: tuple[ToolSpec, ...] = ()

    # --- tools ------------------------------------------------------------------------------------------------------
    async def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the model may see, named `<server>__<tool>`.

        Raises:
            BackendError: `details["reason"]` is `tools_unavailable`: the server cannot be started or reached, or does not answer.
        """
        if not self._specs:
            await self._opened()
        return self._specs

    def knows(self, name: str) -> bool:
        """Whether this server has a tool of that full name."""
        return name in self._tools

    @property
    def names(self) -> list[str]:
        """The full names of its tools, if they have been listed."""
        return list(self._tools)

    def effect(self, name: str) -> Effect:
        """The declared effect of a tool, else the one that the server hints at, else `once`."""
        tool = self._tools[name]
        said = self.declaration.effects.get(tool.name)
        if said is not None:
            return said
        hints = tool.annotations
        if hints is not None and hints.read_only_hint:
            return "pure"
        return "idempotent" if hints is not None and hints.idempotent_hint else "once"

    async def run(self, call: Call, info: ToolCall) -> Result:
        """Run a call. If the session has died, a call that may run again is tried once more. Raises nothing but cancellation."""
        again = self.effect(call.name) != "once"
        if not isinstance(call.input, dict):
            return Result.failed(call, "bad_input", "the input of a tool is an object")
        for last in (False, True):
            try:
                return await self._run(call, info)
            except BackendError as error:
                return Result.failed(call, "tools_unavailable", error.message)
            except TimedOut:
                return Result.failed(call, "timeout", timed_out(self.declaration.timeout_s, again=again))
            except Exception as error:  # noqa: BLE001 - the model gets an answer whatever a transport raises
                refused = _refusal(error)
                if refused is not None:
                    return Result.failed(call, "raised", refused)
                log.warning("an MCP session has died", extra={"server": self.declaration.name, "error": repr(error)})
                await self.close()
                if not again:
                    return Result.failed(call, "unknown_outcome", UNKNOWN)
                if last:
                    break
        return Result.failed(call, "tools_unavailable", f"the MCP server {self.declaration.name} is gone")

    async def _run(self, call: Call, info: ToolCall) -> Result:
        client = await self._opened()
        tool = self._tools.get(call.name)
        if tool is None:
            return Result.failed(call, "unknown_tool", f"the MCP server has no tool {call.name} any more")
        meta: Any = {IDEMPOTENCY_META: info.key}
        work = client.call_tool(tool.name, call.input, meta=meta)
        answer = await bounded(work, self.declaration.timeout_s, call.name)
        text = _text(answer)
        return Result.failed(call, "raised", text) if answer.is_error else Result.of(call, text)

    # --- session ----------------------------------------------------------------------------------------------------
    async def _opened(self) -> Client:
        """The session, opened if there is none.

        Raises:
            BackendError: it cannot be opened.
        """
        async with self._lock:
            if self._client is not None and self._task is not None and not self._task.done():
                return self._client
            await self._end()
            self._closing = asyncio.Event()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            # A task of its own: the SDK's cancel scopes must be left by the task that entered them.
            self._task = asyncio.create_task(self._hold(ready, self._closing), name=f"mcp {self.declaration.name}")
            try:
                async with asyncio.timeout(OPEN_S):
                    self._client = await ready
            except BackendError:
                raise
            except Exception as error:  # noqa: BLE001 - an SDK and its transports raise anything
                await self._end()
                raise self._unavailable(error) from None
            return self._client

    async def _hold(self, ready: asyncio.Future[Client], closing: asyncio.Event) -> None:
        """Hold a session open until `closing` is set."""
        try:
            async with AsyncExitStack() as stack:
                client = await self._connect(stack)
                await self._list(client)
                if not ready.done():
                    ready.set_result(client)
                await closing.wait()
        except Exception as error:  # noqa: BLE001 - it is given to the waiting caller, or logged
            if not ready.done():
                ready.set_exception(error)
            else:
                log.info("an MCP session ended badly", extra={"server": self.declaration.name, "error": repr(error)})
        finally:
            if not ready.done():
                ready.cancel()

    async def _connect(self, stack: AsyncExitStack) -> Client:
        mcp, stdio, http, httpx2 = await asyncio.to_thread(_sdk)
        told = self.declaration
        server: Any
        if isinstance(told, McpStdio):
            env = {**told.env, **{name: self._variable(name) for name in told.env_from}}
            server = stdio.StdioServerParameters(command=told.command, args=list(told.args), env=env, cwd=told.cwd)
        else:
            headers = {name: self._variable(variable) for name, variable in told.headers_from_env.items()}
            client = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=told.timeout_s))
            server = http.streamable_http_client(told.url, http_client=client)
        opened: Client = await stack.enter_async_context(mcp.Client(server, read_timeout_seconds=told.timeout_s))
        return opened

    async def _list(self, client: Client) -> None:
        told = self.declaration
        found, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        seen = [tool for tool in found if told.only is None or tool.name in told.only]
        self._tools = {_full(told.name, tool.name): tool for tool in seen}
        self._specs = tuple(ToolSpec(name, tool.description or "", tool.input_schema) for name, tool in self._tools.items())

    def _variable(self, name: str) -> str:
        value = self._environ.get(name)
        if not value:
            raise BackendError(
                f"the MCP server {self.declaration.name} needs the variable {name}; set it in the node's environment",
                details={"reason": "tools_unavailable", "retryable": False},
            )
        return value

    def _unavailable(self, error: BaseException) -> BackendError:
        told = self.declaration
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, BackendError):
            return error
        if isinstance(told, McpStdio) and isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            said = f"its command {told.command!r} cannot be run: {error.strerror}"
        elif isinstance(error, TimeoutError):
            said = f"it did not answer within {OPEN_S:g} s"
        else:
            # Only the type: the text of a transport's error may hold an address with its credentials.
            said = "it ended before it answered" if _is_closed(error) else type(error).__name__
        return BackendError(
            f"the MCP server {told.name} cannot be used: {said}", details={"reason": "tools_unavailable", "retryable": True}
        )

    async def close(self) -> None:
        """End the session; the next call opens another."""
        async with self._lock:
            await self._end()

    async def _end(self) -> None:
        task, self._task, self._client = self._task, None, None
        if task is None:
            return
        self._closing.set()
        _, pending = await asyncio.wait((task,), timeout=PATIENCE_S)
        if pending:
            await cancel_and_wait(task, within_s=PATIENCE_S)


class Seldom(logging.Filter):
    """Passes `MOST` records of a logger per minute: the SDK logs each line of a child that is no message."""

    MOST = 10

    def __init__(self) -> None:
        super().__init__()
        self._since = SYSTEM.monotonic()
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = SYSTEM.monotonic()
        if now - self._since > 60:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= self.MOST


_seldom = Seldom()


def _sdk() -> tuple[Any, Any, Any, Any]:
    """The SDK's modules: importing them takes more than a second, so this runs in a thread."""
    try:
        import httpx2  # noqa: PLC0415
        import mcp  # noqa: PLC0415
        from mcp.client import stdio, streamable_http  # noqa: PLC0415
    except ImportError:
        raise BackendError(
            "MCP servers need an extra: install agentmesh[tools]", details={"reason": "tools_unavailable", "retryable": False}
        ) from None
    logging.getLogger(stdio.__name__).addFilter(_seldom)
    return mcp, stdio, streamable_http, httpx2


def _full(server: str, tool: str) -> str:
    """The name that the model sees: characters that APIs refuse are replaced."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in f"{server}__{tool}")[:64]


def _refusal(error: Exception) -> str | None:
    """The server's text, if it answered with an error; None if the session failed."""
    from mcp import MCPError  # noqa: PLC0415 - loaded already where this is called
    from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT  # noqa: PLC0415

    if isinstance(error, MCPError) and error.code not in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
        return error.message
    return None


def _is_closed(error: BaseException) -> bool:
    """Whether the session ended during a request."""
    from mcp import MCPError  # noqa: PLC0415 - loaded already where this is called
    from mcp.types import CONNECTION_CLOSED  # noqa: PLC0415

    return isinstance(error, MCPError) and error.code == CONNECTION_CLOSED


def _text(answer: Any) -> str:
    """The text of a result. Other content is named by its type, not passed on."""
    parts = []
    for block in answer.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and hasattr(block.resource, "text"):
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type}: {getattr(block, 'mime_type', None) or 'not text'}, left out]")
    return "\n".join(parts)
