"""A turn's spending: counted from its events, compared with its budget, and handed on as the budget of the agents that it asks.

The events of any backend say what it used: the newest `usage` has the tokens of the turn so far, each `tool_use` is a tool run. A
turn that goes on after a takeover gives the events of its steps again, and the journal has the usages of the agents that were
asked; so the count needs no record of its own.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.backend import Event
from agentmesh.budget import NO_LIMITS, TOKENS, Account, Limits, Prices, Purse, limits_from, prices_from
from agentmesh.errors import BadRequest, BudgetExceeded
from agentmesh.steps import Steps
from agentmesh.wire import Outcome

log = logging.getLogger("agentmesh.node")

PRICES = "MESH_PRICES"
"""Environment variable with prices that replace built-in ones: a file (TOML or JSON), or JSON text."""


def prices_of(environ: Mapping[str, str] = os.environ) -> Prices:
    """The node's price table. Blocks: it may read a file.

    Raises:
        BadRequest: the variable's value cannot be read.
    """
    given = environ.get(PRICES, "").strip()
    if not given:
        return Prices()
    try:
        if given.startswith("{"):
            return prices_from(msgspec.json.decode(given))
        text = Path(given).read_text()
        return prices_from(msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text))
    except (OSError, ValueError, msgspec.MsgspecError, BadRequest) as error:
        raise BadRequest(f"{PRICES}: {error}") from None


def spec_limits(agent: str, budget: Any) -> Limits:
    """The bounds in a spec. Bounds that cannot be read allow nothing, so that no turn exceeds them by mistake."""
    try:
        return limits_from(budget)
    except BadRequest as error:
        log.error("the agent's budget cannot be read: it may spend nothing", extra={"agent": agent, "error": error.message})
        return Limits(tokens=0)


_FRESH = Account()


class BudgetMeter:
    """The account of one run of a turn; it is the turn's `Allowance` (agentmesh.steps)."""

    def __init__(self, purse: Purse, prices: Prices, monotonic: Callable[[], float], *, bound_s: float | None = None) -> None:
        """
        Args:
            bound_s: seconds that the turn may run, and somebody wait for it, besides what its budget says.
        """
        limited = purse.limits is not NO_LIMITS and purse.limits != NO_LIMITS
        # Most turns have no bounds, and many spend nothing: for those little more than this is done.
        account = _FRESH if not limited else Account(limits=purse.limits)
        for wait, usage in purse.delegated.items():
            account = account.with_delegate(wait, usage)
        self._account = account
        self._limited = limited
        self._prices = prices
        self._monotonic = monotonic
        self._began = monotonic() - purse.elapsed_s
        self._ends = None if bound_s is None else monotonic() + bound_s
        self._noted = False
        self._over = False
        self._before: dict[str, Any] = {}
        """The summary of an earlier owner, which has counted that much already."""

    @property
    def elapsed_s(self) -> float:
        """How long the turn has run, earlier tries included."""
        return self._monotonic() - self._began

    @property
    def patience_s(self) -> float | None:
        """How long it may still run."""
        bound = self._account.limits.wall_s if self._limited else None
        return None if bound is None else max(0.0, bound - self.elapsed_s)

    # --- for the backend --------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Return if the turn may go on.

        Raises:
            BudgetExceeded: it may not.
        """
        if self._limited:
            self._account.check(self.elapsed_s)

    def note(self) -> str | None:
        """The message to the model, once, when most of the budget is spent."""
        if self._noted or not self._limited:
            return None
        note = self._account.note(self.elapsed_s)
        self._noted = note is not None
        return note

    def usd_left(self) -> float | None:
        """US dollars that may still be spent."""
        return self._account.left(self.elapsed_s).usd if self._limited else None

    def seconds_left(self) -> float | None:
        """Seconds that the turn may still run, and somebody wait for it."""
        bounds = [self.patience_s, None if self._ends is None else max(0.0, self._ends - self._monotonic())]
        return min((bound for bound in bounds if bound is not None), default=None)

    # --- for the runner ---------------------------------------------------------------------------------------------
    def observe(self, event: Event) -> None:
        """Count an event.

        Raises:
            BudgetExceeded: the turn may not go on. An answer that spends the rest of the budget still counts: the turn ends only
                if it goes on after it.
        """
        if event.kind == "usage":
            self._account = self._account.with_usage(event.data, self._prices)
            self._over = self._is_over()
        elif event.kind == "tool_use":
            self._account = self._account.with_tool_calls()
            if not event.replayed:
                self.check()
        elif self._over and not event.terminal and not event.replayed:
            self.check()

        if event.replayed:
            self._before = self._account.summary()

    def made(self) -> dict[str, Any]:
        """The spending of this run itself: tokens by name, `usd`, `tool_calls`, and the `model`."""
        found = self._account.summary()
        names = (*TOKENS, "usd", "tool_calls")
        spent = {name: found[name] - self._before.get(name, 0) for name in names if name in found}
        return {**{name: amount for name, amount in spent.items() if amount > 0}, "model": str(found.get("model") or "")}

    def _is_over(self) -> bool:
        try:
            self.check()
        except BudgetExceeded:
            return True
        return False

    def exceeded(self) -> BudgetExceeded:
        """The error for a turn whose time is over."""
        try:
            self._account.check(max(self.elapsed_s, self._account.limits.wall_s or 0.0))
        except BudgetExceeded as error:
            return error
        return BudgetExceeded()

    def usage(self) -> dict[str, Any] | None:
        """The turn's spending, as its outcome has it; None if it is nothing."""
        return None if self._account is _FRESH else self._account.summary() or None

    def left(self) -> Limits | None:
        """The budget for agents that the turn asks; None if there is no bound."""
        return self._account.left(self.elapsed_s) if self._limited else None

    def answered(self, wait: str, outcome: Outcome) -> None:
        """Count the spending of an agent that was asked."""
        if outcome.usage:
            self._account = self._account.with_delegate(wait, outcome.usage)
            self._over = self._over or self._is_over()


class MeteredSteps:
    """A turn's steps. Requests to other agents get what is left of its budget, and their usages are counted."""

    def __init__(self, steps: Steps, meter: BudgetMeter) -> None:
        self._steps = steps
        self._meter = meter

    @property
    def taken(self) -> tuple[Any, ...]:
        return self._steps.taken

    @property
    def key(self) -> str:
        return self._steps.key

    def bounded_s(self, seconds: float) -> float:
        return self._steps.bounded_s(seconds)

    async def take(self, step: Any) -> None:
        await self._steps.take(step)

    async def ask(
        self,
        wait: str,
        agent: str,
        prompt: str,
        *,
        timeout_s: float,
        metadata: dict[str, Any] | None = None,
        budget: dict[str, float] | None = None,
        wait_halted: bool = False,
    ) -> Outcome:
        limits = limits_from(budget).tighter(self._meter.left() or NO_LIMITS)
        given = msgspec.to_builtins(limits) if limits else None
        outcome = await self._steps.ask(
            wait, agent, prompt, timeout_s=timeout_s, metadata=metadata, budget=given, wait_halted=wait_halted
        )
        self._meter.answered(wait, outcome)
        return outcome
