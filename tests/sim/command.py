"""The simulator as a command: in a process of its own, which fixes the hashes of names. Only so does a seed repeat its run.

Most of these processes are forked from one that has imported all they need, as nodes and commands of the tests are.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from preloaded import AVAILABLE, Forker

ROOT = Path(__file__).parents[2]
MODULES = ("sim.__main__", "sim.run", "sim.loss", "sim.strangers", "sim.crash_points")
PATIENCE_S = 300.0
"""How long one may take."""


def sim(*arguments: str, alone: bool = False) -> str:
    """What `python -m tests.sim` says to these arguments.

    Args:
        alone: start it as a user does: it then has nothing in common with any other, not even where its objects lie in memory.

    Raises:
        AssertionError: it failed.
    """
    code, said = _started(arguments) if alone or not AVAILABLE else _forked(arguments)
    assert code == 0, said
    return said


def _started(arguments: tuple[str, ...]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def _forked(arguments: tuple[str, ...]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as out:
        process = _forker().start(arguments, _env(), stdout=out, program=MODULES[0], cwd=ROOT)
        try:
            code = process.wait()
        finally:
            process.end()
        out.seek(0)
        return code, out.read().decode()


@functools.cache
def _forker() -> Forker:
    return Forker(MODULES, _env())


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT / "tests")}
