"""Budgets: what a request may cost, what it has cost, and what models cost. Values and arithmetic, without a clock.

A turn answers a request, and may ask other agents, whose turns may ask others: what they all spend counts for the request.
Tokens are all tokens, including those read from and written to a cache. Money is in US dollars: the backend's own figure if it
gives one, else by the price of its model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from agentmesh.errors import BadRequest, BudgetExceeded

WARN_AT = 0.8
"""The share of a limit at which the model is told to come to an end."""
TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
"""The token counts in a backend's usage; they do not overlap."""
COSTS = ("usd", "cost_usd")
"""The fields of a usage that may hold its cost."""
DELEGATED = "delegated"
"""The field of an outcome's usage that sums up the agents asked in its turn."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Bounds of one request; None is no bound. As JSON the header `Mesh-Budget`, and `budget` in a spec."""

    tokens: float | None = None
    usd: float | None = None
    wall_s: float | None = None
    """Seconds from the turn's beginning."""
    tool_calls: float | None = None

    def __bool__(self) -> bool:
        return self != NO_LIMITS

    def tighter(self, other: Limits) -> Limits:
        """The smaller of both bounds, field by field."""
        return Limits(**{name: _smaller(getattr(self, name), getattr(other, name)) for name in FIELDS})

    def less(self, spent: Spending) -> Limits:
        """What is left of each bound; nothing is less than 0."""
        return Limits(**{name: _less(getattr(self, name), getattr(spent, name)) for name in FIELDS})

    def share(self, spent: Spending) -> float:
        """The spent share of the bound that is closest to being reached: 1.0 is all of it. 0.0 without bounds."""
        shares = [_share(getattr(self, name), getattr(spent, name)) for name in FIELDS if getattr(self, name) is not None]
        return max(shares, default=0.0)

    def reached(self, spent: Spending) -> tuple[str, ...]:
        """The bounds that end the turn now: those that are spent. The last allowed tool call may still be answered, so the bound
        on tool calls ends a turn only at the call after it."""
        bounds = ((name, getattr(self, name), getattr(spent, name)) for name in FIELDS)
        return tuple(
            name
            for name, bound, amount in bounds
            if bound is not None and (amount > bound if name == "tool_calls" else amount >= bound)
        )


FIELDS = Limits.__struct_fields__
NO_LIMITS = Limits()


class Spending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was spent."""

    tokens: int = 0
    usd: float = 0.0
    wall_s: float = 0.0
    tool_calls: int = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            tokens=self.tokens + other.tokens,
            usd=self.usd + other.usd,
            wall_s=self.wall_s + other.wall_s,
            tool_calls=self.tool_calls + other.tool_calls,
        )


NOTHING_SPENT = Spending()


def limits_from(value: Any) -> Limits:
    """The limits in a mapping or in JSON text; None is none.

    Raises:
        BadRequest: it has another shape, an unknown field, or a bound below 0.
    """
    try:
        if isinstance(value, str | bytes):
            limits = msgspec.json.decode(value, type=Limits)
        else:
            limits = msgspec.convert({} if value is None else dict(value), Limits)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        known = ", ".join(FIELDS)
        raise BadRequest(f"a budget is an object with some of {known}, each a number: {error}") from None
    for name in FIELDS:
        bound = getattr(limits, name)
        if bound is not None and not (bound >= 0 and math.isfinite(bound)):
            raise BadRequest(f"a budget's {name} is a number, 0 or more, not {bound!r}")
    return limits


def spending_of(usage: Any) -> Spending:
    """The spending in an outcome's usage, including what the agents spent that it asked. Never raises."""
    if not isinstance(usage, Mapping):
        return NOTHING_SPENT
    own = Spending(
        tokens=sum(int(_number(usage.get(name))) for name in (*TOKENS, "tokens")),
        usd=next((_number(usage[name]) for name in COSTS if name in usage), 0.0),
        tool_calls=int(_number(usage.get("tool_calls"))),
    )
    return own + spending_of(usage.get(DELEGATED))


