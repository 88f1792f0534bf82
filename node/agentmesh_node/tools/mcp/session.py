"""A session with an MCP server: opened when it is needed, and anew when it has died; listed and called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from agentmesh.edge.tasks import Background
from agentmesh.errors import BackendError
from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools.calls import PATIENCE_S, bounded
from agentmesh_node.tools.mcp.connection import OPEN_S, McpConnection
from agentmesh_node.tools.mcp.failures import CallFailure, call_failure, unavailable
from agentmesh_node.tools.mcp.tool_list import McpTool, read_list

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("agentmesh.node")

LISTEN_S = 5.0
"""How long a server may take to say that it will tell of changes; its tools are listed in any case."""


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
        self._lock = asyncio.Lock()
        self._connection: McpConnection | None = None
        self._former: list[McpConnection] = []
        """Connections that were replaced while calls were made in them: they end behind these."""
        self._listening = Background(f"mcp {declaration.name}: changes")

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as this side knows."""
        return self._connection is not None and self._connection.alive

    async def open(self) -> None:
        """Open it and list the server's tools, unless it is open.

        Raises:
            BackendError: `details["reason"]` is `tools_unavailable`: the server cannot be started, reached or listed.
        """
        async with self._lock:
            if not self.alive:
                await self._open()

    async def renew(self, generation: int) -> None:
        """Open another one in the place of that `generation`, if nobody has done so since. Calls in the former one go on.

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
            connection = self._connection
            if connection is None or not connection.alive:
                return
            await self._listen(connection.client)
            if self.stale:
                await self._relist(connection.client)

    async def relist(self) -> None:
        """List the tools again.

        Raises:
            BackendError: as `open`. The list is as it was.
        """
        async with self._lock:
            if self._connection is not None and self._connection.alive:
                await self._relist(self._connection.client)

    async def call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any], within_s: float) -> Any:
        """The answer of a tool, by the server's own name of it, within `within_s` seconds; or a `CallFailure`."""
        from mcp.types import CallToolRequest, CallToolRequestParams  # noqa: PLC0415 - loaded by `open`

        connection = self._connection
        if connection is None or not connection.alive:  # it died, or somebody needed its place
            return CallFailure("unknown_session", "its session has ended")
        params = CallToolRequestParams.model_validate({"name": tool, "arguments": arguments, "_meta": meta})
        with connection.calling() as client:
            work = client.session.send_request(CallToolRequest(params=params), _answers())
            try:
                return await bounded(work, within_s, tool)
            except Exception as error:  # noqa: BLE001 - an SDK and its transports raise anything
                return call_failure(error)
            finally:
                if self._places is not None:
                    self._places.used(self)

    async def close(self) -> None:
        """End it."""
        async with self._lock:
            await self._end()

    async def close_if_idle(self) -> bool:
        """End it unless a call is being made, or it is being opened or listed. Returns whether it has ended."""
        connection = self._connection
        if self._lock.locked() or connection is None or connection.busy:
            return False
        async with self._lock:
            connection.close_behind_calls()  # a call that comes now opens it again
            await self._end()
        return connection.over

    # --- opening ------------------------------------------------------------------------------------------------------
    async def _open(self) -> None:
        replaced = self._connection
        if isinstance(self.declaration, McpHttp) and replaced is not None and replaced.busy:
            replaced.close_behind_calls()
            self._former = [*(former for former in self._former if not former.over), replaced]
            self._connection = None
            await self._listening.close(PATIENCE_S)
        else:
            await self._end()
        if self._places is not None:
            await self._places.admit(self)
        self.generation += 1
        connection = self._connection = McpConnection(self.declaration, self._environ, self._heard)
        try:
            async with asyncio.timeout(OPEN_S):
                await connection.open(self._leave)
                await self._listen(connection.client)
                await self._list(connection.client)
        except Exception as error:  # noqa: BLE001 - an SDK and its transports raise anything
            await self._end()
            raise self._unavailable(error) from None
        except BaseException:
            connection.close_behind_calls()
            raise

    def _leave(self) -> None:
        if self._places is not None:
            self._places.leave(self)

    async def _end(self) -> None:
        await self._listening.close(PATIENCE_S)
        connection, self._connection = self._connection, None
        former, self._former = self._former, []
        for each in (connection, *former):
            if each is not None:
                await each.close()

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
            with suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_S):
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


@cache
def _answers() -> Any:
    """What a call may be answered with, for the SDK."""
    from mcp.types import CallToolResult, InputRequiredResult  # noqa: PLC0415 - loaded by `open`
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(CallToolResult | InputRequiredResult)
