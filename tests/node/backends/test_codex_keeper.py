"""What Codex leaves behind when it ends is ended, and its exit code is handed on."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys

import pytest

from agentmesh_node.backends.codex.process import KEEPER
from node.backends.codex import processes

pytestmark = pytest.mark.processes

KEPT = (sys.executable, "-I", "-S", str(KEEPER), "/bin/sh", "-c")


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
