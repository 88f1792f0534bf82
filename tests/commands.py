"""`mesh ...` as its users run it: a process of its own, with its output and its exit code."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import roled
from preloaded import AVAILABLE, MESH, NODE, Forker
from support import eventually

PROGRAM = (sys.executable, "-m", MESH)
"""How to start it without its script."""
PATIENCE_S = 150.0
"""How long one may take."""


def completed(
    program: str, arguments: Sequence[str], env: Mapping[str, str], *, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `python -m program *arguments` to its end.

    Raises:
        subprocess.TimeoutExpired: it does not end.
    """
    arguments, env = roled.command(program == NODE, arguments, dict(env))
    if not AVAILABLE:
        return subprocess.run(
            [sys.executable, "-m", program, *arguments],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forker.mine().start(arguments, env, stdout=out, stderr=err, program=program)
        try:
            code = process.wait(timeout)
        finally:
            process.end()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([program, *arguments], code, out.read().decode(), err.read().decode())


async def mesh_command(
    arguments: Sequence[str], env: Mapping[str, str], *, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `mesh *arguments` to its end, while this loop goes on."""
    arguments, env = roled.command(False, arguments, dict(env))
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        if AVAILABLE:
            process = Forker.mine().start(arguments, env, stdin=given, stdout=out, stderr=err, program=MESH, cwd=cwd)
            try:
                await eventually(lambda: process.poll() is not None, PATIENCE_S, f"the end of mesh {' '.join(arguments)}")
            finally:
                process.end()
            code = process.wait()
        else:
            started = await asyncio.create_subprocess_exec(
                *PROGRAM, *arguments, stdin=given, stdout=out, stderr=err, env=env, cwd=cwd
            )
            try:
                async with asyncio.timeout(PATIENCE_S):
                    code = await started.wait()
            finally:
                if started.returncode is None:
                    started.kill()
                    await started.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(["mesh", *arguments], code, out.read().decode(), err.read().decode())
