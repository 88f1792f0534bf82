"""The run of a turn beside its owner's inputs: its end, its watchdog, its death, and what its reader sees of it live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Event, Stream, Turn
from agentmesh.callback_context import Request
from agentmesh.records import Resolve
from agentmesh.steps import Steps
from agentmesh.turn.step_values import AskAgent, StepTaken, TakeStep, WaitOver
from agentmesh.turn.values import Input, RunCallback, RunTurn, TurnEnded, Watchdog
from agentmesh.wire import Outcome
from agentmesh_node.turns.runner import Ports, Runner
from agentmesh_node.turns.turn_run import TurnRun
from node.simulated import SimulatedNode, simulate

READER = "_INBOX.reader"
ANSWER = Outcome(agent="helper", ref="9", ok=True, text="found")
OUTCOME = Outcome(agent="a", ref="7", ok=True, text="done")


class Doll(Agent[int]):
    def init_agent(self, options: dict[str, Any]) -> Any:
        return Init(0)

    def handle_response(self, ref: str, response: Any, state: int) -> Any:
        return Idle(state)

    def handle_event(self, event: Any, state: int) -> Any:
        return Idle(state)


class Held:
    """A backend whose turn does `work` with its steps, says a word, and ends when it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.work: Callable[[Steps], Awaitable[None]] | None = None
        self.cancelled = False

    async def start_session(self) -> Any:
        return {}

    async def resume_session(self, session: Any) -> Any:
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        return Stream(self._stream(turn), session)

    async def _stream(self, turn: Turn) -> AsyncIterator[Event]:
        yield Event.text("a word")
        try:
            if self.work is not None:
                await self.work(turn.steps)
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        yield Event.result("done")

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        return session

    async def terminate_session(self, session: Any) -> None:
        pass


