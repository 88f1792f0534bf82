"""docs/agent.md shows the turn machine as its table is. `python tests/mesh/turn/test_diagram.py` brings the page up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmesh.agent import HOOKS
from agentmesh.turn import diagram
from agentmesh.turn.values import Phase

PAGE = Path(__file__).parents[3] / "docs" / "agent.md"
PARTS = {"turn": diagram.TURN, "life": diagram.LIFE}


def drawn(text: str, part: str) -> re.Match[str]:
    found = re.search(rf"<!-- {part}: .*? -->\n```mermaid\n(.*?)```\n<!-- end -->", text, re.DOTALL)
    assert found, f"docs/agent.md has no place for the diagram '{part}'"
    return found


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_the_table(part: str) -> None:
    shown = drawn(PAGE.read_text(), part).group(1)
    assert shown == diagram.diagram(PARTS[part]), "run: python tests/mesh/turn/test_diagram.py"


def test_every_phase_is_drawn_and_the_reduction_loses_no_way() -> None:
    assert {*diagram.TURN, *diagram.LIFE} == set(Phase)
    every = diagram.arrows()
    kept = diagram.reduced(every)
    assert {to for _, to, _ in kept} == {to for _, to, _ in every}
    for source, to, _ in every:
        reached, todo = {source}, [source]
        while todo:
            here = todo.pop()
            following = {b for a, b, _ in kept if a is here} - reached
            reached |= following
            todo += [b for b in following if b in diagram.SKIPPED]
        assert to in reached, f"{source} -> {to} cannot be followed in the diagram"


def test_the_page_names_every_callback() -> None:
    text = PAGE.read_text()
    assert [hook for hook in (*HOOKS, "init_agent", "handle_response") if f"| `{hook}(" not in text] == []


if __name__ == "__main__":
    page = PAGE.read_text()
    for name, phases in PARTS.items():
        match = drawn(page, name)
        page = page[: match.start(1)] + diagram.diagram(phases) + page[match.end(1) :]
    PAGE.write_text(page)
