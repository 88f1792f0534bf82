"""Nothing in the packages imports a module, or a name, by a former name: those are for programs of users."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentmesh
import agentmesh_client
import agentmesh_node
from agentmesh.renamed import FormerNames

ROOT = Path(__file__).parents[2]
(OF_MESH,) = (finder for finder in sys.meta_path if isinstance(finder, FormerNames))
MODULES = {*OF_MESH._modules, *agentmesh_node._MODULES, *agentmesh_client._FORMER}
PACKAGES = {
    path.relative_to(ROOT / package).parent.as_posix().replace("/", "."): path
    for package in ("mesh", "node", "client")
    for path in (ROOT / package).rglob("__init__.py")
}
"""Each package of the three, and its `__init__`. One that stands in the place of a module hands on single names."""


def handed_on(path: Path) -> set[str]:
    """The former names in the `attributes(...)` of a package's `__init__`."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    tables = [call.args[1] for call in calls if ast.unparse(call.func).endswith("attributes")]
    return {key for table in tables for key in ast.literal_eval(table)}


FORMER = MODULES | {f"{package}.{name}" for package, path in PACKAGES.items() for name in handed_on(path)}


def former_imports(text: str) -> Iterator[tuple[int, str]]:
    """Each import of a former name, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in FORMER)


def test_the_packages_import_nothing_by_a_former_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for package in ("mesh", "node", "client")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in former_imports(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import agentmesh.hands",
        "from agentmesh import hands",
        "def f():\n    from agentmesh.edge.jetstream import store",
        "from agentmesh_node import service as own",
        "import agentmesh_client.starting",
        "from agentmesh_node.supervisor import Supervisor",
    ],
)
def test_an_import_by_a_former_name_is_found_in_every_form(text: str) -> None:
    assert list(former_imports(text))
    assert agentmesh.__name__ not in FORMER