def added(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """`total` with the numbers of `usage` added, field by field; what is no number is passed over."""
    out = dict(total)
    for key, value in usage.items():
        if isinstance(value, dict):
            former = out.get(key)
            out[key] = added(former if isinstance(former, dict) else {}, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[key] = out.get(key, 0) + value
    return out


def as_usage(spent: Spending) -> dict[str, Any]:
    """Spending in the form in which an outcome's usage has that of delegates. Time is left out: they work at the same time."""
    return {"tokens": spent.tokens, "usd": round(spent.usd, 9), "tool_calls": spent.tool_calls}


# --- prices -----------------------------------------------------------------------------------------------------------
class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input: float
    output: float
    cache_read: float | None = None
    """The input's unless given."""
    cache_write: float | None = None
    """The input's unless given."""

    def of(self, usage: Mapping[str, Any]) -> float:
        """What that many tokens cost, in US dollars."""
        read = self.input if self.cache_read is None else self.cache_read
        written = self.input if self.cache_write is None else self.cache_write
        prices = zip(TOKENS, (self.input, self.output, read, written), strict=True)
        return sum(_number(usage.get(name)) * price for name, price in prices) / 1e6


PRICES: dict[str, Price] = {
    "claude-fable-5": Price(10, 50, 1, 12.5),
    "claude-fable-5-1": Price(10, 50, 0.25, 12.5),
    "claude-mythos-5": Price(10, 50, 1, 12.5),
    "claude-mythos-5-1": Price(10, 50, 0.25, 12.5),
    "claude-opus-4": Price(15, 75, 1.5, 18.75),
    "claude-opus-4-5": Price(5, 25, 0.5, 6.25),
    "claude-opus-4-6": Price(5, 25, 0.5, 6.25),
    "claude-opus-4-7": Price(5, 25, 0.5, 6.25),
    "claude-opus-4-8": Price(5, 25, 0.5, 6.25),
    "claude-opus-5": Price(5, 25, 0.5, 6.25),
    "claude-opus-5-5": Price(4, 20, 0.2, 5),
    "claude-sonnet-4": Price(3, 15, 0.3, 3.75),
    "claude-sonnet-5": Price(2, 10, 0.2, 2.5),
    "claude-sonnet-5-5": Price(2, 10, 0.1, 2.5),
    "claude-haiku-4-5": Price(1, 5, 0.1, 1.25),
    # Long prompts cost five times as much as short ones; the usage does not say which it was, so the higher price is used.
    "claude-haiku-5-5": Price(0.5, 2.5, 0.05, 0.625),
    "gpt-5": Price(1.25, 10, 0.125),
    "gpt-5.2": Price(1.75, 14, 0.175),
    "gpt-5.3": Price(1.75, 14, 0.175),
    "gpt-5.4": Price(2.5, 15, 0.25),
    "gpt-5.4-mini": Price(0.75, 4.5, 0.075),
    "gpt-5.5": Price(5, 30, 0.5),
}
"""List prices by the beginning of the model's name, as of autumn 2026. They change: operators override them."""


class Prices:
    """A price table."""

    def __init__(self, table: Mapping[str, Price] | None = None, given: Mapping[str, Price] | None = None) -> None:
        """
        Args:
            table: prices that are known.
            given: prices that an operator gave, which go before these.
        """
        self._given = dict(given or {})
        self._table = {**(PRICES if table is None else table), **self._given}

    def find(self, model: str) -> Price | None:
        """The price of the longest name in the table that `model` is, or begins with: `a-5` stands for `a-5-20260101`, not for
        `a-50`; None where there is none."""
        best = self._best(model)
        return None if best is None else self._table[best]

    def given(self, model: str) -> Price | None:
        """The model's price, if it is one that an operator gave."""
        return self._given.get(self._best(model) or "")

    def _best(self, model: str) -> str | None:
        names = (name for name in self._table if model == name or (model.startswith(name) and model[len(name)] in "-@:/"))
        return max(names, key=len, default=None)

    def cost(self, usage: Mapping[str, Any]) -> float | None:
        """What `usage` cost in US dollars: as it says itself, else by the price of its `model`; None where neither is known."""
        for name in COSTS:
            if name in usage:
                return _number(usage[name])
        price = self.find(str(usage.get("model") or ""))
        if price is not None:
            return price.of(usage)
        return None if any(_number(usage.get(name)) for name in TOKENS) else 0.0


def prices_from(given: Any) -> Prices:
    """The table with what `given` says of some models: `{"<model>": {"input", "output", "cache_read"?, "cache_write"?}}`.

    Raises:
        BadRequest: it has another shape.
    """
    try:
        own = msgspec.convert(given, dict[str, Price])
    except msgspec.ValidationError as error:
        raise BadRequest(f"prices are objects by model, in US dollars per million tokens: {error}") from None
    return Prices(given=own)


class Purse(msgspec.Struct, frozen=True):
    """What a turn begins with."""

    limits: Limits = NO_LIMITS
    elapsed_s: float = 0.0
    """Seconds since it first began, if it goes on from the steps of an earlier try."""
    delegated: dict[str, Any] = {}
    """Usages reported by the agents that an earlier try asked, by the names of the waits."""


EMPTY_PURSE = Purse()


# --- an account -------------------------------------------------------------------------------------------------------
class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn may spend and has spent. A value: each method returns the next."""

    limits: Limits = NO_LIMITS
    usage: dict[str, Any] = {}
    """The turn's own tokens so far, as its backend last reported them."""
    usd: float | None = 0.0
    """What they cost; None where no price is known."""
    tool_calls: int = 0
    delegates: dict[str, Spending] = {}
    """What the agents spent that the turn has asked, by the name of the wait: a wait that is reported again counts once."""

    def with_usage(self, usage: Mapping[str, Any], prices: Prices) -> Account:
        """The account after a usage event, which has the turn's tokens so far."""
        return structs.replace(self, usage=dict(usage), usd=prices.cost(usage))

    def with_tool_calls(self, tools: int = 1) -> Account:
        """The account after `tools` more tool runs have begun."""
        return structs.replace(self, tool_calls=self.tool_calls + tools)

    def with_delegate(self, wait: str, usage: Any) -> Account:
        """The account after the answer to a wait."""
        return structs.replace(self, delegates={**self.delegates, wait: spending_of(usage)})

    def spent(self, wall_s: float = 0.0) -> Spending:
        """All that counts for the turn, after it has run for `wall_s` seconds."""
        own = structs.replace(
            spending_of({name: self.usage.get(name) for name in TOKENS}),
            usd=self.usd or 0.0,
            wall_s=wall_s,
            tool_calls=self.tool_calls,
        )
        return sum(self.delegates.values(), own)

    def left(self, wall_s: float = 0.0) -> Limits:
        """What a delegate may spend."""
        return self.limits.less(self.spent(wall_s))

    def check(self, wall_s: float = 0.0) -> None:
        """Return if the turn may go on.

        Raises:
            BudgetExceeded: a bound is spent, or money is bounded and the model has no price. `details` has `spent`, `budget`
                and `reached`.
        """
        spent = self.spent(wall_s)
        reached = self.limits.reached(spent)
        if self.limits.usd is not None and self.usd is None:
            model = self.usage.get("model") or "this model"
            raise self._exceeded(
                ("usd",), spent, f"there is no price for {model}: give its price (MESH_PRICES), or no bound on money"
            )
        if reached:
            what = ", ".join(f"{name} {getattr(spent, name):g} of {getattr(self.limits, name):g}" for name in reached)
            raise self._exceeded(reached, spent, f"the budget is spent: {what}; ask again with a larger one, or for less")

    def _exceeded(self, reached: tuple[str, ...], spent: Spending, message: str) -> BudgetExceeded:
        details = {
            "reached": list(reached),
            "spent": {name: getattr(spent, name) for name in FIELDS},
            "budget": msgspec.to_builtins(self.limits),
        }
        return BudgetExceeded(message, details=details)

    def note(self, wall_s: float = 0.0) -> str | None:
        """The message to the model once most of the budget is spent; None before."""
        spent = self.spent(wall_s)
        share = self.limits.share(spent)
        if share < WARN_AT:
            return None
        return (
            f"[budget] {min(100, round(share * 100))} % of what this request may cost is spent. Come to an end now: "
            "give the best answer that you can from what you have, without further tool calls."
        )

    def summary(self) -> dict[str, Any]:
        """The turn's usage, as its outcome has it."""
        found = dict(self.usage)
        for name in (*COSTS, "tool_calls"):
            found.pop(name, None)
        if self.usd is not None and (self.usd or self.usage):
            found["usd"] = round(self.usd, 9)
        if self.tool_calls:
            found["tool_calls"] = self.tool_calls
        if self.delegates:
            found[DELEGATED] = as_usage(sum(self.delegates.values(), NOTHING_SPENT))
        return found


def _number(value: Any) -> float:
    """`value` if it is a number that can be added up, else 0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    return 0.0


def _smaller(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


def _less(bound: float | None, spent: float) -> float | None:
    return None if bound is None else max(0.0, bound - spent)


def _share(bound: float, spent: float) -> float:
    return spent / bound if bound > 0 else 1.0
