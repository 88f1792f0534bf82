"""The servers that run as child processes of this node: how many, which of them are shared, and the lists that are known.

A child runs from the first call of one of its tools until its agents sleep or its place is needed. What a class's servers offer
is read once and known from then on, so a thousand agents of a class start one child and not a thousand.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools.mcp.failures import unavailable
from agentmesh_node.tools.mcp.session import McpSession
from agentmesh_node.tools.mcp.tool_list import McpTool

CHILDREN = 64
"""Most children of a node at a time, unless it is set (`MESH_MCP_CHILDREN`)."""
LISTS = 256
"""Most declarations whose lists are known."""
ADMIT_S = 30.0
"""Longest wait for a place, in seconds."""

type Declaration = McpStdio | McpHttp


class ServerPool:
    """The children of one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._running: OrderedDict[McpSession, None] = OrderedDict()
        """Sessions with a child, the one that was used longest ago first."""
        self._shared: dict[str, McpSession] = {}
        self._users: dict[McpSession, int] = {}
        self._lists: OrderedDict[str, tuple[McpTool, ...]] = OrderedDict()
        self._freed = asyncio.Event()

    # --- sessions ---------------------------------------------------------------------------------------------------
    def session(self, declaration: Declaration, environ: Mapping[str, str]) -> McpSession:
        """A session for an agent: one of its own, or the one that the agents of this node share. `release` gives it back."""
        if not isinstance(declaration, McpStdio):
            return McpSession(declaration, environ)
        key = repr(declaration)
        session = self._shared.get(key)
        if session is None:
            session = McpSession(declaration, environ, places=self)
            if declaration.shared:
                self._shared[key] = session
        self._users[session] = self._users.get(session, 0) + 1
        return session

    async def release(self, session: McpSession) -> None:
        """An agent uses the session no more. It ends when none does."""
        left = self._users.pop(session, 1) - 1
        if left:
            self._users[session] = left
            return
        if self._shared.get(key := repr(session.declaration)) is session:
            del self._shared[key]
        await session.close()

    # --- places -----------------------------------------------------------------------------------------------------
    async def admit(self, session: McpSession) -> None:
        """Return when `session` may start a child. One that nobody is using ends for it, if there is no place.

        Raises:
            BackendError: `tools_unavailable`: all are in use.
        """
        try:
            async with asyncio.timeout(ADMIT_S):
                while len(self._running) >= self.most:
                    self._freed.clear()
                    if not await self._make_room():
                        await self._freed.wait()
                self._running[session] = None
        except TimeoutError:
            said = f"this node runs as many servers as it may, and all of its {self.most} are in use (MESH_MCP_CHILDREN)"
            raise unavailable(session.declaration.name, said) from None

    async def _make_room(self) -> bool:
        for session in list(self._running):
            if await session.close_if_idle():
                return True
        return False

    def used(self, session: McpSession) -> None:
        """A call in `session` has ended."""
        if session in self._running:
            self._running.move_to_end(session)
        self._freed.set()

    def leave(self, session: McpSession) -> None:
        """Its child has ended."""
        self._running.pop(session, None)
        self._freed.set()

    # --- lists ------------------------------------------------------------------------------------------------------
    def known(self, declaration: Declaration) -> tuple[McpTool, ...] | None:
        """The newest list of a server that is a child; None if it was never read here."""
        return self._lists.get(repr(declaration)) if isinstance(declaration, McpStdio) else None

    def learn(self, declaration: Declaration, tools: tuple[McpTool, ...]) -> None:
        """Note a server's list."""
        if isinstance(declaration, McpStdio):
            self._lists[key := repr(declaration)] = tools
            self._lists.move_to_end(key)
            if len(self._lists) > LISTS:
                self._lists.popitem(last=False)


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, ServerPool] = WeakKeyDictionary()
_settings = {"most": CHILDREN}


def pool() -> ServerPool:
    """The pool of the running loop."""
    return _pools.setdefault(asyncio.get_running_loop(), ServerPool(_settings["most"]))


def bound_children(most: int) -> None:
    """How many children the pools made from now on may have: a setting of the node."""
    _settings["most"] = most
