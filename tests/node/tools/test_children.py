"""Child processes: how they are run, and that they end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from agentmesh_node.tools.children import KEEPER, descendants, end, kept
from node.tools.mcp.serving import alive
from support import run

PATH = os.environ.get("PATH", os.defpath)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no keeper elsewhere")
def test_a_program_is_run_by_the_keeper(tmp_path: Path) -> None:
    by = [sys.executable, "-I", "-S", str(KEEPER)]
    assert kept(["/bin/sh", "-c", "x"], PATH) == [*by, "/bin/sh", "-c", "x"]
    assert kept(["sh"], "/nowhere:/bin", node=7) == [*by, "--node", "7", "/bin/sh"]
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert kept(["./serve"], PATH, cwd=str(tmp_path)) == [*by, "./serve"], "found where it will run"


@pytest.mark.parametrize("command", ["no-such-program", "/", "/no/such/program", "./serve"])
def test_what_is_no_program_is_left_to_fail_by_its_own_name(command: str) -> None:
    assert kept([command], "/nowhere") == [command]


@pytest.mark.processes
def test_a_child_that_heeds_nothing_is_killed_with_what_it_started() -> None:
    async def check() -> None:
        script = "trap '' TERM; setsid sleep 600 & echo up; while :; do sleep 600; done"
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"up\n"
        begun = [child.pid, *descendants(child.pid)]
        assert len(begun) >= 2
        await end(child, 0.1)
        assert child.returncode is not None
        assert await child.stdout.read() == b"", "nobody holds its pipes any more"
        assert not any(alive(pid) for pid in begun)

    run(check())
