"""What callbacks may do, well and badly, and what comes of it. No server, no owner: a runner and an agent's class."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Agent, Defer, Halt, Idle, Init, Proceed, Prompt
from agentmesh.backend import Event, Turn
from agentmesh.callback_context import Request
from agentmesh.errors import BackendError
from agentmesh.records import NOTHING
from agentmesh.turn.values import Input, Misbehaved, Raised, Returned, RunCallback, RunTurn, TurnEnded, Unreadable
from agentmesh.wire import MAX_DEPTH, Attachment, ErrorBody, Outcome
from agentmesh_node.telemetry.tracing import Tracing
from agentmesh_node.turns.runner import Ports, Runner
from node.turns.test_runner import Clock, Talker
from support import eventually, run

type Fact = tuple[str, str, int, dict[str, Any]]
LOST = Outcome(agent="coder", ref="1", ok=False, error=ErrorBody(code="backend_error", message="m", details={"reason": ["r"]}))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, logger="agentmesh.node"):
        yield


def runner_of(
    cls: type[Agent[Any]], backend: Talker | None = None, facts: list[Fact] | None = None, clock: Clock | None = None
) -> Runner:
    clock = clock or Clock()
    told: list[Fact] = [] if facts is None else facts
    ports = Ports(lambda: clock.now, lambda: clock.now, lambda: "t", 10_000, lambda *fact: told.append(fact))
    talker = backend or Talker(clock, Event.result("done"))
    return Runner(cls, "coder", lambda agent, options: talker, ports, Tracing())


def call(cls: type[Agent[Any]], hook: str, *args: Any, state: bytes | None = b"[]", request: Request | None = None) -> Input:
    """Run one callback."""
    raw = NOTHING if state is None else Raw(state)
    return run(runner_of(cls).call(RunCallback(hook=hook, args=args, state=raw, request=request)))


def turn(
    cls: type[Agent[Any]],
    *events: Event | Exception,
    state: bytes = b"[]",
    facts: list[Fact] | None = None,
    clock: Clock | None = None,
) -> TurnEnded:
    """Run one prompt task."""
    ended: list[Input] = []

    async def main() -> None:
        ticking = clock or Clock()
        runner = runner_of(cls, Talker(ticking, *events), facts, ticking)
        await runner.call(RunCallback(hook="start_session", args=({},), state=Raw(state)))
        command = RunTurn(number=3, request=Request("17"), prompt="p", state=Raw(state), session=Raw(b"{}"), watchdog_s=60.0)
        runner.start_turn(command, ended.append, None)
        task = runner.turn_task
        assert task is not None
        await asyncio.wait_for(task, 120)

    run(main())
    (end,) = ended
    assert isinstance(end, TurnEnded)
    return end


def made(*, state: Any = list[Any], **body: Any) -> type[Agent[Any]]:
    """An agent of that State with these callbacks."""
    base: Any = Agent[state]
    plain = {
        "init_agent": lambda self, options: Init([]),
        "handle_response": lambda self, ref, response, state: Idle(state),
    }
    return type("Made", (base.__origin__,), {"__module__": __name__, **plain, **body, "__orig_bases__": (base,)})


def error_of(end: Input) -> ErrorBody:
    assert isinstance(end, Misbehaved | Raised | Unreadable), end
    return end.error


# --- where callbacks run --------------------------------------------------------------------------------------------
def test_a_plain_callback_runs_in_a_worker_thread_and_an_async_one_on_the_loop() -> None:
    ran: list[threading.Thread] = []

    def plain(self: Any, event: Any, state: Any) -> Any:
        ran.append(threading.current_thread())
        self.notify("other", {"from": self.name, "sender": self.sender})
        return Idle(state)

    async def asynchronous(self: Any, event: Any, state: Any) -> Any:
        ran.append(threading.current_thread())
        return Idle(state)

    end = call(made(handle_event=plain), "handle_event", 1)
    assert isinstance(end, Returned)
    assert len(end.asks) == 1, "the context works in a thread, too"
    assert isinstance(call(made(handle_event=asynchronous), "handle_event", 1), Returned)
    assert ran[0] is not threading.main_thread()
    assert ran[1] is threading.main_thread()


def test_a_plain_callback_that_returns_an_awaitable_is_awaited() -> None:
    async def later(state: Any) -> Any:
        return Idle([*state, "later"])

    end = call(made(handle_event=lambda self, event, state: later(state)), "handle_event", 1)
    assert isinstance(end, Returned)
    assert msgspec.json.decode(end.state) == ["later"]


def test_a_callback_that_lets_a_cancellation_escape_has_raised() -> None:
    async def careless(self: Any, *args: Any) -> Any:
        task = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    assert "CancelledError" in error_of(call(made(handle_event=careless), "handle_event", 1)).message


@pytest.mark.case(71)
def test_so_has_a_stream() -> None:
    class Careless(Talker):
        async def _stream(self) -> Any:
            yield Event.text("a")
            raise asyncio.CancelledError

    ended: list[Input] = []

    async def main() -> None:
        runner = runner_of(made(), Careless(Clock()))
        await runner.call(RunCallback(hook="start_session", args=({},), state=Raw(b"[]")))
        command = RunTurn(number=3, request=Request("17"), prompt="p", state=Raw(b"[]"), session=Raw(b"{}"), watchdog_s=60.0)
        runner.start_turn(command, ended.append, None)
        assert runner.turn_task is not None
        await asyncio.wait((runner.turn_task,), timeout=10)

    run(main())
    assert isinstance(ended[0], TurnEnded)
    assert ended[0].error is not None
    assert ended[0].error.code == "task_crashed"


class OutOfLine(BaseException):
    """What is no `Exception`, and has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, OutOfLine])
