"""A function that says who may ask is bounded: it can hold up a node once, and ends nothing (case 693)."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.identity import UNKNOWN, refusal
from agentmesh_node.user_code.policies import BoundedPolicy

pytestmark = pytest.mark.case(693)
REQUEST: Any = SimpleNamespace(ref="17")


def test_what_it_decides_and_what_it_raises_is_passed_on() -> None:
    assert BoundedPolicy(lambda request: request.ref == "17", "Shop")(REQUEST) is True
    assert refusal(BoundedPolicy(lambda request: True, "Shop"), UNKNOWN, REQUEST) is None

    def exits(request: Any) -> bool:
        raise SystemExit(3)

    def fails(request: Any) -> bool:
        raise KeyError(request.ref)

    for policy, cause in ((exits, "SystemExit"), (fails, "KeyError: '17'")):
        why = refusal(BoundedPolicy(policy, "Shop"), UNKNOWN, REQUEST)
        assert why is not None and cause in why and "cannot decide" in why


def test_one_that_hangs_is_waited_for_once_and_asked_again_when_it_has_returned(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    calls: list[threading.Thread] = []

    def waits(request: Any) -> bool:
        calls.append(threading.current_thread())
        return gate.wait()

    policy = BoundedPolicy(waits, "Shop", limit_s=0.05)
    try:
        for cause in ("within 0.05 s", "an earlier call", "an earlier call"):
            why = refusal(policy, UNKNOWN, REQUEST)
            assert why is not None and cause in why
        assert len(calls) == 1, "only the first was begun"
        assert [record.levelname for record in caplog.records if "holds up the node" in record.message] == ["ERROR"]
    finally:
        gate.set()
    calls[0].join()
    slow = BoundedPolicy(waits, "Shop")
    assert slow(REQUEST) is True
    policy._limit_s = 30
    assert policy(REQUEST) is True and len(calls) == 3
