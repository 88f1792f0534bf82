"""Times that an operator sets: by environment, within bounds, and as the page for operators says."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentmesh.edge import streams
from agentmesh.errors import BadRequest
from agentmesh_node.process import environment
from agentmesh_node.settings import NodeSettings, SupervisorSettings

STREAMS = SimpleNamespace(results_age_s=3600, results_bytes=streams.RESULTS_BYTES, duplicate_window_s=streams.DUPLICATE_WINDOW_S)
PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


def test_what_the_environment_sets_is_read_and_the_rest_left_alone() -> None:
    found = environment.read(environment.NODE, {"MESH_DRAIN_S": "7.5", "MESH_LEASE_TTL_S": "2", "MESH_REST_S": "", "HOME": "/"})
    assert found == {"drain_s": 7.5, "lease_ttl_s": 2}


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MESH_DRAIN_S", "soon", "is not a number"),
        ("MESH_LEASE_TTL_S", "1.5", "is not a whole number"),
        ("MESH_LEASE_TTL_S", "0", "out of bounds: from 1 to 60"),
        ("MESH_STALL_LIMIT_S", "nan", "out of bounds"),
    ],
)
def test_nonsense_is_refused(variable: str, value: str, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        environment.read(environment.NODE, {variable: value})


@pytest.mark.parametrize(
    ("settings", "defaults"),
    [
        (environment.NODE, NodeSettings(node_id="n", agents={})),
        (environment.SUPERVISOR, SupervisorSettings()),
        (environment.STREAMS, STREAMS),
    ],
    ids=["node", "supervisor", "streams"],
)
def test_the_page_for_operators_has_each_with_its_default_and_bounds(
    settings: tuple[environment.Setting, ...], defaults: object
) -> None:
    rows = {match[1]: match for match in re.finditer(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) to ([\d.]+)", PAGE.read_text(), re.M)}
    for setting in settings:
        row = rows[setting.variable]
        assert (float(row[2]), float(row[3]), float(row[4])) == (getattr(defaults, setting.field), setting.low, setting.high)
