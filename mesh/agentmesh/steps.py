"""Steps: the durable pieces of a turn that is not over yet (docs/architecture.md#steps).

A backend that loops over model calls and tools commits a step after each: the journal has it before the next call is made. A
turn that lost its node begins again with the steps committed so far: the backend goes on behind the last of them, and repeats
only the call that was in flight. A step is any JSON value; its meaning is the backend's business.

A wait inside a turn (another agent used as a tool) is durable as well: the mesh journals the request, and later its outcome;
the backend sees them only through `ask`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol

from agentmesh.errors import Unavailable
from agentmesh.wire import Outcome

MARGIN_S = 5.0
"""How long before the outer bound an inner wait ends (a tenth of the time that is left, if that is less): the model is told."""


def inner_s(wanted_s: float, outer_s: float) -> float:
    """How long a wait that may take `wanted_s` seconds lasts inside one that ends in `outer_s` seconds."""
    return min(wanted_s, max(0.0, outer_s - min(MARGIN_S, outer_s / 10)))


class Steps(Protocol):
    """The durable part of one turn, as its backend sees it."""

    @property
    def taken(self) -> tuple[Any, ...]:
        """The steps taken so far, oldest first: also those of an owner that died in the middle of this turn."""

    @property
    def key(self) -> str:
        """The turn's name: the same however often the turn is tried, and shared by no other turn of any agent.

        An idempotency key for a tool call is this, a slash, and the call's id.
        """

    def bounded_s(self, seconds: float) -> float:
        """How long a call within the turn may take that is allowed `seconds`: it ends before the turn's watchdog and the bound on
        its wall time (`inner_s`)."""

    async def take(self, step: Any) -> None:
        """Commit `step`; returns when the journal has it.

        Raises:
            TooLarge: the step cannot be stored.
            BadRequest: it is no JSON value.
        """

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
        """Ask another agent durably, and wait for its outcome.

        `wait` names this wait within the turn: asked again under that name, after a takeover too, the request is not sent
        twice and gets the same outcome. Never raises for what the other agent does: a refusal, a circle (`cycle`), or no
        outcome within `timeout_s` seconds (`timeout`) is an outcome with that error. The wait ends before the turn's watchdog,
        its bound on wall time, and the request's end, whatever `timeout_s` says (`inner_s`). It ends with an agent that has
        failed, and, after MESH_WAIT_PATIENCE_S, with one that is halted (unless `wait_halted`) or that no node runs: its question
        is withdrawn then, and the error says why.
        """


class Calls(Protocol):
    """Where a turn may be handed to another node: between its calls, behind what is durable (docs/design/047-a-turn-moves.md).

    A backend that takes steps says when a call of a model or a run of a tool begins and ends. Where its node leaves, a turn with
    no call open goes on elsewhere, and none of its calls is made again.
    """

    async def begin(self) -> None:
        """A call is about to be made. Never returns once the turn is to go on elsewhere: it is made there."""

    def end(self) -> None:
        """That call is over, and the step that has its result is committed."""

    def resting(self) -> AbstractAsyncContextManager[None]:
        """The block, inside an open call, only waits: for another agent (`Steps.ask`), or until it tries again. Whatever it waits
        for must be found again by the next owner. Leaving the block never returns once the turn is to go on elsewhere."""


class Unmoved:
    """The calls of a turn that is never handed over: of a backend that runs outside the mesh."""

    async def begin(self) -> None:
        return None

    def end(self) -> None:
        return None

    def resting(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


UNMOVED = Unmoved()


class Allowance(Protocol):
    """What a turn may still spend (agentmesh.budget), as its backend sees it.

    The mesh counts a turn's events and ends a turn that exceeds its budget. A backend that asks this object does better: it tells
    its model in time, and begins no call that is not allowed.
    """

    def check(self) -> None:
        """Return if another call may be made.

        Raises:
            BudgetExceeded: the budget is spent; the turn ends with this error.
        """

    def note(self) -> str | None:
        """What to tell the model with its next request; once, when most of the budget is spent."""

    def usd_left(self) -> float | None:
        """US dollars that may still be spent; None where there is no bound on money."""

    def seconds_left(self) -> float | None:
        """Seconds that the turn may still run, and somebody wait for it; None where there is no bound."""


class Unlimited:
    """The allowance of a turn without a budget."""

    def check(self) -> None:
        return None

    def note(self) -> str | None:
        return None

    def usd_left(self) -> float | None:
        return None

    def seconds_left(self) -> float | None:
        return None


class UnjournaledSteps:
    """Steps kept in memory only: for a backend that runs outside the mesh, as in its conformance tests."""

    def __init__(self, taken: tuple[Any, ...] = (), key: str = "turn") -> None:
        self._taken = list(taken)
        self._key = key

    @property
    def taken(self) -> tuple[Any, ...]:
        return tuple(self._taken)

    @property
    def key(self) -> str:
        return self._key

    def bounded_s(self, seconds: float) -> float:
        return seconds

    async def take(self, step: Any) -> None:
        self._taken.append(step)

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
        raise Unavailable(f"outside a mesh there is no agent {agent} to ask")
