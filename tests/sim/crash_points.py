"""A node dies at any one of its calls to the outside, before it or behind it; all that is stored and answered must be the same.

    python -m tests.sim --crash waits                    every point of that script
    python -m tests.sim --crash waits --part 1/4         a quarter of them
    python -m tests.sim --crash waits:17:after --trace   one point, step by step

The script runs once, undisturbed. At each point the process is copied (see forks.py): in the copy the node dies there. So what
leads to a point is not repeated for it.
"""

from __future__ import annotations

import difflib
import pprint
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sim.crash_scripts import SCRIPTS
from sim.crashes import MOMENTS, Final, Moment, Script, play
from sim.forks import CopyFailed, Forks

type Trace = Callable[[str], None]


class Point(NamedTuple):
    """Where a node dies."""

    call: int
    """The calls of a node are numbered from 1."""
    moment: Moment
    subject: str
    """What it calls: only for people."""


class Explored(NamedTuple):
    """What became of a script wherever the node died."""

    wanted: Final
    """How it ended undisturbed."""
    found: list[tuple[Point, Final | CopyFailed]]


def explore(script: Script, *, part: int = 1, parts: int = 1, jobs: int = 1) -> Explored:
    """Play `script` undisturbed, and beside it each call whose number belongs to `part`, in copies."""
    forks = Forks[Point, Final](jobs)

    def dies(number: int, moment: Moment, subject: str) -> bool:
        return number % parts == part % parts and forks.fork(Point(number, moment, subject))

    wanted = forks.run(lambda: play(script, dies=dies, ended=forks.leave, collect=False))
    return Explored(wanted, forks.reported())


def differences(found: Final | CopyFailed, wanted: Final) -> Iterator[str]:
    """Line by line: what is wrong with a run, and in what its end differs from the undisturbed one."""
    if isinstance(found, CopyFailed):
        yield str(found)
        return
    yield from found.wrong
    for name in ("answers", "agents", "outcomes", "mail", "dead"):
        before, after = (pprint.pformat(getattr(final, name), width=120).splitlines() for final in (wanted, found))
        if before != after:
            yield from difflib.unified_diff(before, after, f"{name}, undisturbed", f"{name}, with the death", n=1, lineterm="")


def run(target: str, part: str, jobs: int, trace: Trace | None) -> int:
    """The command: print what is wrong, and return the exit code.

    Args:
        target: the name of a script, or `SCRIPT:CALL:MOMENT` for one point.
        part: which of how many parts of the points, as `1/4`.
        jobs: processes that run at once.
        trace: gets a line for each message of a single point.
    """
    name, _, point = target.partition(":")
    script = SCRIPTS[name]
    if point:
        explored = _one(script, point, trace)
    else:
        which, _, of = part.partition("/")
        explored = explore(script, part=int(which), parts=int(of), jobs=jobs)
    if explored.wanted.wrong:
        print(f"{name}, undisturbed:", *explored.wanted.wrong, sep="\n    ")
        return 1
    failed = 0
    for where, found in explored.found:
        lines = list(differences(found, explored.wanted))
        if lines:
            failed += 1
            print(f"{name}, killed {where.moment} call {where.call} of {explored.wanted.calls} ({where.subject}):")
            print("\n".join(f"    {line}" for line in lines))
            print(f"    replay: make sim ARGS='--crash {name}:{where.call}:{where.moment} --trace'")
    print(f"{name}: {len(explored.found)} points of {explored.wanted.calls} calls, {failed} failed")
    return 1 if failed else 0


def _one(script: Script, point: str, trace: Trace | None) -> Explored:
    number, _, at = point.partition(":")
    moment: Moment = MOMENTS[MOMENTS.index(at)]
    call, subjects = int(number), [""]

    def dies(here: int, now: Moment, subject: str) -> bool:
        if (here, now) != (call, moment):
            return False
        subjects.append(subject)
        return True

    wanted = play(script)
    found = play(script, dies=dies, trace=trace)
    return Explored(wanted, [(Point(call, moment, subjects[-1]), found)])
