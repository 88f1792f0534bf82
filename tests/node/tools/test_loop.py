"""The tool loop against a model of plain values: what is called, what is committed, and what a later owner calls again."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Turn
from agentmesh.errors import BackendError, BudgetExceeded, TooLarge
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import Done, NotDone, ToolSpec, tool
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.loop import Bounds, Metered, ToolLoop
from agentmesh_node.tools.loop_steps import ModelAnswer
from support import run

type Answer = ModelAnswer | BackendError | Callable[[], Any]


class Lines:
    """A model whose messages are lists of text, and whose answers are given."""

    provider = "fake"
    name = "lines"

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.seen: list[list[Any]] = []

    def prompt(self, text: str, turn: Turn) -> Any:
        return ["user", text]

    def results(self, results: Sequence[Result]) -> Any:
        return ["results", *(f"{r.id}={r.text}" for r in results)]

    def noted(self, message: Any, note: str) -> Any:
        return [*message, f"({note})"]

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        self.seen.append(list(history))
        # Which answer it is follows from the history, as with a real model: an owner that goes on asks for the next one.
        given = self.answers[sum(1 for message in history if message[0] == "model")]
        if isinstance(given, BackendError):
            raise given
        assert isinstance(given, ModelAnswer)
        if given.text:
            yield Event.text(given.text)
        yield given


def wants(*calls: tuple[str, str], text: str = "", **fields: Any) -> ModelAnswer:
    """An answer with tool calls, given as (id, name)."""
    made = tuple(Call(id, name, {}) for id, name in calls)
    return ModelAnswer(
        ["model", *(f"{c.name}:{c.id}" for c in made)], text, calls=made, stop="tool_use", model="lines-1", **fields
    )


def says(text: str, **fields: Any) -> ModelAnswer:
    return ModelAnswer(["model", text], text, model="lines-1", usage={"input_tokens": 3, "output_tokens": 1}, **fields)


ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@tool(effect="pure")
async def look() -> str:
    """Look."""
    ran["look"] += 1
    return f"seen {ran['look']}"


@tool(effect="once")
async def pay() -> str:
    """Pay."""
    ran["pay"] += 1
    return "paid"


class Shopper(Agent[Any]):
    tools = (look, pay)


class DiedError(Exception):
    """The node is gone."""


class Dying(UnjournaledSteps):
    """Steps that end the owner just before, or just after, the step of a number is committed."""

    def __init__(self, taken: Sequence[Any] = (), at: int | None = None, *, committed: bool = True) -> None:
        super().__init__(tuple(msgspec.json.decode(msgspec.json.encode(list(taken)))), key="t")
        self._at = at
        self._committed = committed

    async def take(self, step: Any) -> None:
        last = len(self.taken) == self._at
        if last and not self._committed:
            raise DiedError
        await super().take(step)
        if last:
            raise DiedError


def loop(model: Lines, agent: type[Agent[Any]] = Shopper, **how: Any) -> ToolLoop:
    return ToolLoop(model, Toolbox(agent()), **how)


async def read(
    made: ToolLoop, history: list[Any] | None = None, steps: UnjournaledSteps | None = None, prompt: str = "go"
) -> list[Event]:
    turn = Turn("a", "1", 1, steps=steps or UnjournaledSteps(key="t"))
    async with aclosing(made.run([] if history is None else history, prompt, turn)) as events:  # type: ignore[type-var]
        return [event async for event in events]


SHOPPING = (wants(("1", "look")), wants(("2", "look"), ("3", "look")), wants(("4", "look")), says("bought"))


def test_a_turn_alternates_between_model_and_tools() -> None:
    model, history = Lines(*SHOPPING), [["user", "before"], ["model", "hello"]]
    model.answers.insert(0, says("hello"))
    events = run(read(loop(model), history))
    assert [e.kind for e in events] == [
        "usage", "tool_use", "tool_result", "usage", "tool_use", "tool_use", "tool_result", "tool_result",
        "usage", "tool_use", "tool_result", "text", "usage", "result",
    ]  # fmt: skip
    assert events[-1].data == {"text": "bought", "stop_reason": "end_turn", "model": "lines-1"}
    assert history == [
        ["user", "before"], ["model", "hello"], ["user", "go"],
        ["model", "look:1"], ["results", "1=seen 1"],
        ["model", "look:2", "look:3"], ["results", "2=seen 2", "3=seen 3"],
        ["model", "look:4"], ["results", "4=seen 4"], ["model", "bought"],
    ]  # fmt: skip


@pytest.mark.parametrize("committed", [True, False], ids=["after the step", "before the step"])
@pytest.mark.parametrize("at", range(9))
def test_an_owner_that_dies_at_any_step_costs_at_most_the_call_that_was_in_flight(at: int, committed: bool) -> None:
    """Nothing that was committed is called again, whichever step is the last; the turn ends as it would have."""
    whole: list[Any] = []
    run(read(loop(Lines(*SHOPPING)), whole))
    answers, tools = 4, 4
    ran.clear()

    first, steps = Lines(*SHOPPING), Dying(at=at, committed=committed)
    if at == 8:
        committed = True  # there is no ninth step
        run(read(loop(first), [], steps))
    else:
        with pytest.raises(DiedError):
            run(read(loop(first), [], steps))
    second, history = Lines(*SHOPPING), list[Any]()
    events = run(read(loop(second), history, Dying(steps.taken)))

    assert events[-1].data["text"] == "bought"
    assert [message[0] for message in history] == [message[0] for message in whole]
    lost = len(first.seen) + len(second.seen) - answers + ran["look"] - tools
    # Two tools run at the same time: when the first one's step ends the owner, the second may have run as well.
    assert lost <= (2 if at in (3, 4) else 1) - (1 if committed and at not in (3, 4) else 0)
    assert len(first.seen) + len(second.seen) - answers <= (0 if committed else 1)


def test_what_an_earlier_owner_did_is_told_again_and_marked() -> None:
    steps = Dying(at=4)
    with pytest.raises(DiedError):
        run(read(loop(Lines(wants(("1", "look"), text="hm", thinking="well"), *SHOPPING[1:])), [], steps))
    events = run(read(loop(Lines(*SHOPPING)), [], Dying(steps.taken)))
    told = [(e.kind, e.replayed) for e in events]
    assert told[:5] == [("thinking", True), ("text", True), ("usage", True), ("tool_use", True), ("tool_result", True)]
    assert told[-3:] == [("text", False), ("usage", False), ("result", False)]
    assert events[0].data == {"text": "well"}
    replayed = [e for e in events if e.replayed and e.kind == "tool_result"]
    assert len(replayed) == len(steps.taken) - 2


def test_what_a_step_holds_is_told_ahead_of_it() -> None:
    """A later owner does not tell live readers what is committed, so they must have been told before (case 243)."""
    log: list[str] = []

    class Noting(UnjournaledSteps):
        async def take(self, step: Any) -> None:
            log.append(f"<{step['step']}>")
            await super().take(step)

    async def check() -> None:
        turn = Turn("a", "1", 1, steps=Noting())
        async for event in loop(Lines(wants(("1", "pay")), says("ok"))).run([], "go", turn):
            log.append(event.kind)  # noqa: PERF401 - the order of what happens is what counts

    run(check())
    assert log == [
        "usage", "tool_use", "<answer>", "<intent>", "tool_result", "<result>", "text", "usage", "<answer>", "result",
    ]  # fmt: skip


def test_the_last_usage_event_has_the_tokens_of_the_whole_turn_also_after_a_takeover() -> None:
    usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 2}
    first = wants(("1", "look"), usage=usage)
    steps = Dying(at=1)
    with pytest.raises(DiedError):
        run(read(loop(Lines(first, says("ok"))), [], steps))
    events = run(read(loop(Lines(first, says("ok"))), [], Dying(steps.taken)))
    last = [e for e in events if e.kind == "usage"][-1]
    assert last.data == {"input_tokens": 13, "output_tokens": 6, "cache_read_input_tokens": 2, "model": "lines-1"}


# --- once -------------------------------------------------------------------------------------------------------------
def buys(reconcile: Any) -> type[Agent[Any]]:
    @tool(effect="once", name="pay", reconcile=reconcile)
    async def fire() -> str:
        ran["pay"] += 1
        return "paid"

    return type("Buyer", (Agent,), {"tools": (fire,)})


async def went_through(key: str) -> Done:
    return Done(f"receipt {key}")


async def never_went(key: str) -> NotDone:
    return NotDone()


@pytest.mark.parametrize(
    ("reconcile", "fired", "told"),
    [
        (None, 1, "The outcome of this call is unknown"),
        (went_through, 1, "receipt t/1"),
        (never_went, 2, "paid"),
    ],
)
def test_a_once_tool_is_not_fired_again_blindly(reconcile: Any, fired: int, told: str) -> None:
    """The owner dies with the call in flight: its intent is committed, its result is not."""
    answers = (wants(("1", "pay")), says("done"))
    steps = Dying(at=2, committed=False)
    with pytest.raises(DiedError):
        run(read(loop(Lines(*answers), buys(reconcile)), [], steps))
    assert [step["step"] for step in steps.taken] == ["answer", "intent"]
    assert ran["pay"] == 1

    model = Lines(*answers)
    events = run(read(loop(model, buys(reconcile)), [], Dying(steps.taken)))
    (result,) = [e for e in events if e.kind == "tool_result"]
    assert result.data["text"].startswith(told)
    assert ran["pay"] == fired
    assert model.seen[-1][-1][1].startswith(f"1={told}"), "the model is told"


def test_a_once_tool_whose_intent_was_not_committed_is_fired() -> None:
    answers = (wants(("1", "pay")), says("done"))
    steps = Dying(at=1, committed=False)
    with pytest.raises(DiedError):
        run(read(loop(Lines(*answers)), [], steps))
    assert ran["pay"] == 0
    run(read(loop(Lines(*answers)), [], Dying(steps.taken)))
    assert ran["pay"] == 1


# --- how far ----------------------------------------------------------------------------------------------------------
def test_tools_of_one_answer_run_at_the_same_time_within_bounds() -> None:
    running, most = 0, 0
    full = asyncio.Event()

    @tool(effect="pure")
    async def meet() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()  # returns only if three are there together
        await asyncio.sleep(0)
        running -= 1
        return "met"

    agent = type("Meeter", (Agent,), {"tools": (meet,)})
    asked = wants(*((str(n), "meet") for n in range(9)))
    history: list[Any] = []
    run(read(loop(Lines(asked, says("ok")), agent, bounds=Bounds(parallel=3)), history))
    assert most == 3
    assert history[2] == ["results", *(f"{n}=met" for n in range(9))], "in the order of the calls"


def test_a_model_that_never_stops_is_stopped() -> None:
    model = Lines(*(wants((str(n), "look")) for n in range(9)))
    history: list[Any] = []
    events = run(read(loop(model, bounds=Bounds(iterations=3)), history))
    assert events[-1].data["reason"] == "max_iterations"
    assert len(model.seen) == 3
    assert history[-1] == ["results", "2=seen 3"], "what was done is kept: the agent may go on with another prompt"


def test_cancelling_a_turn_ends_its_tools() -> None:
    async def check() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        @tool(effect="pure")
        async def hang() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        agent = type("Hanger", (Agent,), {"tools": (hang,)})
        reader = asyncio.ensure_future(read(loop(Lines(wants(("1", "hang")), says("no")), agent)))
        await begun.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert ended.is_set()
        assert [t for t in asyncio.all_tasks() if t.get_name().startswith("tool")] == []

    run(check())


def test_a_provider_that_pauses_is_asked_again_and_its_texts_are_one() -> None:
    events = run(read(loop(Lines(says("first, ", goes_on=True), says("second")))))
    assert events[-1].data["text"] == "first, second"


def test_a_summary_takes_the_place_of_what_came_before_it() -> None:
    history: list[Any] = [["user", "long ago"]]
    run(read(loop(Lines(wants(("1", "look"), compacted=True), says("done"))), history))
    assert history == [["model", "look:1"], ["results", "1=seen 1"], ["model", "done"]]


def test_a_summary_survives_a_failure_behind_it() -> None:
    history: list[Any] = [["user", "long ago"]]
    run(read(loop(Lines(wants(("1", "look"), compacted=True), failure(reason="overloaded"))), history))
    assert history == [["model", "look:1"], ["results", "1=seen 1"]]


# --- what fails -------------------------------------------------------------------------------------------------------
def failure(**details: Any) -> BackendError:
    return BackendError("no", details=details)


def test_a_failed_turn_keeps_whole_exchanges_only() -> None:
    history: list[Any] = [["user", "before"]]
    model = Lines(wants(("1", "look")), failure(reason="overloaded", retryable=True, retry_after_s=7))
    events = run(read(loop(model), history))
    assert events[-1] == Event.error(
        "overloaded", message="no", code="backend_error", retryable=True, retry_after_s=7
    )  # fmt: skip
    assert history == [["user", "before"], ["user", "go"], ["model", "look:1"], ["results", "1=seen 1"]]


def test_a_prompt_that_was_never_answered_leaves_no_trace() -> None:
    history: list[Any] = [["user", "before"]]
    events = run(read(loop(Lines(failure(reason="connection"))), history))
    assert events[-1].kind == "error"
    assert history == [["user", "before"]]


def test_messages_that_can_never_be_answered_do_not_stay() -> None:
    history: list[Any] = [["user", "before"]]
    run(read(loop(Lines(wants(("1", "look")), failure(reason="too_long", rejected=True))), history))
    assert history == [["user", "before"]]


def test_a_result_that_the_journal_cannot_keep_is_an_error_for_the_model() -> None:
    class Small(UnjournaledSteps):
        async def take(self, step: Any) -> None:
            if "seen" in str(step):
                raise TooLarge("no")
            await super().take(step)

    model = Lines(wants(("1", "look")), says("ok"))
    events = run(read(loop(model), [], Small()))
    assert events[-1].kind == "result"
    assert "too large" in model.seen[-1][-1][1]


def test_what_the_journal_raises_ends_the_turn_as_it_is() -> None:
    with pytest.raises(DiedError):
        run(read(loop(Lines(*SHOPPING)), [], Dying(at=0)))


# --- the meter --------------------------------------------------------------------------------------------------------
class Purse:
    """A meter with a number of calls to spend."""

    def __init__(self, calls: int, note: str | None = None) -> None:
        self.left = calls
        self.note = note
        self.told: list[Metered] = []

    async def before_call(self, call: Metered) -> str | None:
        if self.left == 0:
            raise BudgetExceeded("all spent", details={"limit": "calls"})
        self.left -= 1
        return self.note if self.left == 0 else None

    async def after_call(self, call: Metered) -> None:
        self.told.append(call)


def test_each_model_call_and_each_tool_run_is_metered() -> None:
    purse = Purse(99)
    run(read(loop(Lines(wants(("1", "look")), says("ok")), guard=purse)))
    assert [(c.kind, c.name, c.usage.get("input_tokens"), c.replayed) for c in purse.told] == [
        ("model", "lines-1", None, False), ("tool", "look", None, False), ("model", "lines-1", 3, False),
    ]  # fmt: skip


def test_what_an_earlier_owner_spent_counts_but_is_not_asked_for() -> None:
    steps = Dying(at=2)
    with pytest.raises(DiedError):
        run(read(loop(Lines(wants(("1", "look")), says("ok"))), [], steps))
    purse = Purse(0)
    run(read(loop(Lines(wants(("1", "look")), says("ok")), guard=purse), [], Dying(steps.taken)))
    assert [(c.kind, c.replayed) for c in purse.told] == [("model", True), ("tool", True), ("model", True)]


@pytest.mark.parametrize("calls", [0, 2])
def test_a_turn_ends_when_the_budget_is_spent(calls: int) -> None:
    events = run(read(loop(Lines(wants(("1", "look")), says("ok")), guard=Purse(calls))))
    assert events[-1].kind == "error"
    assert (events[-1].data["code"], events[-1].data["limit"]) == ("budget_exceeded", "calls")


def test_a_tool_that_the_budget_forbids_is_not_run_and_what_ran_beside_it_is_kept() -> None:
    history: list[Any] = []
    events = run(read(loop(Lines(wants(("1", "pay"), ("2", "look")), says("ok")), guard=Purse(2)), history))
    assert events[-1].data["code"] == "budget_exceeded"
    assert (ran["pay"], ran["look"]) == (1, 0)
    assert history[-1] == ["results", "1=paid", "2=this call was not made: all spent"], "it is known that it was paid"


def test_tools_that_fail_together_end_the_turn_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Purse):
        async def after_call(self, call: Metered) -> None:
            if call.kind == "tool":
                raise DiedError

    async def check() -> None:
        with pytest.raises(DiedError):
            await read(loop(Lines(wants(("1", "look"), ("2", "look"))), guard=Broken(9)))
        gc.collect()

    run(check())
    assert "never retrieved" not in caplog.text


def test_a_note_waits_while_the_provider_pauses() -> None:
    history: list[Any] = []
    run(read(loop(Lines(says("well, ", goes_on=True), says("ok")), guard=Purse(2, "wrap up")), history))
    assert history == [["user", "go"], ["model", "well, "], ["model", "ok"]]


def test_a_note_reaches_the_model_and_stays_where_it_was_said() -> None:
    history: list[Any] = []
    steps = UnjournaledSteps(key="t")
    run(read(loop(Lines(wants(("1", "look")), says("ok")), guard=Purse(3, "wrap up")), history, steps))
    assert history[2] == ["results", "1=seen 1", "(wrap up)"]
    again: list[Any] = []
    run(read(loop(Lines()), again, Dying(steps.taken)))
    assert again == history, "a later owner builds the same history"


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.case(429)
def test_a_turn_that_runs_more_tools_than_it_may_ends_with_what_was_done_kept() -> None:
    model = Lines(*(wants((f"{n}a", "look"), (f"{n}b", "look")) for n in range(9)))
    history: list[Any] = []
    events = run(read(loop(model, bounds=Bounds(tool_runs=5)), history))
    assert ran["look"] == 5
    said = "the model wanted more than 5 runs of tools in one turn; prompt it to go on, or raise the option max_tool_runs"
    assert events[-1].data == {"reason": "max_tool_runs", "message": said, "code": "backend_error", "retryable": True}
    assert history[-1] == ["results", "2a=seen 5", "2b=this call was not made: the turn has run as many tools as it may"]


@pytest.mark.case(429)
def test_a_turn_takes_no_more_of_results_than_it_may() -> None:
    @tool(effect="pure")
    async def dump() -> str:
        return "x" * 6000

    class Dumping(Agent[Any]):
        tools = (dump,)

    model = Lines(*(wants((str(n), "dump")) for n in range(9)))
    history: list[Any] = []
    events = run(read(loop(model, Dumping, bounds=Bounds(result_bytes=10_000)), history))
    assert (events[-1].data["reason"], events[-1].data["retryable"]) == ("max_result_bytes", True)
    assert len(model.seen) == 2
    assert history[-1][1].endswith("\n[cut: the results of this turn are longer than 10000 bytes]")


@pytest.mark.case(429)
@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_what_earlier_owners_of_a_turn_ran_counts(at: int) -> None:
    answers = tuple(wants((str(n), "look")) for n in range(9))
    steps = Dying(at=at)
    with pytest.raises(DiedError):
        run(read(loop(Lines(*answers), bounds=Bounds(tool_runs=3)), steps=steps))
    events = run(read(loop(Lines(*answers), bounds=Bounds(tool_runs=3)), steps=Dying(steps.taken)))
    assert events[-1].data["reason"] == "max_tool_runs"
    assert ran["look"] == 3
