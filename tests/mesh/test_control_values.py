"""Control requests as clients of other languages write them (docs/protocol.md#control-requests)."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.control_values import Adjustment, ControlRequest, ref_of


@pytest.mark.parametrize(("ref", "text"), [(b"11", "11"), (b'"11"', "11"), (b"null", None)])
def test_a_ref_may_be_a_number(ref: bytes, text: str | None) -> None:
    assert ref_of(msgspec.json.decode(b'{"op":"poll","ref":' + ref + b"}", type=ControlRequest)) == text


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert msgspec.json.decode(b'{"op":"status","later":1}', type=ControlRequest).op == "status"


def test_an_adjustment_with_a_part_that_nobody_knows_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.json.decode(b'{"colour":"red"}', type=Adjustment)
