"""Each operation of control requests stands once, and what is made of the table has it (case 613)."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from agentmesh import control_operations
from agentmesh.access.layout import crossings
from agentmesh.access.roles import lists
from agentmesh.control_operations import CONTROL, GIVEN, OPERATIONS, ControlOperation, is_control, operation, request_in
from agentmesh.control_values import ControlRequest
from agentmesh.errors import BadRequest
from agentmesh.subjects import LANES, Subjects

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTION = PAGE.partition("## Control requests")[2].partition("## Requests to a process")[0]
NAMES = list(OPERATIONS)

pytestmark = pytest.mark.case(613)


@pytest.mark.parametrize("name", NAMES)
def test_the_subject_alone_says_which_operation_is_meant(name: str) -> None:
    meant = "status" if name == "state" else name
    for body in (b"", b"{}", msgspec.json.encode({"op": name})):
        assert request_in(f"control-{name}", body).op == meant
    assert request_in(CONTROL, msgspec.json.encode({"op": name})).op == meant
    assert request_in(f"control-{name}", b'{"ref":"17"}').ref == "17"
    for other in ("probe", "ping", *NAMES):
        if other != name:
            with pytest.raises(BadRequest):
                request_in(f"control-{name}", msgspec.json.encode({"op": other}))


def test_content_is_an_operation_of_its_own() -> None:
    assert request_in("control-state", b"") == ControlRequest(op="status", content=True)
    assert request_in(CONTROL, b'{"op":"status","content":true}').content, "the old form stays"
    with pytest.raises(BadRequest, match="control-state"):
        request_in("control-status", b'{"content":true}')
    for unknown in ("control-probe", "control-", "control-nothing"):
        for body in (b"{}", b"", b'{"op":"cancel","ref":"1"}'):
            with pytest.raises(BadRequest):
                request_in(unknown, body)


def test_an_operation_that_is_added_to_the_table_is_taken_given_exported_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {**OPERATIONS, "nap": ControlOperation("nap", "sleep for a while")}
    given = (*GIVEN, "nap")
    monkeypatch.setattr(control_operations, "OPERATIONS", added)
    monkeypatch.setattr(control_operations, "GIVEN", given)
    subjects = Subjects("mesh")
    assert request_in("control-nap", b"") == ControlRequest(op="nap")
    assert operation("nap") is added["nap"]
    assert subjects.control_op("nap", "coder") in lists("caller", subjects, user="u", agents=("coder",), ops=given).publish_allow
    assert subjects.control_op("nap", ">") in {crossing.exported for crossing in crossings(subjects, given)}
    with pytest.raises(BadRequest, match="nap"):
        request_in("control-nothing", b"")


def test_no_lane_of_mail_is_taken_for_control() -> None:
    assert not any(map(is_control, LANES)) and all(is_control(f"control-{name}") for name in NAMES) and is_control(CONTROL)


def test_permissions_exports_and_the_page_have_every_operation() -> None:
    subjects = Subjects("mesh")
    granted = lists("caller", subjects, user="shop", agents=("coder",), ops=GIVEN)
    exported = {crossing.exported for crossing in crossings(subjects, GIVEN)}
    listed = set(re.findall(r'^\| `\{"op":"(\w+)"', SECTION, re.MULTILINE)) | {"state"}
    assert listed == set(NAMES), "docs/protocol.md#control-requests has a row for each"
    for name in NAMES:
        assert (subjects.control_op(name, "coder") in granted.publish_allow) is (name in GIVEN)
        assert (subjects.control_op(name, ">") in exported) is (name in GIVEN)
    for bad in ("probe", "nothing", ""):
        with pytest.raises(BadRequest):
            operation(bad)


def test_what_is_between_agents_is_given_to_nobody() -> None:
    assert set(OPERATIONS) - set(GIVEN) == {"open"}
    with pytest.raises(BadRequest, match="there are: status, "):
        operation("open")


def test_a_subject_can_name_each_operation() -> None:
    assert all(name.replace("_", "").isalpha() and len(name) <= 20 for name in OPERATIONS)
    assert operation("cancel").name == "cancel"
