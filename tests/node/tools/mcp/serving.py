"""MCP servers on this machine, and toolboxes that use them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

import fakes
from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools import Call, Result, Toolbox

MCP_SERVER = Path(fakes.__file__).with_name("mcp_server.py")
"""To be run: to import it is to import the whole SDK."""
ODD_SERVER = MCP_SERVER.with_name("odd_mcp_server.py")
TURN = Turn("a", "1", 1, steps=UnjournaledSteps(key="turn-7"))


def stdio(notes: Path, **how: Any) -> McpStdio:
    return McpStdio(**{"name": "shop", "command": sys.executable, "args": (str(MCP_SERVER), str(notes)), **how})


def odd(child: str, **how: Any) -> McpStdio:
    """One of the odd servers as a child process."""
    return McpStdio(name="shop", command=sys.executable, args=(str(ODD_SERVER), child), **how)


def http(url: str, **how: Any) -> McpHttp:
    return McpHttp(**{"name": "shop", "url": url, **how})


def box(*declared: Any) -> Toolbox:
    made: Agent[Any] = type("Having", (Agent,), {"tools": declared})()
    return Toolbox(made)


async def call(toolbox: Toolbox, name: str, **given: Any) -> Result:
    return await toolbox.run(Call("c1", f"shop__{name}", given), TURN)


def pids(notes: Path) -> list[int]:
    return [int(line.split()[1]) for line in notes.read_text().splitlines() if line.startswith("pid")]


def count(notes: Path, line: str) -> int:
    return notes.read_text().splitlines().count(line)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """The address at which an ASGI application is served."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", lifespan="auto"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
