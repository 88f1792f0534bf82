"""One connection with an MCP server, held open by a task of its own until it is closed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError
from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools.calls import PATIENCE_S
from agentmesh_node.tools.mcp.failures import unavailable

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("agentmesh.node")

OPEN_S = 30.0
"""Longest time for starting or reaching a server, and listing its tools."""
END_S = 10.0
"""Longest time for its end: a child that heeds nothing is killed after some four seconds."""
LATER_S = 30.0
"""How much longer than a call's own time-out the SDK and its connection wait: the mesh's is to come first."""


class McpConnection:
    """A connection: a child process, or a session over HTTP. Once it has ended it is opened no more."""

    def __init__(
        self, declaration: McpStdio | McpHttp, environ: Mapping[str, str], heard: Callable[[Any], Awaitable[None]]
    ) -> None:
        """
        Args:
            heard: is given what the server says by itself.
        """
        self.declaration = declaration
        self._environ = environ
        self._heard = heard
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._ended = False
        self._calls = 0
        self._last = False
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as this side knows."""
        return self._client is not None and not self._ended and not self._closing.is_set() and not self.over

    @property
    def over(self) -> bool:
        """Whether nothing of it is left."""
        return self._task is None or self._task.done()

    @property
    def busy(self) -> bool:
        """Whether calls are being made in it."""
        return self._calls > 0

    @property
    def client(self) -> Client:
        """The SDK's client. Only after `open`."""
        assert self._client is not None
        return self._client

    async def open(self, ended: Callable[[], None] = lambda: None) -> None:
        """Open it.

        Args:
            ended: is called when nothing of it is left.

        Raises:
            BackendError: a variable or the SDK is missing.
            Exception: whatever the SDK and its transports raise.
        """
        ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        # A task of its own: the SDK's cancel scopes must be left by the task that entered them. And a context of its own: it
        # outlives the turn that opens it, and what is logged of it later is not that turn's.
        held = self._hold(ready)
        self._task = asyncio.create_task(held, name=f"mcp {self.declaration.name}", context=contextvars.Context())
        self._task.add_done_callback(lambda _: ended())
        try:
            self._client = await ready
        except BaseException:
            self._closing.set()
            raise

    @contextmanager
    def calling(self) -> Iterator[Client]:
        """The client for one call."""
        self._calls += 1
        try:
            yield self.client
        finally:
            self._calls -= 1
            if self._last and not self._calls:
                self._closing.set()

    def close_behind_calls(self) -> None:
        """Take no more calls, and end when those that are being made have ended."""
        self._last = True
        if not self._calls:
            self._closing.set()

    async def close(self) -> None:
        """End it."""
        self._closing.set()
        if self._task is not None:
            _, pending = await asyncio.wait((self._task,), timeout=END_S)
            if pending:
                await cancel_and_wait(self._task, within_s=PATIENCE_S)

    # --- what is held -------------------------------------------------------------------------------------------------
    async def _hold(self, ready: asyncio.Future[Client]) -> None:
        """Hold it open until it is to end."""
        try:
            async with AsyncExitStack() as stack:
                client = await self._connect(stack)
                if not ready.done():
                    ready.set_result(client)
                await self._closing.wait()
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
            timeout = sdk.httpx2.Timeout(told.timeout_s + LATER_S, connect=min(told.timeout_s, OPEN_S))
            client = await stack.enter_async_context(sdk.wire.WatchedClient(headers=headers, timeout=timeout))
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
