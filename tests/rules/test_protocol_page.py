"""docs/protocol.md says what the code does: whatever is sent or stored has its place there."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from agentmesh import errors, wire
from agentmesh.budget import Limits
from agentmesh.control_values import ControlRequest, NodeStats, Status
from agentmesh.edge import endings
from agentmesh.edge.stream_configs import stream_configs
from agentmesh.headers import TRACE_HEADERS
from agentmesh.registry_values import NodeLease, Placement, Spec, SupervisorLease
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import Outcome, PromptBody
from agentmesh_node.host import heartbeat
from agentmesh_node.owner import control_requests
from agentmesh_node.telemetry.events import FIELDS
from citations import ROOT

PAGE = (ROOT / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    """The section of that title."""
    found = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def words(text: str) -> set[str]:
    """What stands in backticks, and the keys of JSON."""
    quoted = " ".join(re.findall(r"`([^`]+)`", text)) + " ".join(re.findall(r"^ {4}(.*)$", text, re.MULTILINE))
    return set(re.findall(r"[A-Za-z_][\w-]*", quoted))


def test_every_header_is_told() -> None:
    headers = {value for name, value in vars(wire).items() if name.isupper() and isinstance(value, str) and "-" in value}
    headers |= set(TRACE_HEADERS) | set(re.findall(r'"(Mesh-[\w-]+)"', inspect.getsource(endings)))
    assert len(headers) > 15
    assert headers - words(PAGE) == set()


def test_every_stream_and_lane_is_told() -> None:
    assert set(stream_configs(Subjects(), replicas=1, max_payload=1 << 20)) - words(section("Streams")) == set()
    assert {f"`mesh.{lane}.<agent>`" for lane in LANES} - set(
        re.findall(r"`mesh\.[\w-]+\.<agent>`", section("Subjects"))
    ) == set()


def test_every_code_of_an_outcome_is_told() -> None:
    codes = {found.code for found in errors.TurnError.__subclasses__()}
    codes |= {
        errors.BadRequest.code,
        errors.TooLarge.code,
        errors.NotFound.code,
        errors.MailboxFull.code,
        errors.Unavailable.code,
    }
    assert codes - words(section("An outcome")) == set()


def test_every_kind_of_fact_is_told_with_its_fields() -> None:
    rows = [line for line in section("Lifecycle facts").splitlines() if line.startswith("| `")]
    for kind, fields in FIELDS.items():
        (row,) = [row for row in rows if f"`{kind}`" in row.split("|")[1]]
        assert fields - words(row) == set(), kind


def test_every_request_is_told() -> None:
    taken = {
        pattern.value.value
        for node in ast.walk(ast.parse(inspect.getsource(control_requests)))
        if isinstance(node, ast.match_case) and isinstance(pattern := node.pattern, ast.MatchValue)
        if isinstance(pattern.value, ast.Constant)
    }
    assert len(taken) == 11
    assert {str(op) for op in taken} - set(re.findall(r'"op":"(\w+)"', section("Control requests"))) == set()
    told = set(re.findall(r'"op":"(\w+)"', section("Requests to a process")))
    assert told == {"ping", "stats", "agents", "rebalance", "move", *heartbeat._COMMANDS}
    known = words(section("Control requests")) | words(section("Requests to a process"))
    assert set(ControlRequest.__struct_fields__) - known == set()


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (PromptBody, "A prompt"),
        (Limits, "A prompt"),
        (Outcome, "An outcome"),
        (Status, "Control requests"),
        (NodeStats, "Requests to a process"),
        (Spec, "The registry"),
        (NodeLease, "The registry"),
        (Placement, "The registry"),
        (SupervisorLease, "The registry"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_field_is_told(kind: type, title: str) -> None:
    assert set(kind.__struct_fields__) - words(section(title)) - {"v"} == set()  # type: ignore[attr-defined]
