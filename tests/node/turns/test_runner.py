"""The prompt task: how a backend's stream becomes the end of a turn. No server, no owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Event, Stream, Turn
from agentmesh.callback_context import Request
from agentmesh.errors import BackendError
from agentmesh.records import NOTHING
from agentmesh.turn.values import Input, Raised, Returned, RunCallback, RunTurn, TurnEnded
from agentmesh_node.telemetry.tracing import Tracing
from agentmesh_node.turns.runner import Ports, Runner
from sim.loop import SimLoop, run_sim
from support import run


class Clock:
    """Time that passes only when told to."""

    now = 100.0


class Talker:
    """A backend that says what it is told to."""

    def __init__(self, clock: Clock, *events: Event | Exception, refuse: Exception | None = None) -> None:
        self.clock = clock
        self.events = events
        self.refuse = refuse
        self.pulled = 0
        self.updates: list[Mapping[str, Any]] = []

    async def start_session(self) -> Any:
        return {"turns": 0}

    async def resume_session(self, session: Any) -> Any:
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        if self.refuse is not None:
            raise self.refuse
        return Stream(self._stream(), {**session, "prompted": prompt})

    async def _stream(self) -> AsyncIterator[Event]:
        for event in self.events:
            self.pulled += 1
            self.clock.now += 0.25
            if isinstance(event, Exception):
                raise event
            yield event

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        self.updates.append(result)
        return {**session, "updated": True}

    async def terminate_session(self, session: Any) -> None:
        pass


class Counting(Agent[list[str]]):
    """Notes the kind of each event of a stream, in place."""

    def init_agent(self, options: dict[str, Any]) -> Any:
        return Init([])

    def handle_response(self, ref: str, response: Any, state: list[str]) -> Any:
        return Idle(state)

    def handle_stream_event(self, event: Event, state: list[str]) -> list[str]:
        state.append(event.kind)
        if event.data.get("text") == "trip":
            raise KeyError("trip")
        return state

    def handle_event(self, event: Any, state: list[str]) -> Any:
        return Idle(state)


def turn(backend: Talker, cls: type[Agent[Any]] = Counting) -> tuple[TurnEnded, list[Event], Any]:
    """Run one turn: its end, the live events, and the state object that the next callback would be given."""
    ended: list[Input] = []
    live: list[Event] = []

    async def go() -> Any:
        ports = Ports(now=lambda: backend.clock.now, monotonic=lambda: backend.clock.now, token=lambda: "t", limit=10_000)
        runner = Runner(cls, "coder", lambda agent, options: backend, ports, Tracing())
        await runner.call(RunCallback(hook="start_session", args=({},), state=Raw(b"[]")))
        dispatched = Raw(b'["before"]')
        command = RunTurn(
            number=3, request=Request("17"), prompt="p", state=dispatched, session=Raw(b'{"turns":1}'), watchdog_s=60.0
        )
        runner.start_turn(command, ended.append, live.append)
        task = runner.turn_task
        assert task is not None
        await task
        following = await runner.call(RunCallback(hook="handle_event", args=("e",), state=dispatched))
        assert isinstance(following, Returned)
        return msgspec.json.decode(following.state)

    untouched = run(go())
    (end,) = ended
    assert isinstance(end, TurnEnded) and end.turn == 3
    return end, live, untouched


def session_of(end: TurnEnded) -> Any:
    return msgspec.json.decode(end.session) if end.session != NOTHING else None


@pytest.mark.case(89)
@pytest.mark.case(13)
def test_every_event_is_seen_in_order_the_terminal_one_included() -> None:
    events = (Event("thinking"), Event.text("a"), Event.usage(input_tokens=1), Event.result("done"))
    end, live, _ = turn(Talker(Clock(), *events))
    assert end.response is not None and end.response.events == events and tuple(live) == events
    assert msgspec.json.decode(end.state) == ["before", "thinking", "text", "usage", "result"]


@pytest.mark.case(90)
def test_update_session_is_called_once_with_the_terminal_data() -> None:
    backend = Talker(Clock(), Event.text("a"), Event.result("done", session_id="s7"))
    end, _, _ = turn(backend)
    assert backend.updates == [{"text": "done", "session_id": "s7"}]
    assert session_of(end) == {"turns": 1, "prompted": "p", "updated": True}
    assert end.response is not None and end.response.session_id == "s7"


@pytest.mark.case(95)
def test_nothing_behind_the_terminal_event_is_pulled() -> None:
    backend = Talker(Clock(), Event.result("done"), Event.text("more"), RuntimeError("never reached"))
    end, live, _ = turn(backend)
    assert backend.pulled == 1 and len(live) == 1 and end.error is None


@pytest.mark.case(96)
def test_duration_runs_from_dispatch_to_the_terminal_event() -> None:
    end, _, _ = turn(Talker(Clock(), Event.text("a"), Event.result("done"), Event.text("late")))
    assert end.response is not None and end.response.duration_ms == 500


@pytest.mark.case(15)
@pytest.mark.case(92)
def test_an_error_given_at_once_keeps_its_reason_and_the_session_before() -> None:
    end, _, _ = turn(Talker(Clock(), refuse=BackendError("quota", details={"reason": "quota"})))
    assert end.error is not None and (end.error.code, end.error.message) == ("backend_error", "quota")
    assert end.session == NOTHING and end.state == NOTHING


@pytest.mark.case(74)
@pytest.mark.case(79)
@pytest.mark.case(92)
@pytest.mark.parametrize(("data", "reason"), [({"reason": "overloaded"}, "overloaded"), ({}, "unknown")])
def test_a_terminal_error_gives_its_reason_and_keeps_state_and_session(data: dict[str, Any], reason: str) -> None:
    backend = Talker(Clock(), Event.text("a"), Event("error", data))
    end, _, _ = turn(backend)
    assert end.error is not None and (end.error.code, end.error.message) == ("backend_error", reason)
    assert msgspec.json.decode(end.state) == ["before", "text", "error"]
    assert session_of(end) == {"turns": 1, "prompted": "p"} and backend.updates == []


@pytest.mark.case(75)
@pytest.mark.case(79)
def test_a_stream_without_an_end_is_named_so_and_keeps_the_state() -> None:
    end, _, _ = turn(Talker(Clock(), Event.text("a")))
    assert end.error is not None and end.error.code == "no_terminal_event"
    assert msgspec.json.decode(end.state) == ["before", "text"]


@pytest.mark.case(71)
@pytest.mark.case(72)
@pytest.mark.case(79)
@pytest.mark.parametrize("events", [(Event.text("a"), ValueError("boom")), (Event.text("a"), Event.text("trip"))])
def test_a_crash_in_the_stream_or_in_its_callback_leaves_no_trace(
    events: tuple[Event | Exception, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, logger="agentmesh.node"):
        end, _, untouched = turn(Talker(Clock(), *events))
    assert end.error is not None and end.error.code == "task_crashed"
    assert "boom" in end.error.message or "trip" in end.error.message
    assert end.state == NOTHING and end.session == NOTHING
    assert untouched == ["before"], "what the stream's callback did to the state stayed behind"


# --- new options --------------------------------------------------------------------------------------------------------
class Optioned(Talker):
    """A backend with options: `bad` ones are refused, and it never answers with `hang`. It notes what is done with it."""

    def __init__(self, options: Mapping[str, Any], notes: list[str]) -> None:
        super().__init__(Clock(), Event.result(str(options.get("model"))))
        self.name = str(options.get("model"))
        self.notes = notes
        notes.append(f"made {self.name}")
        if "bad" in options:
            raise BackendError("unknown option bad", details={"reason": "bad_options"})

    async def resume_session(self, session: Any) -> Any:
        if self.name == "hang":
            await asyncio.Event().wait()
        return {**session, "model": self.name} if self.name == "repairs" else session

    async def release(self) -> None:
        self.notes.append(f"released {self.name}")


async def _changed(options: dict[str, Any]) -> tuple[Input, list[str], str]:
    """What becomes of new options: how the call ends, what was done, and which backend runs the next turn."""
    notes: list[str] = []
    ports = Ports(now=lambda: 0.0, monotonic=lambda: 0.0, token=lambda: "t", limit=10_000)
    runner = Runner(Counting, "coder", lambda agent, given: Optioned(given, notes), ports, Tracing())
    await runner.call(RunCallback(hook="start_session", args=({"model": "old"},), state=Raw(b"[]")))
    ended = await runner.call(RunCallback(hook="change_options", args=(Raw(b'{"turns":1}'), options)))
    turns: list[Input] = []
    command = RunTurn(number=1, request=Request("1"), prompt="p", state=Raw(b"[]"), session=Raw(b'{"turns":1}'), watchdog_s=60.0)
    runner.start_turn(command, turns.append, None)
    assert runner.turn_task is not None
    await runner.turn_task
    (end,) = turns
    assert isinstance(end, TurnEnded) and end.response is not None
    return ended, notes, end.response.text


@pytest.mark.case(341)
def test_the_former_backend_lets_go_before_the_new_one_is_made() -> None:
    ended, notes, text = run(_changed({"model": "new"}))
    assert isinstance(ended, Returned) and ended.choice.session == Raw(b'{"turns":1}')
    assert notes == ["made old", "released old", "made new"] and text == "new"
    repaired, _, _ = run(_changed({"model": "repairs"}))
    assert isinstance(repaired, Returned)
    assert msgspec.json.decode(repaired.choice.session) == {"turns": 1, "model": "repairs"}


@pytest.mark.case(341)
def test_the_former_backend_goes_on_if_the_new_one_refuses_or_hangs() -> None:
    refused, notes, text = run(_changed({"model": "new", "bad": 1}))
    assert isinstance(refused, Raised) and refused.error.details == {"reason": "bad_options"}
    assert notes == ["made old", "released old", "made new"] and text == "old"

    async def main(loop: SimLoop) -> tuple[Input, list[str], str]:
        return await _changed({"model": "hang"})

    ended, notes, text = run_sim(main)
    assert isinstance(ended, Raised)
    assert notes == ["made old", "released old", "made hang", "released hang"] and text == "old"
