"""`mesh up --reload`: the child is started again when its agents' files change, and ends in order with its parent."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmesh_node.process.reload import child_command, states, watched
from support import eventually

BOUND_S = 60.0
CHILD = """
import pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
text = (here / "agents.py").read_text()
compile(text, "agents.py", "exec")
signal.signal(signal.SIGINT, lambda *_: (here.joinpath("log").open("a").write("end " + text), sys.exit(0)))
here.joinpath("log").open("a").write("run " + text)
while True:
    signal.pause()
"""
PARENT = """
import pathlib, sys
from agentmesh_node.process.reload import Reloader, watched
here = pathlib.Path(sys.argv[1])
raise SystemExit(Reloader([sys.executable, str(here / ".child" / "child.py"), str(here)], watched(["agents.py"], here)).run())
"""


def until(condition: Callable[[], bool], what: str) -> None:
    asyncio.run(eventually(condition, BOUND_S, what))


@pytest.mark.processes
def test_a_changed_file_starts_the_child_again_and_a_broken_one_waits_to_be_mended(tmp_path: Path) -> None:
    (tmp_path / ".child").mkdir()
    (tmp_path / ".child" / "child.py").write_text(CHILD)
    agents, log = tmp_path / "agents.py", tmp_path / "log"
    agents.write_text("one = 1\n")

    def logged(count: int) -> Callable[[], bool]:
        return lambda: log.exists() and len(log.read_text().splitlines()) >= count

    told = tmp_path / "told"
    with told.open("w") as errors:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=errors)
    try:
        until(logged(1), "the first run")
        agents.write_text("two = 2\n")
        until(logged(3), "the second run")
        agents.write_text("three = (\n")
        until(logged(4), "the end of the second")
        until(lambda: "waiting for a change" in told.read_text(), "the broken file is told of")
        agents.write_text("four = 4\n")
        until(logged(5), "the run of the mended file")
        parent.send_signal(signal.SIGINT)
        parent.wait(BOUND_S)
    finally:
        parent.kill()
        parent.wait()
    one, two, four = "one = 1", "two = 2", "four = 4"
    wanted = [f"run {one}", f"end {one}", f"run {two}", f"end {two}", f"run {four}", f"end {four}"]
    assert log.read_text().splitlines() == wanted
    assert told.read_text().count("agents.py has changed: starting again") == 3
    assert parent.returncode == 0


@pytest.mark.case(460)
@pytest.mark.processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_child_that_a_signal_ends_before_it_heeds_any_has_begun_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / ".child").mkdir()
    (tmp_path / ".child" / "child.py").write_text("""if True:
        import os, pathlib, signal, sys, time
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        pathlib.Path(sys.argv[1], "pid").write_text(f"{os.getpid()}\\n")
        while True:
            time.sleep(60)
    """)
    pid = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: pid.exists() and pid.read_text().endswith("\n"), "the child")
        parent.send_signal(number)
        assert parent.wait(BOUND_S) == code
    finally:
        parent.kill()
        parent.wait()


def test_what_is_watched(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "mine.py").write_text("")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "other.py").write_text("")
    assert watched(["mine, team.agents"], tmp_path) == [tmp_path, tmp_path / "team"]
    assert watched(["team/agents.py"], tmp_path) == [tmp_path / "team"]
    assert watched(["json.tool"], tmp_path) == [Path(json.__file__).parent]
    assert watched(["no_such_module_anywhere"], tmp_path) == []
    assert list(states([tmp_path])) == [tmp_path / "mine.py"]
    assert child_command(["up", "mine", "--reload", "--port", "0"])[1:] == ["-m", "agentmesh_node", "up", "mine", "--port", "0"]
