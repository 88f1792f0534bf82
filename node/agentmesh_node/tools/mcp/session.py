"""One session with an MCP server: opened, held by a task of its own, listed, called and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from agentmesh.edge.tasks import Background, cancel_and_wait
from agentmesh.errors import BackendError
from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools.calls import PATIENCE_S, bounded
from agentmesh_node.tools.mcp.failures import CallFailure, call_failure, unavailable
from agentmesh_node.tools.mcp.tool_list import McpTool, read_list

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("agentmesh.node")

OPEN_S = 30.0
"""Longest time for starting or reaching a server, and listing its tools."""
END_S = 10.0
"""Longest time for its end: a child that heeds nothing is killed after some four seconds."""
LATER_S = 30.0
"""How much longer than a call's own time-out the SDK and its connection wait: the mesh's is to come first."""


class Places(Protocol):
    """Who says how many sessions may have a child process (`pool.ServerPool`)."""

    async def admit(self, session: McpSession) -> None:
        """Return when `session` may start a child."""

    def used(self, session: McpSession) -> None:
        """A call in `session` has ended."""

    def leave(self, session: McpSession) -> None:
        """Its child has ended."""


class McpSession:
    """A session with one server. It can be opened again after its end."""

    def __init__(self, declaration: McpStdio | McpHttp, environ: Mapping[str, str], *, places: Places | None = None) -> None:
        self.declaration = declaration
        self.tools: tuple[McpTool, ...] = ()
        """The tools that the server had when it was last asked."""
        self.stale = False
        """Whether the server has said since that they are others."""
        self.generation = 0
        """How often it was opened: what a call fails in may have been replaced by another call."""
        self._environ = environ
        self._places = places
        self._calls = 0
        """Calls that are being made."""
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._ended = False
        self._listening = Background(f"mcp {declaration.name}: changes")

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as this side knows."""
        return self._client is not None and self._task is not None and not self._task.done() and not self._ended

    async def open(self) -> None:
        """Open it and list the server's tools, unless it is open.

        Raises:
            BackendError: `details["reason"]` is `tools_unavailable`: the server cannot be started, reached or listed.
        """
        async with self._lock:
            if not self.alive:
                await self._open()

    async def renew(self, generation: int) -> None:
        """Open another one in the place of that `generation`, if nobody has done so since.

        Raises:
            BackendError: as `open`.
        """
        async with self._lock:
            if self.generation == generation or not self.alive:
                await self._open()

    async def refresh(self) -> None:
        """List the tools again if the server has said that they changed.

        Raises:
            BackendError: as `open`. The list is as it was.
        """
        async with self._lock:
            client = self._client
            if client is None or not self.alive:
                return
            await self._listen(client)
            if self.stale:
                await self._relist(client)

    async def relist(self) -> None:
        """List the tools again.

        Raises:
            BackendError: as `open`. The list is as it was.
        """
        async with self._lock:
            if self._client is not None and self.alive:
                await self._relist(self._client)

    async def call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> Any:
        """The answer of a tool, by the server's own name of it; or a `CallFailure`. Bounded by the declared time-out."""
        from mcp.types import CallToolRequest, CallToolRequestParams  # noqa: PLC0415 - loaded by `open`

        client = self._client
        if client is None:  # somebody needed its place
            return CallFailure("unknown_session", "its session has been closed")
        params = CallToolRequestParams.model_validate({"name": tool, "arguments": arguments, "_meta": meta})
        work = client.session.send_request(CallToolRequest(params=params), _answers())
        self._calls += 1
        try:
            return await bounded(work, self.declaration.timeout_s, tool)
        except Exception as error:  # noqa: BLE001 - an SDK and its transports raise anything
            return call_failure(error)
        finally:
            self._calls -= 1
            if self._places is not None:
                self._places.used(self)

    async def close(self) -> None:
        """End it."""
        async with self._lock:
            await self._end()

    async def close_if_idle(self) -> bool:
        """End it unless a call is being made, or it is being opened or listed. Returns whether it has ended."""
        if self._calls or self._lock.locked():
            return False
        async with self._lock:
            self._client = None  # a call that comes now opens it again
            await self._end()
        return True

    # --- opening ------------------------------------------------------------------------------------------------------
    async def _open(self) -> None:
        await self._end()
        if self._places is not None:
            await self._places.admit(self)
        self.generation += 1
        self._closing, self._ended = asyncio.Event(), False
        ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        # A task of its own: the SDK's cancel scopes must be left by the task that entered them.
        self._task = asyncio.create_task(self._hold(ready, self._closing), name=f"mcp {self.declaration.name}")
        try:
            async with asyncio.timeout(OPEN_S):
                client = await ready
                await self._listen(client)
                await self._list(client)
            self._client = client
        except Exception as error:  # noqa: BLE001 - an SDK and its transports raise anything
            await self._end()
            raise self._unavailable(error) from None

    async def _hold(self, ready: asyncio.Future[Client], closing: asyncio.Event) -> None:
        """Hold a session open until `closing` is set."""
        try:
            async with AsyncExitStack() as stack:
                client = await self._connect(stack)
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
        sdk = await asyncio.to_thread(load)
        told = self.declaration
        if isinstance(told, McpStdio):
            env = {**told.env, **{name: self._variable(name) for name in told.env_from}}
            transport = sdk.stdio.child_streams(told, env)
        else:
            headers = {name: self._variable(variable) for name, variable in told.headers_from_env.items()}
            watched = sdk.wire.WatchedTransport(sdk.httpx2.AsyncHTTPTransport())
            timeout = sdk.httpx2.Timeout(told.timeout_s + LATER_S, connect=min(told.timeout_s, OPEN_S))
            client = sdk.httpx2.AsyncClient(headers=headers, timeout=timeout, transport=watched)
            await stack.enter_async_context(client)
            transport = sdk.http.streamable_http_client(told.url, http_client=client, max_sse_event_size=sdk.wire.LONGEST_MESSAGE)
        mended = self._mended(sdk, transport, direct=isinstance(told, McpStdio))
        longest = max(told.timeout_s, OPEN_S) + LATER_S
        opened: Client = await stack.enter_async_context(
            sdk.mcp.Client(mended, read_timeout_seconds=longest, message_handler=self._heard, cache=None)
        )
        return opened

    @asynccontextmanager
    async def _mended(self, sdk: Any, transport: Any, *, direct: bool) -> Any:
        async with transport as (reading, writing):
            yield sdk.wire.MendedStream(reading, direct=direct, ended=self._note_end), writing

    def _note_end(self) -> None:
        self._ended = True

    def _variable(self, name: str) -> str:
        value = self._environ.get(name)
        if not value:
            said = f"it needs the variable {name}; set it in the node's environment"
            raise unavailable(self.declaration.name, said, retryable=False)
        return value

    def _unavailable(self, error: BaseException) -> BackendError:
        told = self.declaration
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, BackendError):
            return error
        if isinstance(told, McpStdio) and isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            return unavailable(told.name, f"its command {told.command!r} cannot be run: {error.strerror}")
        if isinstance(error, TimeoutError):
            return unavailable(told.name, f"it did not answer within {OPEN_S:g} s")
        failure = call_failure(error) if isinstance(error, Exception) else CallFailure("lost", type(error).__name__)
        if failure.verdict == "lost" and isinstance(told, McpStdio):
            return unavailable(told.name, "it ended before it answered")
        if failure.verdict == "unreadable":
            return unavailable(told.name, failure.text, retryable=False)
        # The text is the server's own or this mesh's. Of an exception only the type is shown: the text of a transport's error may
        # hold an address with its credentials.
        return unavailable(told.name, failure.text or type(error).__name__)

    async def _end(self) -> None:
        await self._listening.close(PATIENCE_S)
        task, self._task, self._client = self._task, None, None
        if task is not None:
            self._closing.set()
            _, pending = await asyncio.wait((task,), timeout=END_S)
            if pending:
                await cancel_and_wait(task, within_s=PATIENCE_S)
        if self._places is not None:
            self._places.leave(self)

    # --- tools --------------------------------------------------------------------------------------------------------
    async def _relist(self, client: Client) -> None:
        try:
            async with asyncio.timeout(OPEN_S):
                await self._list(client)
        except Exception as error:  # noqa: BLE001 - as in `_open`
            if isinstance(error, BackendError) or call_failure(error).verdict != "unknown_session":
                raise self._unavailable(error) from None
            await self._open()

    async def _list(self, client: Client) -> None:
        self.stale = False  # what is said from here on is newer than the list
        try:
            self.tools = await read_list(self.declaration, lambda cursor: client.list_tools(cursor=cursor))
        except BaseException:
            self.stale = True
            raise

    async def _heard(self, message: Any) -> None:
        from mcp.types import ToolListChangedNotification  # noqa: PLC0415 - loaded by `open`

        if isinstance(message, ToolListChangedNotification):
            self.stale = True

    async def _listen(self, client: Client) -> None:
        """Have the server say when its tools change, where it must be asked to. What it says comes to `_heard`, too."""
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS  # noqa: PLC0415 - loaded by `open`

        tools = client.server_capabilities.tools
        says = tools is not None and tools.list_changed and client.protocol_version in MODERN_PROTOCOL_VERSIONS
        if says and not self._listening.running:
            begun = asyncio.Event()
            self._listening.begin(self._changes(client, begun))
            await begun.wait()

    async def _changes(self, client: Client, begun: asyncio.Event) -> None:
        """Listen until the stream ends. The next model call begins another one and asks for the list: it may have changed."""
        try:
            async with client.listen(tools_list_changed=True) as changes:
                begun.set()
                async for _ in changes:
                    self.stale = True
        except Exception as error:  # noqa: BLE001 - as in `_open`
            log.debug("a server's changes are not heard", extra={"server": self.declaration.name, "error": repr(error)})
        finally:
            self.stale = True
            begun.set()


class Sdk(NamedTuple):
    """The SDK's modules, and those here that need them."""

    mcp: Any
    stdio: Any
    http: Any
    httpx2: Any
    wire: Any


def load() -> Sdk:
    """The modules: importing them takes more than a second, so this runs in a thread.

    Raises:
        BackendError: they are not installed.
    """
    try:
        import httpx2  # noqa: PLC0415
        import mcp  # noqa: PLC0415
        from mcp.client import streamable_http  # noqa: PLC0415

        from agentmesh_node.tools.mcp import stdio, wire  # noqa: PLC0415
    except ImportError:
        raise BackendError(
            "MCP servers need an extra: install agentmesh[tools]", details={"reason": "tools_unavailable", "retryable": False}
        ) from None
    return Sdk(mcp, stdio, streamable_http, httpx2, wire)


@cache
def _answers() -> Any:
    """What a call may be answered with, for the SDK."""
    from mcp.types import CallToolResult, InputRequiredResult  # noqa: PLC0415 - loaded by `open`
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(CallToolResult | InputRequiredResult)
