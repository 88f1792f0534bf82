"""One name, one thing: a class name, or the name of a type, stands in one file of the three packages."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh", "node", "client")

SHARED = {
    "DeadLetter": "the error of `agentmesh.errors` and the client's value: users catch one and read the other",
    "Response": "what `handle_response` gets and what a client's `ask` returns: users import both",
}
"""Names that stand in two files for a reason. Shorten this list; never add a name that users do not import from both."""


def definitions() -> dict[str, set[str]]:
    """Every name of a class or of a type, with its files; so are `X = NewType(...)` and `X = Annotated[...]`."""
    found = defaultdict(set)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name].add(str(path.relative_to(ROOT)))
                elif isinstance(node, ast.TypeAlias):
                    found[node.name.id].add(str(path.relative_to(ROOT)))
                elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.Call):
                    for target in node.targets:
                        if isinstance(target, ast.Name) and target.id[0].isupper() and not target.id.isupper():
                            found[target.id].add(str(path.relative_to(ROOT)))
    return found


def test_no_class_name_stands_in_two_files() -> None:
    shared = {name: sorted(files) for name, files in definitions().items() if len(files) > 1 and name not in SHARED}
    assert not shared, "give one of them another name: " + "; ".join(f"{name} in {files}" for name, files in shared.items())


def test_the_list_of_shared_names_holds_none_that_is_no_longer_shared() -> None:
    found = definitions()
    assert [name for name in SHARED if len(found[name]) < 2] == []
