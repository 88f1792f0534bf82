"""Budgets: limits, spending, shares, prices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.budget import (
    FIELDS,
    NO_LIMITS,
    PRICES,
    TOKENS,
    Account,
    Limits,
    Price,
    Prices,
    Spending,
    as_usage,
    limits_from,
    prices_from,
    spending_of,
)
from agentmesh.errors import BadRequest, BudgetExceeded

AMOUNT = st.floats(0, 1e9)
LIMITS = st.builds(Limits, **dict.fromkeys(FIELDS, st.none() | AMOUNT))
SPENDING = st.builds(Spending, tokens=st.integers(0, 10**12), usd=AMOUNT, wall_s=AMOUNT, tool_calls=st.integers(0, 10**6))
USAGE = st.fixed_dictionaries({name: st.integers(0, 10**9) for name in TOKENS})
PRICE = st.builds(Price, AMOUNT, AMOUNT, st.none() | AMOUNT, st.none() | AMOUNT)


@given(LIMITS, LIMITS, SPENDING)
def test_the_tighter_limits_are_reached_when_either_is(one: Limits, other: Limits, spent: Spending) -> None:
    both = one.tighter(other)
    assert set(both.reached(spent)) == {*one.reached(spent), *other.reached(spent)}
    assert both == other.tighter(one)
    assert one.tighter(NO_LIMITS) == one.tighter(one) == one


@given(LIMITS, SPENDING, SPENDING)
def test_what_is_left_is_reached_by_what_is_spent_later(limits: Limits, before: Spending, after: Spending) -> None:
    left = limits.less(before)
    assert all(getattr(left, name) is None or getattr(left, name) >= 0 for name in FIELDS)
    assert set(limits.reached(before)) - {"tool_calls"} <= set(left.reached(after)), "what is spent stays spent"
    if limits.tokens is not None and limits.tokens == int(limits.tokens):
        assert ("tokens" in left.reached(after)) == ("tokens" in limits.reached(before + after))
    if limits.tool_calls is not None and limits.tool_calls == int(limits.tool_calls) and after.tool_calls:
        assert ("tool_calls" in left.reached(after)) == ("tool_calls" in limits.reached(before + after))


@given(LIMITS, SPENDING)
def test_the_share_is_one_exactly_where_a_bound_is_reached(limits: Limits, spent: Spending) -> None:
    if limits.reached(spent):
        assert limits.share(spent) >= 1.0
    else:
        assert limits.share(spent) <= 1.0


@given(SPENDING)
def test_spending_survives_the_wire_without_its_time(spent: Spending) -> None:
    again = spending_of(msgspec.json.decode(msgspec.json.encode(as_usage(spent))))
    assert (again.tokens, again.tool_calls, again.wall_s) == (spent.tokens, spent.tool_calls, 0.0)
    assert again.usd == pytest.approx(spent.usd, abs=1e-8)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*TOKENS, "usd", "tool_calls", "delegated", "x"]), inner),
    max_leaves=20,
)


@given(JSON)
def test_usage_of_any_shape_can_be_counted(usage: Any) -> None:
    spent = spending_of(usage)
    assert spent.tokens >= 0 and spent.usd >= 0 and spent.tool_calls >= 0


@given(JSON)
def test_a_budget_of_any_shape_is_read_or_refused(value: Any) -> None:
    try:
        limits = limits_from(value)
    except BadRequest:
        return
    assert limits_from(msgspec.json.encode(limits)) == limits


@pytest.mark.parametrize(
    "value", ["", "[]", "7", '{"tokens": -1}', '{"usd": "1"}', '{"euro": 1}', {"tokens": float("nan")}, 5, [1]]
)
def test_budgets_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(BadRequest):
        limits_from(value)


def test_budgets_as_they_are_written() -> None:
    assert limits_from(None) == limits_from("{}") == NO_LIMITS
    assert not NO_LIMITS
    assert limits_from({"usd": 1, "wall_s": 2.5}) == Limits(usd=1, wall_s=2.5)
    assert msgspec.json.encode(Limits(tokens=5)) == b'{"tokens":5}'


@given(PRICE, USAGE, USAGE)
def test_prices_add_up(price: Price, one: dict[str, int], other: dict[str, int]) -> None:
    both = {name: one[name] + other[name] for name in TOKENS}
    assert price.of(both) == pytest.approx(price.of(one) + price.of(other))


def test_a_price_is_found_by_the_longest_name() -> None:
    prices = prices_from({"own": {"input": 1, "output": 2}, "gpt-5": {"input": 100, "output": 1}})
    million = dict.fromkeys(TOKENS, 1_000_000)
    assert prices.cost({**million, "model": "own"}) == 1 + 2 + 1 + 1
    assert prices.cost({**million, "model": "claude-opus-4-5-20251101"}) == 5 + 25 + 0.5 + 6.25
    assert prices.cost({**million, "model": "claude-opus-4-1"}) == 15 + 75 + 1.5 + 18.75
    assert prices.cost({"input_tokens": 1_000_000, "model": "gpt-5-codex"}) == 100
    assert prices.cost({"input_tokens": 1_000_000, "model": "gpt-50"}) is None
    assert prices.cost({"model": "gpt-50"}) == 0.0
    assert prices.cost({**million, "model": "unknown", "cost_usd": 0.25}) == 0.25
    assert Prices().find("gpt-5.4-mini-2026") is PRICES["gpt-5.4-mini"]
    with pytest.raises(BadRequest):
        prices_from({"x": {"input": 1}})


def account(**limits: float) -> Account:
    return Account(limits=Limits(**limits))


def test_an_account_counts_the_turn_and_those_that_it_asked() -> None:
    own = account().with_usage(
        {"input_tokens": 10, "output_tokens": 5, "model": "own"}, prices_from({"own": {"input": 1e6, "output": 0}})
    )
    own = own.with_tool_calls(2).with_delegate(
        "a", {"input_tokens": 100, "usd": 0.5, "tool_calls": 1, "delegated": {"tokens": 7, "usd": 1.0}}
    )
    own = own.with_delegate("a", {"input_tokens": 100, "usd": 0.5, "tool_calls": 1, "delegated": {"tokens": 7, "usd": 1.0}})
    assert own.spent(3.0) == Spending(tokens=122, usd=11.5, wall_s=3.0, tool_calls=3)
    assert own.summary() == {
        "input_tokens": 10, "output_tokens": 5, "model": "own", "usd": 10.0, "tool_calls": 2,
        "delegated": {"tokens": 107, "usd": 1.5, "tool_calls": 1},
    }  # fmt: skip
    assert spending_of(own.summary()) == Spending(tokens=122, usd=11.5, tool_calls=3)


def test_at_four_fifths_the_model_is_told_and_at_the_whole_the_turn_ends() -> None:
    prices = Prices()
    fresh = account(tokens=100)
    fresh.check()
    assert fresh.note() is None
    assert fresh.with_usage({"input_tokens": 79}, prices).note() is None
    warned = fresh.with_usage({"input_tokens": 80, "cost_usd": 0}, prices)
    assert "80 %" in (warned.note() or "")
    warned.check()
    assert warned.left() == Limits(tokens=20)
    with pytest.raises(BudgetExceeded) as caught:
        warned.with_delegate("w", {"output_tokens": 20}).check()
    assert caught.value.details["reached"] == ["tokens"]
    assert caught.value.details["spent"]["tokens"] == 100


def test_time_counts_too() -> None:
    limited = account(wall_s=10)
    assert limited.note(7.9) is None
    assert limited.note(8.0) is not None
    with pytest.raises(BudgetExceeded):
        limited.check(10.0)


def test_a_bound_on_money_without_a_price_is_not_passed_over() -> None:
    with pytest.raises(BudgetExceeded, match="no price for new-model"):
        account(usd=1).with_usage({"input_tokens": 1, "model": "new-model"}, Prices()).check()
    account(tokens=10).with_usage({"input_tokens": 1, "model": "new-model"}, Prices()).check()
