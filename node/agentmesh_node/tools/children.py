"""Child processes that end with the node, with all that they have started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

KEEPER = Path(__file__).with_name("keeper.py")


def kept(command: Sequence[str], path: str, *, cwd: str | None = None, node: int | None = None) -> list[str]:
    """The command, run by the keeper on Linux. Elsewhere, or if there is no such program, it is as it was.

    Args:
        path: the PATH by which a program without a directory is found.
        cwd: where it will run.
        node: the pid of the node, if it is to be killed with it; else it must end with its input by itself.
    """
    program: str | None = command[0]
    if os.path.dirname(command[0]):
        whole = os.path.join(cwd or os.curdir, command[0])
        program = command[0] if os.path.isfile(whole) and os.access(whole, os.X_OK) else None
    else:
        program = shutil.which(command[0], path=path)
    if sys.platform != "linux" or program is None:
        return list(command)
    told = () if node is None else ("--node", str(node))
    return [sys.executable, "-I", "-S", str(KEEPER), *told, program, *command[1:]]


def descendants(pid: int) -> list[int]:
    """All descendants of a process, if this system lists them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def signal_to(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has ended gets none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


async def ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Return when the process has ended, or after `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()


def _kill_all(pid: int) -> None:
    """Kill a process and all that it has started. Each is stopped first: a shell whose command is killed begins the next one."""
    found: set[int] = set()
    new = {pid}
    while new:
        for one in new:
            signal_to(one, signal.SIGSTOP)
        found |= new
        new = set(descendants(pid)) - found
    for one in found:
        signal_to(one, signal.SIGKILL)


async def end(process: asyncio.subprocess.Process, within_s: float) -> None:
    """End a child: its input ends, then it gets SIGTERM, then it is killed with all that it has started.

    Args:
        within_s: how long it may take to heed each, in seconds.
    """
    try:
        if process.stdin is not None:
            process.stdin.close()
        await ended(process, within_s)
        if process.returncode is None:
            signal_to(process.pid, signal.SIGTERM)
            await ended(process, within_s)
    finally:
        # Without a wait, so that even a second cancellation leaves no process behind.
        if process.returncode is None:
            _kill_all(process.pid)
    await ended(process, within_s)
