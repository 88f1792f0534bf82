"""What a command leaves behind when it ends is ended, and its exit code is handed on; with `--node` it ends with the node."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys

import pytest

from agentmesh_node.tools import keeper
from node.backends.codex import processes
from support import eventually, run

pytestmark = pytest.mark.processes

KEPT = (sys.executable, "-I", "-S", keeper.__file__, "/bin/sh", "-c")


def test_what_is_left_without_a_parent_is_killed() -> None:
    mark = f"{secrets.randbelow(10**9)}.25"
    # Each in a session of its own, as the shells are in which Codex runs commands.
    script = f"""
        (setsid sleep {mark} & exec setsid sleep {mark}) &
        until [ "$(grep -lsa '^sleep.{mark}' /proc/[0-9]*/cmdline | wc -l)" = 2 ]; do :; done
        echo up
    """
    done = subprocess.run((*KEPT, script), stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "up\n"
    assert processes(f"sleep {mark}") == []


@pytest.mark.parametrize(
    ("script", "code"), [("exit 3", 3), ("kill -KILL $$", -signal.SIGKILL), ("kill -TERM $$", -signal.SIGTERM)]
)
def test_its_end_is_the_commands(script: str, code: int) -> None:
    assert subprocess.run((*KEPT, script), timeout=60, check=False).returncode == code


def test_what_it_is_told_goes_to_the_command() -> None:
    with subprocess.Popen(
        (*KEPT, "trap 'echo heard; exit 5' TERM; echo up; while :; do :; done"), stdout=subprocess.PIPE
    ) as kept:
        assert kept.stdout is not None
        assert kept.stdout.readline() == b"up\n"
        kept.terminate()
        assert kept.stdout.read() == b"heard\n"
        assert kept.wait(60) == 5


def test_its_input_ends_for_the_command_with_whoever_held_it() -> None:
    with subprocess.Popen((*KEPT, "cat; echo end"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kept:
        assert kept.communicate(b"said ", timeout=60)[0] == b"said end\n"


def test_a_program_that_cannot_be_run_is_named() -> None:
    command = (*KEPT[:-2], "/no/such/program")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "/no/such/program cannot be run" in done.stderr


def test_a_command_ends_with_the_node_that_was_named() -> None:
    mark = f"{secrets.randbelow(10**9)}.75"
    # Ignored signals stay ignored in what it starts.
    script = f"trap '' TERM HUP INT; setsid sleep {mark} & setsid sleep {mark} & echo up; wait"
    node = "import os, subprocess, sys; subprocess.Popen([*sys.argv[1:5], '--node', str(os.getpid()), *sys.argv[5:]]).wait()"
    with subprocess.Popen((sys.executable, "-c", node, *KEPT, script), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        assert parent.stdout.read() == b"", "all that held the pipe have ended"
    run(eventually(lambda: not processes(f"sleep {mark}"), what="the end of the keeper, too"))


def test_a_node_that_ended_before_it_was_watched_is_noticed() -> None:
    command = (*KEPT[:4], "--node", str(os.getppid()), *KEPT[4:], "echo begun")
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
