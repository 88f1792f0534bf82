"""Processes that are kept running: what ended by itself is told apart from what was told to end."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from chaos.cast import Kept
from support import eventually, run

pytestmark = pytest.mark.processes

LIVES = "print('p1 ready', flush=True); import time; time.sleep(600)"


def _kept(script: str, directory: Path) -> tuple[Kept, list[str]]:
    notes: list[str] = []
    return Kept("p1", ["-c", script], directory / "p1.log", os.environ, notes.append), notes


def _another(kept: Kept, before: int | None) -> bool:
    return kept.pid not in (None, before)


def test_what_is_killed_begins_again_and_has_not_ended_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        kept, notes = _kept(LIVES, tmp_path)
        try:
            await kept.start()
            for end in (kept.kill, kept.terminate):
                before = kept.pid
                await end()
                kept.begin()  # at once: perhaps before anybody has seen it end
                await eventually(partial(_another, kept, before))
                await kept.ready(30)
            assert (kept.ends, notes) == ([], [])
        finally:
            await kept.close()

    run(main(), timeout=60)


def test_what_ends_by_itself_is_noted_and_begins_again(tmp_path: Path) -> None:
    async def main() -> None:
        kept, notes = _kept(LIVES, tmp_path)
        try:
            await kept.start()
            assert kept.pid is not None
            before = kept.pid
            os.kill(before, signal.SIGABRT)
            await eventually(partial(_another, kept, before))
            await kept.ready(30)
            assert kept.ends == [-signal.SIGABRT]
            assert notes == [f"p1 ended by itself with {-signal.SIGABRT}"]
        finally:
            await kept.close()

    run(main(), timeout=60)


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        kept, _ = _kept("raise SystemExit('no such thing')", tmp_path)
        try:
            with pytest.raises(RuntimeError, match="no such thing"):
                await kept.start()
        finally:
            await kept.close()

    run(main(), timeout=60)
