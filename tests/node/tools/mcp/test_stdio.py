"""Servers that are child processes: what they write is bounded, and they end with their node."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentmesh_node.tools.mcp import stdio as transport
from node.tools.mcp.serving import MCP_SERVER, alive, box, call, odd, pids, stdio
from support import eventually, run

pytestmark = pytest.mark.processes


@contextmanager
def filtered_anew() -> Iterator[None]:
    """The log of this module's transport passes its first lines again."""
    former, now = transport.log.filters[:], transport.Seldom()
    for each in former:
        transport.log.removeFilter(each)
    transport.log.addFilter(now)
    try:
        yield
    finally:
        transport.log.removeFilter(now)
        for each in former:
            transport.log.addFilter(each)


def test_a_server_that_writes_what_is_no_message_does_not_fill_the_log(notes: Path, caplog: pytest.LogCaptureFixture) -> None:
    serve = f"import runpy; runpy.run_path({str(MCP_SERVER)!r}, run_name='__main__')"
    flood = f"print('no message\\n' * 1000, flush=True); {serve}"

    async def check() -> None:
        toolbox = box(stdio(notes, args=("-c", flood, str(notes))))
        assert (await toolbox.specs())[0].name == "shop__add"
        await toolbox.close()

    with filtered_anew():
        run(check(), 60)
    said = [record for record in caplog.records if record.name == transport.log.name]
    assert 0 < len(said) <= transport.Seldom.MOST


@pytest.mark.case(428)
def test_a_line_without_end_ends_the_child_and_not_the_node(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        toolbox = box(odd("talkative"))
        await toolbox.specs()
        with caplog.at_level(logging.WARNING):
            found = await call(toolbox, "pay")
        assert (found.ok, found.error) == (False, "unknown_outcome")
        await toolbox.close()

    run(check(), 60)
    assert "a line that is too long" in caplog.text


NODE = """
import asyncio, sys
from node.tools.mcp.serving import box, call, stdio
from pathlib import Path

async def main():
    toolbox = box(stdio(Path(sys.argv[1])))
    await toolbox.specs()
    assert (await call(toolbox, "deaf")).ok
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.case(426)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child ends when it heeds the end of its input")
def test_a_child_that_heeds_nothing_ends_with_a_node_that_is_killed(notes: Path) -> None:
    tests = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": tests}
    with subprocess.Popen([sys.executable, "-c", NODE, str(notes)], stdout=subprocess.PIPE, env=env) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"up\n"
        (server, child) = pids(notes)
        assert alive(server)
        assert alive(child)
        node.send_signal(signal.SIGKILL)

    async def check() -> None:
        await eventually(lambda: not alive(server) and not alive(child), what="the end of the server and its child")

    run(check())


def test_closing_ends_a_child_that_heeds_nothing_and_what_it_started(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await toolbox.specs()
        assert (await call(toolbox, "deaf")).ok
        await toolbox.close()
        await eventually(lambda: not any(alive(pid) for pid in pids(notes)), what="the end of both")

    run(check(), 60)
