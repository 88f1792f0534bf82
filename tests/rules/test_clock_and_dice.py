"""Clocks and randomness come from `agentmesh.edge.clock` or the event loop, so that a simulation can give both."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh/agentmesh", "node/agentmesh_node", "client/agentmesh_client")
ALL_OF = {"random", "secrets"}
"""Modules of which nothing is used."""
SOME_OF = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"},
    "uuid": {"uuid1", "uuid4", "uuid6", "uuid7"},
    "os": {"urandom"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
ALLOWED = {
    "mesh/agentmesh/edge/clock.py": "the ports themselves",
    "client/agentmesh_client/cli/asks.py": "a deadline counts from when a person gave the command",
    "client/agentmesh_client/cli/output.py": "ages, as a person reads them",
    "client/agentmesh_client/cli/streaming.py": "durations, as a person watches them",
}
"""Files that use them all the same, and why. None of them waits or decides."""


def uses(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if owner in ALL_OF or node.attr in SOME_OF.get(owner, ()):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (
                f"from {node.module} import {name.name}"
                for name in node.names
                if node.module in ALL_OF or name.name in SOME_OF.get(node.module or "", ())
            )


def test_nothing_that_waits_or_draws_has_a_clock_or_dice_of_its_own() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(set(uses(path)))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if any(uses(path))
    }
    assert {path: what for path, what in found.items() if path not in ALLOWED} == {}
    assert ALLOWED.keys() <= found.keys(), "a file that needs to be allowed no more"
