"""The effects that a record may call for: each has a tag and a target of its own, and is read as it was written."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from agentmesh.effects import (
    Bury,
    CancelTimer,
    Echo,
    Effect,
    Resolve,
    SendMail,
    SetTimer,
    StartAgent,
    StopAgent,
    target_of,
)
from agentmesh.wire import ErrorBody, Outcome

TARGETS: list[tuple[Effect, str]] = [
    (Resolve(outcome=Outcome(agent="a", ref="7", ok=True)), "result:7"),
    (Echo(ref="9", of="7"), "result:9"),
    (SendMail(to="b", lane="peer-inbox"), "agent:b"),
    (StartAgent(name="b", kind="K"), "agent:b"),
    (StopAgent(name="b"), "agent:b"),
    (SetTimer(id="t", due=1.0), "timer:t"),
    (CancelTimer(id="t"), "timer:t"),
    (Bury(lane="inbox", seq=3, reason=ErrorBody(code="failed")), "dead"),
]


@pytest.mark.parametrize(
    ("effect", "target"), TARGETS, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_each_is_read_as_it_was_written_and_has_its_target(effect: Effect, target: str) -> None:
    decoded: Any = msgspec.json.decode(msgspec.json.encode(effect), type=Effect.__value__)
    assert (type(decoded), decoded, target_of(decoded)) == (type(effect), effect, target)


def test_the_table_has_each_kind() -> None:
    assert {type(effect) for effect, _ in TARGETS} == set(get_args(Effect.__value__))
