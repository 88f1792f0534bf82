"""docs/observability.md: its five questions are put to a mesh that has just lived through what `make demo` shows.

`python tests/live/test_observability_page.py` (with PYTHONPATH=tests) prints what the commands say.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from agentmesh_client.cli.owes import text_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "triage"))

from demo import COORDINATOR, QUESTION, stage, told  # noqa: E402
from timeline import Timeline  # noqa: E402

PAGE = ROOT / "docs" / "observability.md"
OWES = "mesh owes"
WAITS_S = 60.0
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


async def answers(commands: Iterable[str]) -> dict[str, str]:
    """What each command says: those about waits while readers are at work, the others when the caller has its answer."""
    found: dict[str, str] = {}
    show = Timeline(COORDINATOR)
    async with asyncio.timeout(WAITS_S), stage(show) as (processes, mesh):
        url = processes.url
        await mesh.start_agent(COORDINATOR, kind="Triage", backend="scripted")
        asked = asyncio.create_task(mesh.ask(COORDINATOR, QUESTION, timeout=WAITS_S))
        try:
            await show.readers_busy.wait()
            # As the verb does it, but in this process: its start would take as long as the readers do.
            found[OWES] = text_of(await mesh.owes(), dt.datetime.now(dt.UTC))
            busy = next(to for source, to, what in show.edges if what == "prompt" and (to, source, "answer") not in show.edges)
            node = await mesh.whereis(busy)
            assert node is not None
            await processes.kill(node)
            answer = await asked
        finally:
            asked.cancel()
        await told(mesh, answer.ref)
        for command in commands:
            if command not in found:
                found[command] = await said(command.replace("triage/1", f"triage/{answer.ref}"), url)
    return found


async def said(command: str, url: str) -> str:
    arguments = [*command.split()[1:], "--nats", url, "--quiet"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentmesh_client.cli.main", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, command
    return out.decode()


@pytest.mark.slow
def test_the_five_questions_are_answered_as_the_page_shows() -> None:
    shown = dict(questions())
    assert len(shown) >= 5, "the page has five questions, each with a command"
    found = asyncio.run(answers(shown))
    for command, output in shown.items():
        assert set(sketch(found[command])) == set(sketch(output)), command


if __name__ == "__main__":
    COMMANDS = (OWES, "mesh graph --by kind", "mesh graph --by kind -o mermaid", "mesh graph", "mesh trace triage/1")
    for asked_for, reply in asyncio.run(answers(COMMANDS)).items():
        print(f"$ {asked_for}\n{reply}")
