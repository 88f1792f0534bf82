"""A server as a child process, as a transport of the SDK.

The SDK's own transport lets the child outlive a node that is killed, and reads a line however long it is. Here the child ends
with its node (`tools/keeper.py`), and a line has a bound.

Importing this module imports the SDK (1.3 s): do it in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage
from pydantic import TypeAdapter

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.tools import McpStdio
from agentmesh_node.tools.children import end, kept
from agentmesh_node.tools.mcp.wire import LONGEST_MESSAGE

log = logging.getLogger("agentmesh.node.mcp")

CLOSE_S = 2.0
"""How long a child may take to end after its input has ended, and again after SIGTERM."""
STREAM_ERRORS = (anyio.ClosedResourceError, anyio.BrokenResourceError)
_messages: TypeAdapter[Any] = TypeAdapter(JSONRPCMessage)


class Seldom(logging.Filter):
    """Passes `MOST` records of a logger per minute: a child may write any number of lines that are no messages."""

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


log.addFilter(Seldom())


@asynccontextmanager
async def child_streams(told: McpStdio, variables: Mapping[str, str]) -> AsyncGenerator[Any]:
    """Start a server, and give the streams of its messages. It has ended when this is left.

    Args:
        variables: its environment, besides PATH and the like.

    Raises:
        OSError: it cannot be started.
    """
    env = get_default_environment() | dict(variables)
    command = [told.command, *told.args]
    process = await asyncio.create_subprocess_exec(
        *kept(command, env.get("PATH", os.defpath), cwd=told.cwd, node=os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=env,
        cwd=told.cwd,
        limit=LONGEST_MESSAGE,
        start_new_session=True,  # a terminal's Ctrl-C is for the node alone
    )
    try:
        to_reader, reading = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        writing, to_writer = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = (
            asyncio.create_task(_read(told.name, process, to_reader), name=f"mcp {told.name}: output"),
            asyncio.create_task(_write(process, to_writer, to_reader), name=f"mcp {told.name}: input"),
        )
        try:
            yield reading, writing
        finally:
            reading.close()
            writing.close()
            await end(process, CLOSE_S)
            await cancel_and_wait(*tasks, within_s=CLOSE_S)
    finally:
        if process.returncode is None:
            await end(process, CLOSE_S)


async def _read(name: str, process: asyncio.subprocess.Process, out: Any) -> None:
    """Hand on each line that is a message. When nobody takes them any more the rest is thrown away, so that the child can end."""
    assert process.stdout is not None
    async with out:
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                log.warning("an MCP server wrote a line that is too long", extra={"server": name, "most": LONGEST_MESSAGE})
                break
            if not line:
                break
            try:
                message = _messages.validate_json(line, by_name=False)
            except ValueError:
                if line.strip():
                    log.warning("an MCP server wrote what is no message", extra={"server": name, "line": repr(line[:200])})
                continue
            try:
                await out.send(SessionMessage(message))
            except STREAM_ERRORS:
                break
    with suppress(ValueError, OSError):
        while await process.stdout.read(1 << 16):
            pass


async def _write(process: asyncio.subprocess.Process, given: Any, out: Any) -> None:
    """Write each message as a line. If the child takes no more, its messages end: it would not answer."""
    assert process.stdin is not None
    try:
        async with given:
            async for message in given:
                line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
    except (*STREAM_ERRORS, OSError):
        await out.aclose()
