"""What a backend meets at `Turn.steps`: values in and out, and what is refused before the turn machine hears of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import Raw

from agentmesh.budget import EMPTY_PURSE, Limits, Purse
from agentmesh.callback_context import Request
from agentmesh.errors import BadRequest, NotInCallback, TooLarge
from agentmesh.records import NOTHING
from agentmesh.steps import inner_s
from agentmesh.turn.step_values import AskAgent, StepTaken, TakeStep, WaitOver
from agentmesh.turn.values import Input, RunTurn
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.services import Services
from agentmesh_node.turns.turn_steps import TurnSteps

ANSWER = Outcome(agent="helper", ref="7", ok=True, text="found")


class Desk:
    """A keeper, and what it fed to the turn machine."""

    def __init__(self, *taken: bytes, watchdog_s: float = 600.0, purse: Purse = EMPTY_PURSE) -> None:
        self.now = 1000.0
        self.fed: list[Input] = []
        self.waits = 0
        tokens = iter(range(1000))
        services = SimpleNamespace(
            token=lambda: f"t{next(tokens)}",
            now=lambda: self.now,
            transport=SimpleNamespace(max_payload=1 << 20),
            tracing=SimpleNamespace(headers=lambda: {"traceparent": "00-1-2-01"}),
        )
        command = RunTurn(
            number=3,
            request=Request("1", None, None, {}, ()),
            prompt="p",
            state=NOTHING,
            session=NOTHING,
            watchdog_s=watchdog_s,
            purse=purse,
            key="coder.i.1.3.inbox:1",
            steps=tuple(Raw(step) for step in taken),
        )
        self.keeper = TurnSteps(cast("Services", services), command, self.fed.append, self._count)

    def _count(self) -> None:
        self.waits += 1


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


def test_a_step_is_taken_when_the_machine_says_so() -> None:
    async def main() -> None:
        desk = Desk(b'{"n":0}')
        keeper = desk.keeper
        assert list(keeper.taken) == [{"n": 0}] and keeper.key == "coder.i.1.3.inbox:1"
        keeper.taken[0]["n"] = "changed"
        value = {"n": 1}
        taking = asyncio.create_task(keeper.take(value))
        await asyncio.sleep(0)
        value["n"] = 99
        assert desk.fed == [TakeStep(3, "t0", Raw(b'{"n":1}'))] and list(keeper.taken) == [{"n": 0}]
        keeper.step_taken(StepTaken("t0", 2))
        await taking
        assert list(keeper.taken) == [{"n": 0}, {"n": 1}]

    run(main())


def test_a_step_that_its_taker_gave_up_waiting_for_is_taken_all_the_same() -> None:
    async def main() -> None:
        desk = Desk()
        taking = asyncio.create_task(desk.keeper.take("one"))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait((taking,))
        desk.keeper.step_taken(StepTaken("t0", 1))
        assert desk.keeper.taken == ("one",)

    run(main())


@pytest.mark.parametrize("value", [object(), float, {1: {2: object()}}], ids=["object", "class", "deep"])
def test_a_step_is_a_json_value(value: Any) -> None:
    async def main() -> None:
        desk = Desk()
        with pytest.raises(BadRequest, match="JSON"):
            await desk.keeper.take(value)
        assert desk.fed == []

    run(main())


def test_a_refused_step_raises() -> None:
    async def main() -> None:
        desk = Desk()
        taking = asyncio.create_task(desk.keeper.take("x"))
        await asyncio.sleep(0)
        desk.keeper.step_taken(StepTaken("t0", 0, ErrorBody(code="too_large", message="too much")))
        with pytest.raises(TooLarge, match="too much"):
            await taking
        assert desk.keeper.taken == ()

    run(main())


def test_a_wait_is_asked_for_once_and_told_to_all_who_wait_for_it() -> None:
    async def main() -> None:
        desk = Desk()
        asks = [asyncio.create_task(desk.keeper.ask("w", "helper", "help", timeout_s=5)) for _ in range(3)]
        await asyncio.sleep(0)
        (asked,) = desk.fed
        assert isinstance(asked, AskAgent)
        assert (asked.wait, asked.agent, asked.prompt.prompt, asked.deadline) == ("w", "helper", "help", 1005.0)
        assert asked.trace and desk.waits == 1 and desk.keeper.waiting
        asks.pop().cancel()
        desk.keeper.wait_over(WaitOver("another", ANSWER))
        desk.keeper.wait_over(WaitOver("w", ANSWER))
        assert await asyncio.gather(*asks) == [ANSWER, ANSWER]
        assert await desk.keeper.ask("w", "helper", "help", timeout_s=5) == ANSWER
        assert len(desk.fed) == 1 and not desk.keeper.waiting

    run(main())


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"agent": "no such name!"}, "bad_request"),
        ({"agent": "_reserved"}, "bad_request"),
        ({"prompt": ""}, "bad_request"),
        ({"prompt": "x" * (1 << 20)}, "too_large"),
        ({"wait": ""}, "bad_request"),
        ({"wait": "w" * 300}, "bad_request"),
        ({"timeout_s": float("nan")}, "bad_request"),
        ({"metadata": {"k": object()}}, "bad_request"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_asked_is_an_outcome_too(fields: dict[str, Any], code: str) -> None:
    async def main() -> None:
        desk = Desk()
        outcome = await desk.keeper.ask(**{"wait": "w", "agent": "helper", "prompt": "p", "timeout_s": 5.0, **fields})
        assert outcome.error is not None and outcome.error.code == code
        assert desk.fed == [] and not desk.keeper.waiting

    run(main())


def test_when_the_run_is_over_nobody_waits_and_nothing_more_is_taken() -> None:
    async def main() -> None:
        desk = Desk()
        left = [
            asyncio.create_task(desk.keeper.take(1)),
            asyncio.create_task(desk.keeper.ask("w", "helper", "p", timeout_s=5)),
        ]
        await asyncio.sleep(0)
        desk.keeper.close()
        done = await asyncio.gather(*left, return_exceptions=True)
        assert [type(result) for result in done] == [asyncio.CancelledError] * 2
        with pytest.raises(NotInCallback):
            await desk.keeper.take(2)
        with pytest.raises(NotInCallback):
            await desk.keeper.ask("w2", "helper", "p", timeout_s=5)

    run(main())


# --- time-outs nest ---------------------------------------------------------------------------------------------------
@pytest.mark.case(450)
@pytest.mark.parametrize(
    ("wanted", "outer", "inner"),
    [(60, 600, 60), (600, 600, 595), (600, 20, 18), (18, 20, 18), (1e9, 50, 45), (5, 0, 0), (5, -3, 0), (595, 600, 595)],
)
def test_an_inner_wait_ends_before_the_outer_one(wanted: float, outer: float, inner: float) -> None:
    assert inner_s(wanted, outer) == pytest.approx(inner)


@pytest.mark.case(450)
@pytest.mark.parametrize(
    ("watchdog_s", "purse", "ends"),
    [
        (600.0, EMPTY_PURSE, 1595.0),
        (30.0, EMPTY_PURSE, 1027.0),
        (600.0, Purse(Limits(wall_s=100.0)), 1095.0),
        (600.0, Purse(Limits(wall_s=100.0), elapsed_s=80.0), 1018.0),
    ],
)
def test_a_wait_for_an_agent_ends_before_its_turn(watchdog_s: float, purse: Purse, ends: float) -> None:
    async def main() -> None:
        desk = Desk(watchdog_s=watchdog_s, purse=purse)
        asked = asyncio.ensure_future(desk.keeper.ask("w", "helper", "help", timeout_s=600.0))
        await asyncio.sleep(0)
        (wanted,) = desk.fed
        assert isinstance(wanted, AskAgent) and wanted.deadline == pytest.approx(ends)
        desk.now = ends
        assert 0 < desk.keeper.bounded_s(60.0) < 5.0, "so does one that begins later"
        asked.cancel()

    run(main())
