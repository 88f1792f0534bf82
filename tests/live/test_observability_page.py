"""docs/observability.md: its five questions are put to a mesh that has just lived through what `make demo` shows.

`python tests/live/test_observability_page.py` (with PYTHONPATH=tests) prints what the commands say.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from agentmesh.trace.tree import walk
from agentmesh_client import Mesh, WaitGraph
from agentmesh_client.cli.owes import text_of
from commands import mesh_command
from support import eventually

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "triage"))

from demo import COORDINATOR, EXAMPLE, QUESTION, stage, told  # noqa: E402
from timeline import Timeline  # noqa: E402

PAGE = ROOT / "docs" / "observability.md"
OWES = "mesh owes"
GATED = Path(__file__).with_name("gated_triage.py")
READERS = 3
LONG_S = 300
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
_BLOCK = re.compile(r"^```console\n\$ (mesh [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def questions() -> list[tuple[str, str]]:
    """The commands of the page's five questions, each with the output that the page shows."""
    section = PAGE.read_text().partition("\n## Five questions\n")[2].partition("\n## ")[0]
    return _BLOCK.findall(section)


def sketch(output: str) -> list[str]:
    """What must be the same each time: not times and counts, not which node it was, and not which reader was on it."""
    lines = []
    for line in output.splitlines():
        plain = re.sub(r"~~.*~~.*", "~~an attempt~~", line)
        plain = re.sub(r"\bn[12]\b", "n", plain)
        plain = re.sub(r"triage\.(checkout|search|auth)", "READER", plain)
        plain = re.sub(r"^(READER|triage) (Reader|Triage) .*|^(Reader|Triage) \d.*", r"\1\3", plain)  # who died differs
        plain = re.sub(r"\d[\d.,]*( (ms|s|min)\b|[smhd]\b)?", "0", plain)
        lines.append(" ".join(plain.split()))
    return lines


async def answers(commands: Iterable[str], gates: Path | None = None) -> dict[str, str]:
    """What each command says: those about waits while readers are at work, the others when the caller has its answer.

    Args:
        commands: of the page.
        gates: the folder of the readers' gate, if they are to wait there until their node is killed (`live/gated_triage.py`);
            without it they go at the example's pace.
    """
    found: dict[str, str] = {}
    show = Timeline(COORDINATOR)
    async with asyncio.timeout(LONG_S), stage(show, EXAMPLE if gates is None else GATED) as (processes, mesh):
        url = processes.url
        await mesh.start_agent(COORDINATOR, kind="Triage", backend="scripted")
        asked = asyncio.create_task(mesh.ask(COORDINATOR, QUESTION, timeout=LONG_S))
        try:
            waits = await at_work(mesh)
            # As the verb does it, but in this process: its start would take as long as the readers do.
            found[OWES] = text_of(waits, dt.datetime.now(dt.UTC))
            node = await mesh.whereis(next(entry.agent for entry in waits.waits if entry.agent != COORDINATOR))
            assert node is not None
            await processes.kill(node)
            if gates is not None:
                (gates / "read").touch()
            answer = await asked
        finally:
            asked.cancel()
        await told(mesh, answer.ref)
        for command in commands:
            if command not in found:
                found[command] = await said(command.replace("triage/1", f"triage/{answer.ref}"), url)
    return found


async def at_work(mesh: Mesh) -> WaitGraph:
    """Who waits for whom, once the coordinator waits and all three readers are in turns of which the stream of facts knows: of a
    turn that is lost before its node has told that it began, nothing would be shown."""
    found: list[WaitGraph] = []

    async def told_of_all() -> bool:
        found[:] = [await mesh.owes()]
        states = {entry.agent: entry.state for entry in found[0].waits}
        if states.pop(COORDINATOR, None) != "idle" or list(states.values()) != ["running"] * READERS:
            return False
        (ref,) = [entry.ref for entry in found[0].waits if entry.agent == COORDINATOR]
        report = await mesh.traces.trace(f"{COORDINATOR}/{ref}")
        return {branch.agent for _, branch in walk(report.branches) if branch.end is None} >= states.keys()

    await eventually(told_of_all, LONG_S, "the coordinator waits for three readers at work")
    return found[0]


async def said(command: str, url: str) -> str:
    done = await mesh_command([*command.split()[1:], "--nats", url, "--quiet"], ENVIRON)
    assert done.returncode == 0, command + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_five_questions_are_answered_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAGE_GATES", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    for gate in ("plan", "synthesis"):
        (tmp_path / gate).touch()
    shown = dict(questions())
    assert len(shown) >= 5, "the page has five questions, each with a command"
    found = asyncio.run(answers(shown, tmp_path))
    for command, output in shown.items():
        assert set(sketch(found[command])) == set(sketch(output)), f"{command} says\n{found[command]}"


if __name__ == "__main__":
    COMMANDS = (OWES, "mesh graph --by kind", "mesh graph --by kind -o mermaid", "mesh graph", "mesh trace triage/1")
    for asked_for, reply in asyncio.run(answers(COMMANDS)).items():
        print(f"$ {asked_for}\n{reply}")
