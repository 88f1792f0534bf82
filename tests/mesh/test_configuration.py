"""What a `set` request makes of a ledger, and what makes no sense."""

from __future__ import annotations

import json

import pytest

from agentmesh.budget import Limits
from agentmesh.configuration import adjusted, checked, knows, merged, noted, shown_in
from agentmesh.control_values import MAX_SHOWN, Adjustment
from agentmesh.errors import BadRequest
from agentmesh.records import Ledger, Overrides
from agentmesh.registry_values import Restart, Spec

DEEP = json.loads("[" * 200 + "]" * 200)
LEDGER = Ledger(incarnation="i", backend_options={"a": 1, "b": {"c": 2}})


def test_backend_options_are_merged_key_by_key_and_null_removes_one() -> None:
    assert merged({"a": 1, "b": {"c": 2}, "n": None}, {"b": {"d": 3}, "a": None, "e": 0}) == {"b": {"d": 3}, "n": None, "e": 0}


def test_what_is_so_already_is_the_same_ledger() -> None:
    assert adjusted(LEDGER, Adjustment(backend_options={"a": 1, "x": None})) == LEDGER
    changed = adjusted(LEDGER, Adjustment(budget={"usd": 1}, watchdog_s=5.0))
    assert changed.overrides == Overrides(budget=Limits(usd=1), watchdog_s=5.0)
    assert adjusted(changed, Adjustment(budget={"usd": 1.0})) == changed
    assert adjusted(changed, Adjustment(budget={})).overrides.budget == Limits(), "no bounds are not the spec's bounds"


def test_a_request_is_known_by_its_id() -> None:
    ledger = noted(LEDGER, Adjustment(watchdog_s=5.0), "r1", 1.5)
    assert knows(ledger, "r1") and not knows(ledger, "r2")
    assert (ledger.sets[0].number, ledger.sets[0].at) == (1, 1.5)


def test_options_that_are_too_large_are_not_put_into_the_spec() -> None:
    large = noted(adjusted(LEDGER, Adjustment(backend_options={"a": "x" * MAX_SHOWN})), Adjustment(), "r1", 1.0)
    shown = shown_in(Spec(kind="A", incarnation="i"), large)
    assert (shown.sets, shown.backend_options) == (1, None)


@pytest.mark.parametrize(
    "change",
    [
        Adjustment(),
        Adjustment(watchdog_s=0.0),
        Adjustment(watchdog_s=float("inf")),
        Adjustment(budget={"euro": 1}),
        Adjustment(budget={"usd": -1}),
        Adjustment(restart=Restart(within_s=0.0)),
        Adjustment(restart=Restart(max=-1)),
        Adjustment(backend_options={"deep": DEEP}),
    ],
)
def test_what_makes_no_sense_is_refused(change: Adjustment) -> None:
    with pytest.raises(BadRequest):
        checked(change)
