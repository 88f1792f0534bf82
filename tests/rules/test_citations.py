"""Every citation leads somewhere, and the check would notice one that does not (tests/citations.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from citations import ROOT, Tree, all_faults, faults, slugs


def test_every_citation_leads_somewhere() -> None:
    assert list(map(str, all_faults())) == []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A small repository."""
    for path, text in {
        "README.md": "# It\n",
        "Makefile": "test: .venv ## All\n\techo\n",
        "pyproject.toml": '[project.entry-points."agentmesh.backends"]\n',
        "docs/semantics.md": "- **1** One.\n- **7** Seven.\n- **9** Nine.\n",
        "docs/architecture.md": "# A\n\n## The fence\n\n## Is it `mine`?\n\n## The fence\n\n```\n# no heading\n```\n",
        "docs/design/001-it.md": "# 001: It\n",
        "mesh/agentmesh/turn/machine.py": "LIMIT: int = 1\n\n\nclass Move:\n    to = 1\n\n    def go(self) -> None: ...\n",
        "mesh/agentmesh/turn/__init__.py": "",
        "mesh/agentmesh/__init__.py": '_LAZY = {"Agent": "agent"}\n',
        "tests/mesh/test_it.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return Tree(tmp_path)


def cited(tree: Tree, path: str, text: str) -> list[str]:
    """What leads nowhere in `text`, were it the file `path`."""
    return [fault.cited for fault in faults(tree, tree.root / path, text)]


@pytest.mark.parametrize(
    "good",
    [
        "docs/architecture.md",
        "docs/architecture.md#the-fence",
        "(docs/architecture.md#is-it-mine; case 7)",
        "docs/architecture.md#the-fence-1",
        "case 1, cases 1 to 9, Cases 1, 7 and 9",
        "docs/design/001-it.md",
        "README.md",
        "mesh/agentmesh/turn/machine.py, turn/machine.py, machine.py",
        "turn/machine.py::Move.go, turn/machine.py::LIMIT",
        "agentmesh.turn, agentmesh.turn.machine, agentmesh.turn.machine.Move.to, agentmesh.Agent",
        "the entry-point group agentmesh.backends",
        "mesh/test_it",
        "`make test ARGS=x`, and to make tests",
    ],
)
def test_what_leads_somewhere(tree: Tree, good: str) -> None:
    assert cited(tree, "node/some.py", f'"""{good}"""\nX = 1  # {good}\n') == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("docs/architecture.md#the-fences", "docs/architecture.md#the-fences"),
        ("docs/architecture.md#no-heading", "docs/architecture.md#no-heading"),
        ("docs/building.md", "docs/building.md"),
        ("see architecture.md#the-fence", "architecture.md#the-fence"),
        ("docs/design/002-other.md", "docs/design/002-other.md"),
        ("case 8", "case 8"),
        ("cases 1 to 8", "cases 1 to 8"),
        ("turn/machines.py", "turn/machines.py"),
        ("turn/machine.py::Move.stop", "turn/machine.py::Move.stop"),
        ("machines.py", "machines.py"),
        ("agentmesh.turn.machines", "agentmesh.turn.machines"),
        ("agentmesh.turn.machine.Movement", "agentmesh.turn.machine.Movement"),
        ("agentmesh.commands", "agentmesh.commands"),
        ("mesh/test_that", "mesh/test_that"),
        ("run `make tests`", "`make tests"),
        ("(design 3, Fence)", "design 3"),
        ("design note 008", "design note 0"),
        ("as note 015 says", "note 015"),
        ('(protocol, "Control")', 'protocol, "C'),
        ("(protocol: A prompt)", "protocol: A"),
        ("(semantics, case 7)", "semantics, "),
        ("nats.md 4.6", "nats.md"),
        ("../shared/x", "../shared"),
        ("/work/main/x", "/work/"),
    ],
)
def test_what_leads_nowhere(tree: Tree, text: str, bad: str) -> None:
    assert bad in cited(tree, "node/some.py", f'"""Words.\n\n{text}.\n"""\n')
    assert bad in cited(tree, "node/some.py", f"LIMIT = 1\n# Words: {text}\n")
    assert bad in cited(tree, "node/some.py", f'LIMIT = 1\n"""{text}"""\n')


def test_a_citation_may_be_broken_over_lines_and_is_reported_where_it_begins(tree: Tree) -> None:
    text = '"""Words.\n\n    Good: case 7 (case\n    8), and design\n    3.\n"""\n'
    assert [(fault.line, fault.cited) for fault in faults(tree, tree.root / "node/some.py", text)] == [
        (4, "design 3"),
        (3, "case 8"),
    ]
    assert cited(tree, "node/some.py", "def f():\n    # cases 1 to\n    # 8\n    pass\n") == ["cases 1 to 8"]


def test_strings_that_name_a_page_are_checked_and_others_are_not(tree: Tree) -> None:
    assert cited(tree, "node/some.py", 'raise ValueError(f"{x}: docs/building.md lists them")\n') == ["docs/building.md"]
    assert cited(tree, "node/some.py", 'print("design 3", "turn/machines.py", "**/*.md")\n') == []
    assert cited(tree, "node/some.py", "match x:\n    case 8:\n        pass\n") == []


def test_links_of_pages_are_relative_to_them(tree: Tree) -> None:
    good = (
        "[a](#mine) [b](architecture.md#the-fence) [c](../README.md) [d](design) [e](https://nats.io/x.md) [f](design/001-it.md)"
    )
    assert cited(tree, "docs/architecture.md", good.replace("#mine", "#the-fence")) == []
    assert cited(tree, "docs/architecture.md", "[a](#mine), [b](docs/architecture.md)") == ["#mine", "docs/architecture.md"]
    assert cited(tree, "docs/architecture.md", "[a\nb](semantics.md#no-such) and `turn/none.py`") == [
        "semantics.md#no-such",
        "turn/none.py",
    ]
    assert cited(tree, "docs/architecture.md", "[out](../../../etc/passwd)") != []
    assert cited(tree, "docs/architecture.md", "```\nturn/none.py\n```\n") == []


def test_anchors_are_those_of_github() -> None:
    page = "# One turn, one record\n## Is the newest record mine?\n## `a_b` and [c d](x.md)\n## What costs a connection #\n"
    assert slugs(page) == {"one-turn-one-record", "is-the-newest-record-mine", "a_b-and-c-d", "what-costs-a-connection"}


def test_the_whole_tree_is_looked_at() -> None:
    paths = {str(path.relative_to(ROOT)) for path in Tree(ROOT).files}
    assert {"README.md", "Makefile", "pyproject.toml", "docs/semantics.md", "tests/cases.py"} <= paths
    assert not any(path.startswith(".venv") for path in paths)


def test_the_map_of_modules_has_them_all() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    found = []
    for package, prefix in (("mesh/agentmesh", ""), ("mesh/agentmesh/edge", "edge/"), ("mesh/agentmesh/turn", "turn/")):
        found += [f"`{prefix}{path.name}`" for path in (ROOT / package).glob("*.py")]
    found += [f"`{path.name}`" for path in (ROOT / "client" / "agentmesh_client").glob("*.py")]
    found += [f"`{path.name}/`" for path in (ROOT / "node" / "agentmesh_node").glob("[a-z]*") if path.is_dir()]
    assert [name for name in found if "__init__" not in name and name not in page] == []