@pytest.mark.parametrize("plain", [True, False])
def test_a_callback_that_exits_has_raised_and_ends_no_process(plain: bool, error: type[BaseException]) -> None:
    def leave(self: Any, event: Any, state: Any) -> Any:
        raise error

    async def leave_later(self: Any, event: Any, state: Any) -> Any:
        raise error

    assert error.__name__ in error_of(call(made(handle_event=leave if plain else leave_later), "handle_event", 1)).message


# --- no trace -------------------------------------------------------------------------------------------------------
HOOKS: dict[str, tuple[Any, ...]] = {
    "handle_response": ("1", "response"),
    "handle_error": ("1", ErrorBody(code="backend_error", message="m")),
    "handle_event": ({"an": "event"},),
    "terminate_agent": (ErrorBody(code="stopped", message="m"),),
    "activate_agent": (),
    "pre_run": (),
    "pre_turn": ("prompt",),
    "post_turn": (LOST, "1"),
    "post_run": (),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_changes_its_state_and_raises_leaves_no_trace(hook: str, plain: bool) -> None:
    def spoil(self: Any, *args: Any) -> Any:
        args[-1].append("half")
        if hook != "terminate_agent":
            self.tell("other", "never sent")
        raise RuntimeError("half way")

    async def spoil_later(self: Any, *args: Any) -> Any:
        spoil(self, *args)

    seen: list[Any] = []

    def next_event(self: Any, event: Any, state: Any) -> Any:
        seen.append(list(state))
        return Idle(state)

    async def main() -> Input:
        body = {hook: spoil if plain else spoil_later}
        if hook != "handle_event":
            body["handle_event"] = next_event
        runner = runner_of(made(**body))
        state = Raw(b'["before"]')
        first = await runner.call(RunCallback(hook=hook, args=HOOKS[hook], state=state, request=Request("1")))
        if hook == "handle_event":
            runner._hooks.clear()
            runner._agent.__class__.handle_event = next_event  # type: ignore[method-assign]
        await runner.call(RunCallback(hook="handle_event", args=("next",), state=state))
        return first

    end = run(main())
    assert isinstance(end, Raised), "what it asked for is dropped with it"
    assert "half way" in end.error.message
    assert seen == [["before"]]


def test_nor_does_an_init_agent_that_changes_its_options() -> None:
    def spoil(self: Any, options: Any) -> Any:
        options["deep"].append("half")
        raise RuntimeError("half way")

    options = {"deep": ["given"]}
    error_of(call(made(init_agent=spoil), "init_agent", options, state=None))
    assert options == {"deep": ["given"]}


def test_what_the_machine_goes_on_using_is_not_the_callbacks_to_change() -> None:
    def spoil(self: Any, outcome: Any, *args: Any) -> Any:
        outcome.error.details["reason"].append("forged")
        self.request.metadata["deep"].append("forged")
        raise RuntimeError("half way")

    request = Request("1", metadata={"deep": ["given"]})
    error_of(call(made(post_turn=spoil), "post_turn", LOST, "1", request=request))
    assert LOST.error is not None
    assert (LOST.error.details, request.metadata) == ({"reason": ["r"]}, {"deep": ["given"]})


@pytest.mark.parametrize("hook", ["handle_error", "terminate_agent"])
def test_an_error_that_a_callback_is_told_is_its_own(hook: str) -> None:
    def spoil(self: Any, *args: Any) -> Any:
        args[-2].details["reason"].append("forged")
        raise RuntimeError("half way")

    error = ErrorBody(code="backend_error", message="m", details={"reason": ["r"]})
    error_of(call(made(**{hook: spoil}), hook, *(("1", error) if hook == "handle_error" else (error,))))
    assert error.details == {"reason": ["r"]}


# --- wrong return values ----------------------------------------------------------------------------------------------
@pytest.mark.case(7)
@pytest.mark.case(21)
@pytest.mark.case(84)
@pytest.mark.parametrize(
    ("hook", "value", "code", "words"),
    [
        ("init_agent", None, "init_failed", "NoneType"),
        ("init_agent", {"a": "state"}, "init_failed", "dict"),
        ("init_agent", Idle([]), "init_failed", "Idle"),
        ("init_agent", Init([object()]), "init_failed", r"state\[0\]"),
        ("init_agent", Init([], backend=7), "init_failed", "backend"),  # type: ignore[arg-type]
        ("init_agent", Init([], backend={"deep": {"f": len}}), "init_failed", r"backend\['deep'\]\['f'\]"),
        ("handle_response", None, "bad_return", "handle_response returned a NoneType"),
        ("handle_response", Proceed("p", []), "bad_return", "Proceed"),
        ("handle_response", Idle, "bad_return", "the class Idle"),
        ("handle_response", Prompt("", []), "bad_return", "Prompt.text"),
        ("handle_response", Prompt(7, []), "bad_return", "Prompt.text"),  # type: ignore[arg-type]
        ("handle_response", Prompt("\ud800", []), "bad_return", "Prompt.text"),
        ("handle_response", Prompt("p", [], label=7), "bad_return", "label"),  # type: ignore[arg-type]
        ("handle_response", Defer([], exclusive="yes"), "bad_return", "exclusive"),  # type: ignore[arg-type]
        ("handle_response", Idle("text"), "bad_state", "handle_response"),
        ("handle_response", Idle(["\ud800"]), "bad_state", r"state\[0\]"),
        ("handle_response", ValueError("returned"), "bad_return", "returned"),
        ("handle_error", Defer([]), "bad_return", "handle_error returned a Defer"),
        ("handle_event", Defer([]), "bad_return", "handle_event returned a Defer"),
        ("handle_event", Halt([{1j}]), "bad_state", "state"),
        ("pre_turn", Idle([]), "pre_turn_invalid", "pre_turn returned a Idle"),
        ("pre_turn", Proceed(None, []), "pre_turn_invalid", "Proceed.prompt"),  # type: ignore[arg-type]
        ("pre_run", None, "bad_state", "pre_run"),
        ("pre_run", ValueError("refused"), "pre_run_failed", "refused"),
        ("post_turn", None, "bad_state", "post_turn"),
    ],
)
def test_a_wrong_return_value_is_contained_and_named(hook: str, value: Any, code: str, words: str) -> None:
    args = ({},) if hook == "init_agent" else HOOKS[hook]
    state = None if hook == "init_agent" else b"[]"
    error = error_of(call(made(**{hook: lambda self, *args: value}), hook, *args, state=state))
    assert error.code == code
    assert re.search(words, error.message), error.message


def test_an_error_with_anything_in_it_can_be_written_down() -> None:
    def strange(self: Any, event: Any, state: Any) -> Any:
        raise BackendError("\ud800 odd", details={"object": object(), "\ud800": 1})

    error = error_of(call(made(handle_event=strange), "handle_event", 1))
    assert error.code == "backend_error"
    assert msgspec.json.decode(msgspec.json.encode(error), type=ErrorBody) == error


def nested(levels: int) -> Any:
    return {"deeper": nested(levels - 1)} if levels else "end"


@pytest.mark.case(484)
@pytest.mark.parametrize(
    "hand",
    [
        lambda self: self.tell("other", "p", metadata=7),
        lambda self: self.tell("other", "p", metadata={"f": len}),
        lambda self: self.tell("other", "\ud800"),
        lambda self: self.start_agent("other", kind="K", labels={"a": 1}),
        lambda self: self.start_agent("other", kind="K", watchdog_s="long"),
        lambda self: self.start_agent("other", kind="K", watchdog_s=-1),
        lambda self: self.start_agent("other", kind="K", watchdog_s=float("nan")),
        lambda self: self.start_agent("other", kind="K", backend=7),
        lambda self: self.reply(7, "text"),
        lambda self: self.reply("1", 7),
        lambda self: self.reply("1", answer={"of": "no type"}),
        lambda self: self.notify_after(1, "event", id="_mine"),
        lambda self: self.notify_after(1, "event", id=7),
        lambda self: self.notify_after(1, "event", every=0.5),
        lambda self: self.notify_after(1, "event", every=float("nan")),
        lambda self: self.notify_after(1, "event", every="hourly"),
        lambda self: self.notify_after("soon", "event"),
        lambda self: self.notify_after(float("nan"), "event"),
        lambda self: self.notify_after(float("inf"), "event"),
        lambda self: self.notify_at("2030-01-01", "event"),
        lambda self: self.notify_at(-5, "event"),
        lambda self: self.cancel_timer(7),
        lambda self: self.tell("other", "p", tag=7),
        lambda self: self.start_agent("other", kind="K", if_exists="replace"),
        lambda self: self.start_agent("other", kind="K", watchdog_s=True),
        lambda self: self.notify("other", float),
        lambda self: self.notify("other", nested(MAX_DEPTH + 1)),
        lambda self: self.tell("other", "p", metadata=nested(MAX_DEPTH + 1)),
        lambda self: self.start_agent("other", kind="K", options=nested(MAX_DEPTH + 1)),
    ],
)
def test_what_cannot_be_asked_for_raises_where_it_is_asked(hand: Any) -> None:
    def ask(self: Any, event: Any, state: Any) -> Any:
        hand(self)
        return Idle(state)

    assert error_of(call(made(handle_event=ask), "handle_event", 1)).code == "bad_request"


@pytest.mark.case(480)
@pytest.mark.parametrize(
    ("hand", "field"),
    [
        (lambda self, number: self.notify("other", {"score": number}), "event['score']"),
        (lambda self, number: self.notify_after(1, [None, number]), "event[1]"),
        (lambda self, number: self.tell("other", "p", metadata={"score": number}), "metadata['score']"),
        (lambda self, number: self.start_agent("other", kind="K", options={"t": number}), "options['t']"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_with_its_field(hand: Any, field: str) -> None:
    def ask(self: Any, event: Any, state: Any) -> Any:
        hand(self, float("nan"))
        return Idle(state)

    error = error_of(call(made(handle_event=ask), "handle_event", 1))
    assert (error.code, error.message.partition(",")[0]) == ("bad_request", f"{field} is NaN")


@pytest.mark.case(480)
def test_nor_can_the_backend_have_it_as_an_option() -> None:
    cls = made(init_agent=lambda self, options: Init([], backend={"model": None, "temperature": float("inf")}))
    error = error_of(call(cls, "init_agent", {}, state=None))
    assert error.code == "init_failed" and "backend['temperature'] is infinite" in error.message


@pytest.mark.case(483)
@pytest.mark.parametrize("files", [(), (Attachment(filename="a.png", content=""),)])
def test_pre_turn_may_let_a_prompt_without_a_text_pass_if_it_has_attachments(files: tuple[Attachment, ...]) -> None:
    cls = made(pre_turn=lambda self, prompt, state: Proceed(prompt, state))
    end = call(cls, "pre_turn", "", request=Request("1", attachments=files))
    assert isinstance(end, Returned if files else Misbehaved)


def test_what_is_asked_for_is_what_it_was_then() -> None:
    def ask(self: Any, event: Any, state: Any) -> Any:
        metadata = {"deep": ["then"]}
        self.tell("other", "p", metadata=metadata)
        metadata["deep"].append("later")
        return Idle(state)

    end = call(made(handle_event=ask), "handle_event", 1)
    assert isinstance(end, Returned)
    (ask_made,) = end.asks
    assert ask_made.prompt.metadata == {"deep": ["then"]}  # type: ignore[union-attr]


# --- the stream's callback --------------------------------------------------------------------------------------------
def test_an_async_observer_is_awaited() -> None:
    async def watch(self: Any, event: Event, state: Any) -> Any:
        await asyncio.sleep(0)
        return [*state, event.kind]

    end = turn(made(handle_stream_event=watch), Event.text("a"), Event.result("done"))
    assert msgspec.json.decode(end.state) == ["text", "result"]


def test_an_observer_that_returns_no_state_ends_its_turn_by_name() -> None:
    end = turn(made(handle_stream_event=lambda self, event, state: None), Event.result("done"))
    assert end.error is not None
    assert end.error.code == "bad_state"
    assert end.error.message.startswith("handle_stream_event:")
    assert end.state == NOTHING


@pytest.mark.parametrize("data", [{"text": 7}, {"text": "a", "session_id": 7}, {"text": "a", "session_id": object()}])
def test_a_result_that_no_outcome_can_carry_fails_its_turn(data: dict[str, Any]) -> None:
    end = turn(made(), Event("result", data))
    assert end.response is None
    assert end.error is not None
    assert msgspec.json.encode(end.error)


def test_a_strange_error_event_keeps_its_reason() -> None:
    end = turn(made(), Event("error", {"reason": "overloaded", "object": object()}))
    assert end.error is not None
    assert (end.error.code, end.error.message, end.error.details) == ("backend_error", "overloaded", {"reason": "overloaded"})


def test_usage_that_cannot_be_encoded_fails_its_turn() -> None:
    end = turn(made(), Event("usage", {"tokens": object()}), Event.result("done"))
    assert end.error is not None
    assert "usage" in end.error.message


# --- the loop is not a callback's to hold ------------------------------------------------------------------------------
@pytest.mark.case(227)
def test_a_callback_that_holds_the_loop_is_reported_by_name(caplog: pytest.LogCaptureFixture) -> None:
    facts: list[Fact] = []
    clock = Clock()

    async def block_later(self: Any, event: Any, state: Any) -> Any:
        await asyncio.sleep(0)
        clock.now += 0.12
        return Idle(state)

    blocking = runner_of(made(handle_event=block_later), None, facts, clock)
    with caplog.at_level(logging.WARNING, logger="agentmesh.node"):
        run(blocking.call(RunCallback(hook="handle_event", args=(1,), state=Raw(b"[]"))))
    ((agent, kind, turn_number, fields),) = facts
    assert (agent, kind, turn_number, fields["callback"]) == ("coder", "callback_blocked", 0, "handle_event")
    assert fields["seconds"] == 0.12
    (record,) = caplog.records
    assert (vars(record)["agent"], vars(record)["callback"]) == ("coder", "handle_event")


@pytest.mark.case(227)
def test_so_is_a_plain_observer_of_the_stream() -> None:
    facts: list[Fact] = []
    clock = Clock()

    def watch(self: Any, event: Event, state: Any) -> Any:
        clock.now += 0.12
        return state

    turn(made(handle_stream_event=watch), Event.result("done"), facts=facts, clock=clock)
    ((_, kind, turn_number, fields),) = facts
    assert (kind, turn_number, fields["callback"]) == ("callback_blocked", 3, "handle_stream_event")


def test_a_plain_callback_may_take_its_time() -> None:
    facts: list[Fact] = []
    clock = Clock()

    def block(self: Any, *args: Any) -> Any:
        clock.now += 0.12

    run(runner_of(made(post_run=block), None, facts, clock).call(RunCallback(hook="post_run", state=Raw(b"[]"))))
    assert facts == []


def test_hanging_plain_callbacks_of_other_agents_do_not_hold_one_up() -> None:
    hang = threading.Event()
    begun = threading.Event()

    def wait(self: Any, event: Any, state: Any) -> Any:
        begun.set()
        hang.wait()
        return Idle(state)

    async def main() -> None:
        few = concurrent.futures.ThreadPoolExecutor(max_workers=1)  # the loop's own, as on a small machine
        asyncio.get_running_loop().set_default_executor(few)
        command = RunCallback(hook="handle_event", args=(1,), state=Raw(b"[]"))
        hung = [asyncio.create_task(runner_of(made(handle_event=wait)).call(command)) for _ in range(3)]
        try:
            await eventually(begun.is_set)
            quick = runner_of(made(handle_event=lambda self, event, state: Idle([event])))
            assert isinstance(await asyncio.wait_for(quick.call(command), 20), Returned)
            assert not any(task.done() for task in hung)
        finally:
            hang.set()
            await asyncio.gather(*hung)

    run(main())


def test_a_backends_lone_surrogates_become_text_that_can_be_kept() -> None:
    """In each kind of event, also in the tool's input and the reason of an error; the turn goes on."""
    odd = "a\ud800b"
    end = turn(
        made(), Event.text(odd), Event("tool_use", {"id": odd, "name": "n", "input": {odd: [odd]}}), Event.result(session_id=odd)
    )
    assert end.response is not None
    assert (end.response.text, end.response.session_id) == ("a\ufffdb", "a\ufffdb")
    assert end.response.events[1].data["input"] == {"a\ufffdb": ["a\ufffdb"]}
    failed = turn(made(), Event.error("odd", message=odd))
    assert failed.error is not None
    assert failed.error.message == "a\ufffdb"


# --- what a backend tells the operators -----------------------------------------------------------------------------------
@pytest.mark.case(427)
def test_the_absence_of_an_optional_server_of_tools_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Talker.prompt

    async def without_tools(self: Talker, session: Any, text: str, about: Turn) -> Any:
        about.report_absence("shop", "it is closed")
        return await prompt(self, session, text, about)

    monkeypatch.setattr(Talker, "prompt", without_tools)
    facts: list[Fact] = []
    assert turn(made(), Event.result("done"), facts=facts).error is None
    assert facts == [("coder", "tools_absent", 3, {"server": "shop", "reason": "it is closed"})]
