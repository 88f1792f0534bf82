"""The table of control requests."""

from __future__ import annotations

import pytest

from agentmesh.control_operations import GIVEN, OPERATIONS, operation
from agentmesh.errors import BadRequest


def test_what_is_between_agents_is_given_to_nobody() -> None:
    assert set(OPERATIONS) - set(GIVEN) == {"open"}
    with pytest.raises(BadRequest, match="there are: status, "):
        operation("open")


def test_a_subject_can_name_each_operation() -> None:
    assert all(name.replace("_", "").isalpha() and len(name) <= 20 for name in OPERATIONS)
    assert operation("cancel").name == "cancel"
