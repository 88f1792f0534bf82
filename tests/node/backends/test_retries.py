"""Tries of model calls, under a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError, BudgetExceeded
from agentmesh.steps import Unlimited
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.backends.retries import Retries, again
from sim.loop import SimLoop, run_sim

OPTIONS = AnthropicOptions()
USUAL = Retries(OPTIONS.attempts, OPTIONS.max_wait_s)


def away(reason: str = "overloaded", **details: Any) -> BackendError:
    return BackendError("away", details={"reason": reason, "retryable": True, **details})


class Server:
    """Answers from some time on."""

    def __init__(self, loop: SimLoop, from_s: float, error: Callable[[], BackendError] = away, *, begins: bool = False) -> None:
        self._loop, self._from, self._error, self._begins = loop, loop.time() + from_s, error, begins
        self.tries: list[float] = []

    async def attempt(self) -> AsyncGenerator[Event | str]:
        self.tries.append(self._loop.time())
        if self._loop.time() < self._from:
            if self._begins:
                yield Event.text("half")
            raise self._error()
        yield "answer"


class Left(Unlimited):
    def __init__(self, loop: SimLoop, seconds: float) -> None:
        self._loop, self._ends = loop, loop.time() + seconds

    def seconds_left(self) -> float | None:
        return self._ends - self._loop.time()


@pytest.mark.case(408)
@pytest.mark.parametrize(
    ("from_s", "error"),
    [
        (12.0, lambda: away("connection")),  # a model server that is restarted
        (5.0, lambda: away("rate_limited", retry_after_s=5.0)),  # a gateway that cools down
        (5.0, lambda: away("overloaded")),
        (12.0, lambda: away("stream_broken")),
    ],
)
def test_tries_outlast_a_restart_and_a_cooling_gateway(from_s: float, error: Callable[[], BackendError]) -> None:
    async def main(loop: SimLoop) -> list[Any]:
        server = Server(loop, from_s, error)
        return [part async for part in again(server.attempt, USUAL, Unlimited())]

    for _ in range(20):  # whatever is drawn
        found = run_sim(main, collect=False)
        assert found[-1] == "answer"
        assert [part.data["retry"]["attempt"] for part in found[:-1]] == list(range(2, len(found) + 1))


@pytest.mark.case(408)
def test_each_try_is_told_and_void_text_is_called_void() -> None:
    async def main(loop: SimLoop) -> list[Any]:
        return [part async for part in again(Server(loop, 1.0, begins=True).attempt, USUAL, Unlimited())]

    half, told, *_ = run_sim(main)
    assert half == Event.text("half")
    assert (told.kind, told.data["text"], told.data["restart"]) == ("text", "", True)
    assert told.data["retry"]["reason"] == "overloaded"
    assert told.data["retry"]["after_s"] <= 0.5


@pytest.mark.case(408)
def test_tries_end_with_the_time_of_the_turn() -> None:
    async def main(loop: SimLoop) -> None:
        server = Server(loop, 100.0)
        with pytest.raises(BackendError, match="away"):
            async for _ in again(server.attempt, USUAL, Left(loop, 6.0)):
                pass
        assert loop.time() < 6.0
        assert len(server.tries) > 2

    run_sim(main)


def test_the_budget_is_looked_at_before_each_try() -> None:
    class Spent(Unlimited):
        def check(self) -> None:
            raise BudgetExceeded("spent")

    async def main(loop: SimLoop) -> None:
        server = Server(loop, 100.0)
        with pytest.raises(BudgetExceeded):
            async for _ in again(server.attempt, USUAL, Spent()):
                pass
        assert len(server.tries) == 1

    run_sim(main)


@pytest.mark.parametrize(
    ("details", "attempt", "wait"),
    [
        ({"retryable": False}, 1, None),
        ({"retryable": True}, 8, None),
        ({"retryable": True}, 1, 0.5),
        ({"retryable": True}, 3, 2.0),
        ({"retryable": True, "retry_after_s": 7.0}, 1, 7.0),
        ({"retryable": True, "retry_after_s": 61.0}, 1, None),
    ],
)
def test_waits_are_the_servers_or_grow(details: dict[str, Any], attempt: int, wait: float | None) -> None:
    error = BackendError("x", details=details)
    assert USUAL.wait(error, attempt, 0.0, None) == wait
    if wait is not None:
        jittered = USUAL.wait(error, attempt, 0.99, None)
        assert jittered is not None
        assert jittered != wait
        assert "retry_after_s" not in details or jittered > wait, "never before the server wants it"
        assert USUAL.wait(error, attempt, 0.0, wait) is None
