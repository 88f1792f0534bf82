"""Copies of a process that runs a simulation."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from functools import partial

import pytest

from sim.crash_points import Point, differences, explore
from sim.crash_scripts import SCRIPTS
from sim.crashes import Final, Moment, play
from sim.forks import CopyFailed, Forks
from sim.loop import SimLoop, run_sim

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""The other thread is the one by which xdist speaks to a worker: it waits for bytes and holds nothing that a copy needs."""


def test_each_copy_goes_on_by_itself_and_reports() -> None:
    for jobs in (1, 3):
        forks = Forks[int, list[str]](jobs)

        async def main(loop: SimLoop, forks: Forks[int, list[str]] = forks) -> list[str]:
            told = []
            for number in range(4):
                await asyncio.sleep(1.0)
                if forks.fork(number):
                    told.append("copied")
                told.append(f"{number} at {loop.time():g}")
            return told

        assert forks.run(partial(run_sim, main)) == ["0 at 1", "1 at 2", "2 at 3", "3 at 4"]
        assert forks.reported() == [
            (0, ["copied", "0 at 1", "1 at 2", "2 at 3", "3 at 4"]),
            (1, ["0 at 1", "copied", "1 at 2", "2 at 3", "3 at 4"]),
            (2, ["0 at 1", "1 at 2", "copied", "2 at 3", "3 at 4"]),
            (3, ["0 at 1", "1 at 2", "2 at 3", "copied", "3 at 4"]),
        ]


def test_a_copy_that_fails_or_is_killed_is_told_apart() -> None:
    forks = Forks[str, str](2)

    async def main(_loop: SimLoop) -> str:
        if forks.fork("raises"):
            raise ValueError("of the copy")
        if forks.fork("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return "of the original"

    assert forks.run(lambda: run_sim(main)) == "of the original"
    (_, raised), (_, killed) = forks.reported()
    assert isinstance(raised, CopyFailed)
    assert "ValueError: of the copy" in str(raised)
    assert isinstance(killed, CopyFailed)
    assert str(killed) == "it ended with -9 and reported nothing"


def test_what_the_original_raises_is_raised() -> None:
    async def main(_loop: SimLoop) -> str:
        raise ValueError("of the original")

    with pytest.raises(ValueError, match="of the original"):
        Forks[str, str](1).run(lambda: run_sim(main))


def test_a_copy_ends_as_its_point_does_alone() -> None:
    script = SCRIPTS["steps"]
    explored = explore(script, part=1, parts=9)
    assert explored.wanted == play(script)
    for point, found in explored.found:
        assert found == play(script, dies=partial(_at, point))


def test_what_differs_is_shown_line_by_line() -> None:
    wanted = Final({"L1": "one", "L2": "two"}, {"a": ("running", {})}, [], {}, [], [], 9, set())
    assert list(differences(wanted, wanted)) == []
    found = dataclasses.replace(wanted, answers={"L1": "one", "L2": "another"}, wrong=["a consumed it twice"])
    assert list(differences(found, wanted)) == [
        "a consumed it twice",
        "--- answers, undisturbed",
        "+++ answers, with the death",
        "@@ -1 +1 @@",
        "-{'L1': 'one', 'L2': 'two'}",
        "+{'L1': 'one', 'L2': 'another'}",
    ]
    assert list(differences(CopyFailed("no end"), wanted)) == ["no end"]


def _at(point: Point, call: int, moment: Moment, _subject: str) -> bool:
    return (call, moment) == point[:2]


def test_a_copy_may_leave_before_its_work_has_ended() -> None:
    forks = Forks[int, str](1)

    async def main(_loop: SimLoop) -> str:
        if forks.fork(1):
            forks.leave("left")
            raise AssertionError("it went on")
        forks.leave("only a copy can")
        return "of the original"

    assert forks.run(partial(run_sim, main)) == "of the original"
    assert forks.reported() == [(1, "left")]
