"""Specs, leases and placements in bytes."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.registry_values import Spec, encode_spec, parent_sign, unknown_fields
from agentmesh.wire import encode


@pytest.mark.parametrize(
    "more", [{}, {"status": "running", "options": {"a": [1]}, "parent_life": "p1", "since": "2026-01-02T03:04:05Z"}]
)
def test_the_sign_of_a_parent_stands_in_what_the_encoder_writes(more: dict[str, Any]) -> None:
    spec = Spec(kind="Coder", incarnation="1", parent="team-a.boss", **more)
    assert parent_sign("team-a.boss") == b'"parent":"team-a.boss"'
    assert parent_sign("team-a.boss") in encode(spec)
    assert parent_sign("team-a") not in encode(spec)
    assert parent_sign("team-a.boss") not in encode(Spec(kind="Coder", incarnation="1", parent_life="team-a.boss"))


def test_what_a_later_build_has_written_into_a_spec_survives() -> None:
    stored = b'{"kind":"Coder","incarnation":"1","later":{"a":[1,2]}}'
    assert bytes(unknown_fields(stored)["later"]) == b'{"a":[1,2]}'
    assert b'"later":{"a":[1,2]}' in encode_spec(Spec(kind="Coder", incarnation="1", status="running"), stored)
