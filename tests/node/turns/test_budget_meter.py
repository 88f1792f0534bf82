"""What a turn spends, as the runner counts it; prices from the environment; metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from agentmesh import semconv
from agentmesh.backend import Event
from agentmesh.budget import Limits, Prices, Purse
from agentmesh.errors import BadRequest, BudgetExceeded
from agentmesh.wire import Outcome
from agentmesh_node.telemetry.metrics import TurnMetrics
from agentmesh_node.turns.budget_meter import PRICES, BudgetMeter, prices_of, spec_limits


class Clock:
    """Stands still unless it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(
    clock: Clock | None = None, *, elapsed_s: float = 0.0, delegated: dict[str, Any] | None = None, **limits: float
) -> BudgetMeter:
    purse = Purse(Limits(**limits), elapsed_s, delegated or {})
    return BudgetMeter(purse, Prices(), clock or Clock())


def used(tokens: int, *, replayed: bool = False, **more: Any) -> Event:
    return Event("usage", {"input_tokens": tokens, "output_tokens": 0, **more}, replayed)


@pytest.mark.case(408)
def test_the_time_that_a_turn_has_left_is_its_bounds_or_its_budgets() -> None:
    clock = Clock()
    bounded = BudgetMeter(Purse(Limits(wall_s=50.0), 10.0, {}), Prices(), clock, bound_s=60.0)
    assert bounded.seconds_left() == 40.0
    clock.now += 30.0
    assert bounded.seconds_left() == 10.0
    clock.now += 30.0
    assert bounded.seconds_left() == 0.0
    assert BudgetMeter(Purse(), Prices(), clock, bound_s=60.0).seconds_left() == 60.0
    assert meter().seconds_left() is None


def test_a_turn_that_goes_on_behind_its_budget_is_ended_and_an_answer_is_not() -> None:
    own = meter(tokens=10)
    own.observe(used(10))
    own.observe(Event.result("done"))
    with pytest.raises(BudgetExceeded):
        own.observe(Event.text("and"))


def test_a_tool_call_too_many_ends_a_turn_and_the_last_one_does_not() -> None:
    own = meter(tool_calls=1)
    own.observe(Event("tool_use", {"id": "1"}))
    own.check()
    assert own.note() is not None
    assert own.note() is None, "once"
    with pytest.raises(BudgetExceeded):
        own.observe(Event("tool_use", {"id": "2"}))


def test_time_counts_from_the_first_try() -> None:
    clock = Clock()
    own = meter(clock, elapsed_s=4.0, wall_s=10.0)
    assert own.patience_s == 6.0
    clock.now += 5.0
    own.check()
    clock.now += 1.0
    with pytest.raises(BudgetExceeded):
        own.check()
    assert own.exceeded().details["reached"] == ["wall_s"]
    assert meter().patience_s is None


def test_what_an_earlier_owner_counted_is_not_counted_again() -> None:
    own = meter(delegated={"w": {"input_tokens": 7}}, tokens=100)
    own.observe(Event("tool_use", {"id": "1"}, replayed=True))
    own.observe(used(10, replayed=True, model="gpt-5"))
    own.observe(used(25, model="gpt-5"))
    own.observe(Event("tool_use", {"id": "2"}))
    assert own.made() == {"input_tokens": 15, "usd": pytest.approx(15 * 1.25e-6), "tool_calls": 1, "model": "gpt-5"}
    own.answered("w", Outcome(agent="a", ref="1", ok=True, usage={"input_tokens": 7}))
    usage = own.usage()
    assert usage is not None
    assert (usage["input_tokens"], usage["tool_calls"], usage["delegated"]["tokens"]) == (25, 2, 7)
    assert own.left() == Limits(tokens=100 - 25 - 7)
    assert meter().usage() is None
    assert meter().left() is None


def test_prices_come_from_text_or_a_file(tmp_path: Path) -> None:
    usage = {"input_tokens": 1_000_000, "model": "mine"}
    assert prices_of({}).cost(usage) is None
    assert prices_of({PRICES: '{"mine": {"input": 3, "output": 4}}'}).cost(usage) == 3
    toml = tmp_path / "prices.toml"
    toml.write_text('[mine]\ninput = 5\noutput = 6\n["a.b"]\ninput = 1\noutput = 1\n')
    assert prices_of({PRICES: str(toml)}).cost(usage) == 5
    for wrong in ("{", "nowhere.toml", '{"mine": 3}'):
        with pytest.raises(BadRequest, match=PRICES):
            prices_of({PRICES: wrong})


def test_a_spec_whose_budget_cannot_be_read_allows_nothing() -> None:
    assert spec_limits("a", {"usd": 1}) == Limits(usd=1)
    assert spec_limits("a", None) == Limits()
    assert spec_limits("a", {"usd": "much"}) == Limits(tokens=0)


def test_counters_count_tokens_and_money_by_model_and_kind() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics = TurnMetrics(provider.get_meter("test"))
    made = {"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 2, "usd": 0.5, "tool_calls": 4, "model": "m"}
    metrics.spent("Coder", made)
    metrics.spent("Coder", made)
    data = reader.get_metrics_data()
    assert data is not None
    found = {m.name: m.data.data_points[0] for m in data.resource_metrics[0].scope_metrics[0].metrics}
    values = {name: point.value for name, point in found.items() if isinstance(point, NumberDataPoint)}
    assert values == {
        semconv.INPUT_TOKENS_COUNTER: 14, semconv.OUTPUT_TOKENS_COUNTER: 6, semconv.CACHE_READ_TOKENS_COUNTER: 4,
        semconv.COST_COUNTER: 1.0, semconv.TOOL_CALLS_COUNTER: 8,
    }  # fmt: skip
    assert dict(found[semconv.INPUT_TOKENS_COUNTER].attributes or {}) == {
        semconv.OPERATION: "chat", semconv.REQUEST_MODEL: "m", semconv.KIND: "Coder",
    }  # fmt: skip
    provider.shutdown()
