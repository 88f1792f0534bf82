"""Another try of a model call, for the backends that make their calls themselves (case 408)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from itertools import islice
from typing import Any

import msgspec

from agentmesh.backend import Event
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls

FIRST_WAIT_S = 0.5
"""Wait before the second try if the server names none; doubled with each further try."""
SPREAD = 0.25
"""Share of a wait by which it varies, so that not all agents try at the same moment."""


class Retries(msgspec.Struct, frozen=True):
    """How often, and how long."""

    attempts: int
    """Most tries of one call."""
    longest_s: float
    """Longest wait between two tries. A server that asks for more is not waited for."""
    reasons: frozenset[str] | None = None
    """The only reasons for another try; None: all that are retryable."""

    def wait(self, error: BackendError, attempt: int, draw: float, left_s: float | None) -> float | None:
        """Seconds until the try behind number `attempt`; None if there is to be none.

        Args:
            draw: a random number from 0 up to 1.
            left_s: seconds that the turn may still run; None without a bound.
        """
        if not error.details.get("retryable") or attempt >= self.attempts:
            return None
        if self.reasons is not None and error.details.get("reason") not in self.reasons:
            return None
        asked = error.details.get("retry_after_s")
        if asked is None:
            wait = next(islice(ExponentialBackoff(FIRST_WAIT_S, self.longest_s), attempt - 1, None)) * (1.0 - draw * SPREAD)
        elif asked <= self.longest_s:
            wait = asked * (1.0 + draw * SPREAD)  # never before the server wants it
        else:
            return None
        return wait if left_s is None or wait < left_s else None


async def again[T](
    attempt: Callable[[], AsyncGenerator[Event | T]], retries: Retries, allowance: Allowance, calls: Calls = UNMOVED
) -> AsyncGenerator[Event | T]:
    """What `attempt()` gives, made again while that may help. Each further try is told by a text event without text: `retry` has
    its number, the wait and the reason; with `restart`, what was given of the answer is void.

    Raises:
        BackendError: the last try's.
        BudgetExceeded: the budget is spent.
    """
    for number in range(1, retries.attempts + 1):
        begun = False
        try:
            async with aclosing(attempt()) as parts:
                async for part in parts:
                    begun = begun or isinstance(part, Event)
                    yield part
            return
        except BackendError as error:
            wait = retries.wait(error, number, _draw(), allowance.seconds_left())
            if wait is None:
                raise
            reason = str(error.details.get("reason"))
        yield told_again(number + 1, wait, reason, restart=begun)
        async with calls.resting():
            await asyncio.sleep(wait)
        allowance.check()


def told_again(attempt: int | None, wait_s: float | None, reason: str, *, restart: bool) -> Event:
    """The event that says that a model is asked again.

    Args:
        attempt: the number of the try that comes, from 2; None where it is not known.
        wait_s: seconds until then, or None.
        restart: whether text of the answer that broke off was given: it is void.
    """
    retry: dict[str, Any] = {"reason": reason}
    if attempt is not None:
        retry["attempt"] = attempt
    if wait_s is not None:
        retry["after_s"] = round(wait_s, 3)
    return Event("text", {"text": "", "retry": retry, **({"restart": True} if restart else {})})


def _draw() -> float:
    """A random number from 0 up to 1."""
    return int(SYSTEM.token(4), 16) / 2**32
