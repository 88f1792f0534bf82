"""An MCP server for tests: as a child process (`python mcp_server.py FILE`), or as an ASGI application.

Each process that starts notes its pid in FILE, a line each; each call of `pay` notes its key.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent, ToolAnnotations

KEY = "agentmesh/idempotencyKey"
CHAIN = "agentmesh/chain"


def made(notes: Path) -> MCPServer:
    """The server. `notes` is the file that it writes to."""
    server = MCPServer("fake")

    def note(line: str) -> None:
        with notes.open("a") as file:
            file.write(f"{line}\n")

    def noted(line: str) -> int:
        return notes.read_text().splitlines().count(line)

    note(f"pid {os.getpid()}")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(annotations=ToolAnnotations(idempotent_hint=True))
    async def put(ctx: Context[Any, Any]) -> str:
        """Put something, under the key of the call."""
        return str((ctx.request_context.meta or {}).get(KEY))

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def whose(ctx: Context[Any, Any]) -> str:
        """Say on whose behalf the call is, as it came."""
        return json.dumps((ctx.request_context.meta or {}).get(CHAIN))

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def above(ctx: Context[Any, Any]) -> str:
        """Say which trace context the call bears."""
        return str((ctx.request_context.meta or {}).get("traceparent"))

    @server.tool()
    async def pay(amount: int) -> str:
        """Pay. The process dies before it can answer if the amount is zero."""
        note(f"pay {amount}")
        if amount == 0:
            os._exit(1)
        return f"paid {amount}"

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def look(fatal: bool = False) -> str:
        """Look. The first process that looks dies of it, if told so."""
        note("look")
        if fatal and noted("look") == 1:
            os._exit(1)
        return "seen"

    _odd_tools(server, note)
    return server


def _odd_tools(server: MCPServer, note: Callable[[str], None]) -> None:
    """Tools that answer in odd ways."""

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def hang() -> None:
        """Never answer."""
        await anyio.sleep_forever()

    @server.tool()
    async def fail() -> None:
        """Fail."""
        raise ToolError("the shelf is empty")

    @server.tool()
    async def rebuild(ctx: Context[Any, Any]) -> str:
        """Replace the tool `add` by the tool `sum`, and say so to clients of both protocols."""

        async def total(a: int, b: int) -> int:
            return a + b

        server.remove_tool("add")
        server.add_tool(total, name="sum")
        await ctx.notify_tools_changed()
        await ctx.request_context.session.send_tool_list_changed()
        return "rebuilt"

    @server.tool()
    async def deaf() -> None:
        """Heed neither signals nor the end of the input from now on, and start a process that does not either."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        forked = os.fork()
        if forked == 0:
            os.setsid()
            while True:
                signal.pause()
        note(f"pid {forked}")
        threading.Thread(target=signal.sigwait, args=({signal.SIGUSR1},)).start()

    @server.tool()
    async def environment() -> list[str]:
        """Names and values of the environment."""
        return sorted(f"{name}={value}" for name, value in os.environ.items())

    @server.tool()
    async def picture() -> list[TextContent | ImageContent]:
        """Text and an image."""
        return [TextContent(type="text", text="a cat"), ImageContent(type="image", data="AAAA", mime_type="image/png")]


if __name__ == "__main__":
    made(Path(sys.argv[1])).run("stdio")