class Case:
    """One owner's turn, what it feeds to the machine, and what its reader hears."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.backend = Held()
        self.fed: list[Input] = []
        self.waits_begun = 0
        self.heard: list[dict[str, Any]] = []
        ports = Ports(now=node.services.now, monotonic=node.loop.time, token=node.services.token, limit=10_000)
        self.runner = Runner(Doll, "a", lambda agent, options: self.backend, ports, node.services.tracing)
        self.run = TurnRun(node.services, "a", 5, feed=self.fed.append, runner=self.runner, begin_to_wait=self._begin_to_wait)

    def _begin_to_wait(self) -> None:
        self.waits_begun += 1

    def waiting(self) -> bool:
        return self.run.waiting

    async def open(self) -> None:
        await self.node.others.subscribe(READER, lambda message: self.heard.append(msgspec.json.decode(message.data)))
        await self.node.others.flush()
        await self.runner.call(RunCallback(hook="start_session", args=({},), state=Raw(b"0")))

    def start(self, *, watchdog_s: float = 60.0, stream_to: str | None = None, steps: tuple[Raw, ...] = ()) -> None:
        self.run.start(
            RunTurn(
                number=3,
                request=Request("7"),
                prompt="p",
                state=Raw(b"0"),
                session=Raw(b"{}"),
                watchdog_s=watchdog_s,
                stream_to=stream_to,
                steps=steps,
            )
        )


def turning(story: Callable[[Case], Awaitable[None]]) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Case(node)
        await it.open()
        await story(it)
        await it.run.kill()

    main.__name__ = story.__name__
    simulate(main)


def test_the_end_of_a_turn_is_fed_once_and_stops_its_watchdog() -> None:
    async def story(it: Case) -> None:
        it.start(watchdog_s=5.0)
        await it.node.pass_time(1.0)
        assert it.fed == []
        it.backend.go_on.set()
        await it.node.pass_time(60.0)
        (end,) = it.fed
        assert isinstance(end, TurnEnded) and end.turn == 3 and end.error is None

    turning(story)


def test_a_quick_turn_has_ended_when_it_was_started() -> None:
    async def story(it: Case) -> None:
        it.backend.go_on.set()
        it.start(watchdog_s=5.0)
        assert len(it.fed) == 1
        await it.node.pass_time(60.0)
        assert len(it.fed) == 1

    turning(story)


def test_a_turn_that_takes_too_long_is_told_by_its_watchdog_and_goes_on() -> None:
    async def story(it: Case) -> None:
        began = it.node.loop.time()
        it.start(watchdog_s=5.0)
        await it.node.until(lambda: it.fed, "the watchdog")
        assert it.fed == [Watchdog(3, None)] and 5.0 <= it.node.loop.time() - began < 5.1
        assert not it.backend.cancelled, "the machine decides"

    turning(story)


def test_a_killed_turn_ends_unheard_and_its_watchdog_with_it() -> None:
    async def story(it: Case) -> None:
        it.start(watchdog_s=5.0)
        await it.node.pass_time(1.0)
        await it.run.kill()
        assert it.backend.cancelled
        await it.node.pass_time(60.0)
        assert it.fed == []
        await it.run.kill()

    turning(story)


@pytest.mark.case(730)
def test_a_reader_is_told_once_that_its_turn_goes_on_elsewhere() -> None:
    async def story(it: Case) -> None:
        it.start(stream_to=READER)
        await it.node.pass_time(1.0)
        it.run.tell_handed_on()
        it.run.tell_handed_on()
        await it.node.pass_time(1.0)
        assert [event["type"] for event in it.heard] == ["start", "text", "handover"]

    turning(story)


def test_a_turn_waits_while_it_asks_another_agent() -> None:
    async def story(it: Case) -> None:
        answers: list[Outcome] = []

        async def ask(steps: Steps) -> None:
            answers.append(await steps.ask("w", "helper", "help", timeout_s=5.0))

        it.backend.work = ask
        assert not it.waiting() and it.waits_begun == 0
        it.start()
        await it.node.pass_time(0.1)
        (asked,) = it.fed
        assert isinstance(asked, AskAgent) and (asked.turn, asked.wait, asked.agent) == (3, "w", "helper")
        assert it.waiting() and it.waits_begun == 1
        it.run.wait_over(WaitOver("w", ANSWER))
        await it.node.pass_time(0.1)
        assert answers == [ANSWER] and not it.waiting()

    turning(story)


def test_a_turn_that_ends_waits_for_nobody_any_more() -> None:
    async def story(it: Case) -> None:
        async def ask(steps: Steps) -> None:
            await steps.ask("w", "helper", "help", timeout_s=5.0)

        it.backend.work = ask
        it.start()
        await it.node.pass_time(0.1)
        assert it.waiting()
        await it.run.kill()
        assert it.backend.cancelled and not it.waiting()

    turning(story)


def test_a_reader_sees_how_much_of_the_turn_is_durable_and_its_outcome_last() -> None:
    async def story(it: Case) -> None:
        async def take(steps: Steps) -> None:
            await steps.take({"n": 1})

        it.backend.work = take
        it.start(stream_to=READER, steps=(Raw(b"0"),))
        await it.node.pass_time(0.1)
        (taken,) = it.fed
        assert isinstance(taken, TakeStep)
        it.run.step_taken(StepTaken(taken.token, 2))
        it.backend.go_on.set()
        await it.node.pass_time(0.1)
        it.run.end_live_events(Resolve(outcome=OUTCOME, stream_to=READER))
        await it.node.until(lambda: len(it.heard) == 3, "all of it")
        assert [(m["type"], m["seq"], m["step"]) for m in it.heard] == [("start", 1, 1), ("text", 2, 1), ("outcome", 3, 2)]
        assert {(m["agent"], m["ref"], m["owner"]) for m in it.heard} == {("a", "7", 5)}
        assert len({m["run"] for m in it.heard}) == 1
        assert it.heard[-1]["outcome"]["text"] == "done"

    turning(story)


def test_the_outcome_of_a_turn_that_ran_elsewhere_is_a_stream_of_its_own() -> None:
    async def story(it: Case) -> None:
        it.start(stream_to=READER)
        await it.node.pass_time(0.1)
        other = Outcome(agent="a", ref="6", ok=True, text="earlier")
        it.run.end_live_events(Resolve(outcome=other, stream_to=READER))
        await it.node.until(lambda: len(it.heard) == 3, "all of it")
        assert (it.heard[-1]["ref"], it.heard[-1]["seq"]) == ("6", 1) and it.heard[-1]["run"] != it.heard[0]["run"]

    turning(story)


def test_without_a_reader_nothing_is_sent() -> None:
    async def story(it: Case) -> None:
        it.start()
        it.backend.go_on.set()
        await it.node.pass_time(0.1)
        assert len(it.fed) == 1 and it.heard == []

    turning(story)


def test_where_a_kind_is_not_served_there_is_nothing_to_kill() -> None:
    async def story(node: SimulatedNode) -> None:
        fed: list[Input] = []
        run = TurnRun(node.services, "a", 5, feed=fed.append, runner=None, begin_to_wait=lambda: None)
        await run.kill()
        assert run.spent() is None and not run.waiting and fed == []

    simulate(story)
