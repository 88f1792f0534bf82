"""What earlier turns did that ended without their answers, in a tool loop: how it is shown, and which calls go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Kept, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import Done, NotDone, ToolCall, tool
from agentmesh_node.tools import Call, Toolbox, functions
from agentmesh_node.tools.kept_exchanges import notes
from agentmesh_node.tools.loop_steps import ModelAnswer
from agentmesh_node.tools.open_calls import open_calls
from node.tools.test_loop import Answer, DiedError, Dying, Lines, failure, loop, says
from support import eventually, run

keys: list[str] = []
"""The keys under which money was paid."""


@pytest.fixture(autouse=True)
def _nothing_paid() -> None:
    keys.clear()


def payer(effect: Any = "once", reconcile: Any = None) -> type[Agent[Any]]:
    @tool(effect=effect, reconcile=reconcile)
    async def pay(to: str, call: ToolCall) -> str:
        """Pay."""
        keys.append(call.key)
        return f"paid {to}"

    return type("Payer", (Agent,), {"tools": (pay,)})


def wants(*calls: tuple[str, str]) -> ModelAnswer:
    """An answer that wants payments, given as (id, to whom)."""
    made = tuple(Call(id, "pay", {"to": to}) for id, to in calls)
    return ModelAnswer(["model", *(f"pay {c.input['to']}" for c in made)], calls=made, stop="tool_use", model="lines-1")


def steps(answers: Sequence[ModelAnswer], *, results: dict[str, str], intents: dict[str, str]) -> tuple[Any, ...]:
    """The steps of a turn, with results by id and intents (id, key)."""
    found: list[Any] = [msgspec.to_builtins(answer) for answer in answers]
    found += [{"step": "intent", "id": id, "key": key} for id, key in intents.items()]
    found += [{"step": "result", "result": {"id": i, "name": "pay", "ok": True, "text": t}} for i, t in results.items()]
    return tuple(msgspec.json.decode(msgspec.json.encode(found)))


HALF = steps([wants(("1", "ann"), ("2", "bob"))], results={"1": "paid ann"}, intents={"1": "k1", "2": "k2"})
"""One payment has a result, the other has not."""


def kept(taken: tuple[Any, ...] = HALF, **fields: Any) -> Kept:
    return Kept(**{"name": "t0", "number": 1, "prompt": "pay them", "steps": taken, "note": "(what turn 1 did)", **fields})


async def read(model: Lines, agent: type[Agent[Any]], *earlier: Kept, history: list[Any], taken: Any = None) -> list[Event]:
    turn = Turn("a", "1", 2, steps=taken or UnjournaledSteps(key="t1"), kept=earlier)
    return [event async for event in loop(model, agent).run(history, "go on", turn)]


def talk(
    *answers: Answer, earlier: Sequence[Kept], agent: type[Agent[Any]] | None = None, taken: Any = None
) -> tuple[list[Any], Lines]:
    """A turn with what earlier ones did: the history that it leaves, and its model."""
    # The model finds its answer by the number of answers in the history: those of earlier turns come first.
    before = sum(1 for turn in earlier if turn.shown == "whole" for step in turn.steps if "answer" in str(step))
    model, history = Lines(*[says("of before")] * before, *answers), list[Any]()
    run(read(model, agent or payer(), *earlier, history=history, taken=taken))
    return history, model


# --- shown ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(380)
def test_it_is_shown_as_whole_exchanges() -> None:
    history, model = talk(says("done"), earlier=[kept()])
    assert model.seen == [
        [
            ["user", "pay them"],
            ["model", "pay ann", "pay bob"],
            ["results", "1=paid ann", "2=interrupted; it may have been done"],
            ["user", "go on"],
        ]
    ]
    assert history == [*model.seen[0], ["model", "done"]], "and the session has it from now on"
    assert keys == []


@pytest.mark.case(381)
def test_it_is_shown_by_its_note() -> None:
    history, _ = talk(says("done"), earlier=[kept((), shown="note"), kept((), shown="not", note="hidden")])
    assert history == [["user", "go on", "((what turn 1 did))"], ["model", "done"]]
    assert notes([kept(shown="whole"), kept(shown="not"), kept(note=None)]) == ["(what turn 1 did)"]


def test_steps_of_another_backend_are_shown_by_the_note() -> None:
    history, _ = talk(says("done"), earlier=[kept(({"step": "session", "session": "x"},)), kept(("odd",)), kept((7,), note=None)])
    assert history[0] == ["user", "go on", *["((what turn 1 did))"] * 2]


class Picky(Lines):
    """A model that refuses messages for good in which a text stands."""

    def __init__(self, *answers: Answer, hates: str) -> None:
        super().__init__(*answers)
        self._hates = hates

    async def answer(self, history: Sequence[Any], tools: Any) -> Any:
        if self._hates in str(history):
            self.seen.append(list(history))
            raise failure(reason="bad_request", rejected=True)
        async for part in super().answer(history, tools):
            yield part


@pytest.mark.case(381)
@pytest.mark.parametrize(
    ("hates", "calls", "first"),
    [
        ("pay bob", 2, ["user", "go on", "((what turn 1 did))"]),
        ("turn 1", 1, ["user", "pay them"]),
        ("pay them", 2, ["user", "go on", "((what turn 1 did))"]),
    ],
)
def test_a_turn_goes_on_with_less_of_it_where_the_model_refuses(hates: str, calls: int, first: Any) -> None:
    model, history = Picky(says("done"), says("done"), hates=hates), list[Any]()
    events = run(read(model, payer(), kept(), history=history))
    assert (events[-1].kind, len(model.seen), history[0]) == ("result", calls, first)


@pytest.mark.case(381)
def test_a_turn_goes_on_without_it_where_the_model_refuses_the_note_too() -> None:
    model, history = Picky(says("done"), hates="turn 1"), list[Any]()
    events = run(read(model, payer(), kept((), shown="note"), history=history))
    assert events[-1].kind == "result" and history == [["user", "go on"], ["model", "done"]]


def test_a_refusal_that_nothing_earlier_explains_fails_the_turn_and_leaves_the_session() -> None:
    model, history = Picky(hates="go on"), [["user", "before"]]
    events = run(read(model, payer(), kept(), history=history))
    assert events[-1].data["reason"] == "bad_request" and history == [["user", "before"]]
    assert model.seen[-1] == [["user", "before"], ["user", "go on"]]


def test_an_owner_that_goes_on_shows_it_as_the_first_one_did() -> None:
    model, steps_ = Picky(wants(("9", "cat")), says("done"), hates="pay bob"), Dying(at=2)
    with pytest.raises(DiedError):
        run(read(model, payer(), kept(), history=[], taken=steps_))
    history: list[Any] = []
    run(
        read(
            Picky(wants(("9", "cat")), says("done"), hates="pay bob"), payer(), kept(), history=history, taken=Dying(steps_.taken)
        )
    )
    assert history[0] == ["user", "go on", "((what turn 1 did))"] and history[-1] == ["model", "done"]


def test_a_failure_behind_a_whole_exchange_leaves_all_of_it_in_the_session() -> None:
    history, _ = talk(wants(("9", "cat")), failure(reason="overloaded"), earlier=[kept()])
    assert [message[0] for message in history] == ["user", "model", "results", "user", "model", "results"]


def test_a_failure_ahead_of_the_first_answer_leaves_the_session_as_it_was() -> None:
    history, _ = talk(failure(reason="overloaded"), earlier=[kept()])
    assert history == []


# --- which calls go on ------------------------------------------------------------------------------------------------
async def went_through(key: str) -> Done:
    return Done(f"receipt of {key}")


async def never_went(key: str) -> NotDone:
    return NotDone()


@pytest.mark.case(382)
@pytest.mark.parametrize(
    ("reconcile", "told", "result", "paid"),
    [
        (None, "interrupted; it may have been done", "The outcome of this call is unknown", []),
        (went_through, "receipt of k2", "receipt of k2", []),
        (never_went, "interrupted; it was not done", "paid bob", ["k2"]),
    ],
)
def test_the_next_equal_call_of_another_try_is_the_same_call_once(
    reconcile: Any, told: str, result: str, paid: list[str]
) -> None:
    answers = (wants(("5", "bob")), wants(("6", "bob")), says("done"))
    history, _ = talk(*answers, earlier=[kept(retried=True)], agent=payer(reconcile=reconcile))
    assert history[2] == ["results", "1=paid ann", f"2={told}"]
    assert history[5][1].startswith(f"5={result}")
    assert history[7] == ["results", "6=paid bob"]
    assert keys == [*paid, "t1/6"], "a second equal call is a new one"


@pytest.mark.case(382)
def test_other_calls_of_another_try_are_new() -> None:
    """Also an equal one of which the result is known: the model was shown it, and wants another."""
    talk(wants(("5", "ann"), ("6", "cat")), says("done"), earlier=[kept(retried=True)])
    assert keys == ["t1/5", "t1/6"]


@pytest.mark.case(383)
def test_a_new_request_has_keys_of_its_own() -> None:
    talk(wants(("5", "bob")), says("done"), earlier=[kept()])
    assert keys == ["t1/5"]


@pytest.mark.case(382)
def test_an_idempotent_call_that_was_in_flight_runs_again_under_its_key() -> None:
    taken = steps([wants(("1", "ann"), ("1", "bob"))], results={"1": "paid ann"}, intents={})
    talk(wants(("5", "bob")), says("done"), earlier=[kept(taken, retried=True)], agent=payer("idempotent"))
    assert keys == ["t0/1#2"]


@pytest.mark.case(382)
@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("committed", [True, False])
def test_the_key_holds_whichever_owner_makes_the_call(at: int, committed: bool) -> None:
    """The owner dies at each step of a try that goes on with a call."""
    answers = (wants(("5", "bob")), wants(("6", "dan")), says("done"))
    agent = payer(reconcile=never_went)
    steps_ = Dying(at=at, committed=committed)
    try:
        talk(*answers, earlier=[kept(retried=True)], agent=agent, taken=steps_)
        assert (at == 5 and len(steps_.taken) < 6) or len(steps_.taken) == 6
    except DiedError:
        pass
    history, _ = talk(*answers, earlier=[kept(retried=True)], agent=agent, taken=Dying(steps_.taken))
    assert history[-1] == ["model", "done"]
    assert set(keys) == {"k2", "t/6"}, "no call was ever made under another key"


@pytest.mark.case(382)
def test_a_third_try_goes_on_with_what_neither_of_two_has_ended() -> None:
    second = steps([wants(("5", "bob"), ("6", "eve"))], results={}, intents={"5": "k2", "6": "k6"})
    agent = payer(reconcile=never_went)
    earlier = [kept(retried=True, shown="told"), kept(second, name="t0b", retried=True)]
    talk(wants(("7", "bob"), ("8", "bob"), ("9", "eve")), says("done"), earlier=earlier, agent=agent)
    assert sorted(keys) == ["k2", "k6", "t1/8"]


def test_a_call_that_another_try_has_ended_is_over() -> None:
    second = steps([wants(("5", "bob"))], results={"5": "paid bob"}, intents={"5": "k2"})
    talk(wants(("7", "bob")), says("done"), earlier=[kept(retried=True, shown="told"), kept(second, name="t0b", retried=True)])
    assert keys == ["t1/7"]


@pytest.mark.case(382)
@pytest.mark.parametrize("shown", ["not", "note"])
def test_a_result_of_which_the_model_cannot_be_told_is_told_when_it_calls_again(shown: Any) -> None:
    """The messages that have it are refused, so the model does not know of it and pays again."""
    answers = (wants(("5", "ann")), wants(("6", "ann")), says("done"))
    model, history = Picky(*answers, hates="turn 1"), list[Any]()
    earlier = kept(retried=True, shown=shown)
    run(read(model, payer(), earlier, history=history))
    assert history[2] == ["results", "5=paid ann"] and history[4] == ["results", "6=paid ann"]
    assert keys == ["t1/6"], "once: a second equal call is a new one"


def test_a_call_that_the_budget_forbade_at_another_try_is_still_open() -> None:
    refused = [*steps([wants(("5", "bob"))], results={}, intents={"5": "k2"})]
    refused.append(
        {"step": "result", "result": {"id": "5", "name": "pay", "ok": False, "text": "no", "error": "budget_exceeded"}}
    )
    earlier = [kept(retried=True, shown="told"), kept(tuple(refused), name="t0b", retried=True)]
    talk(wants(("7", "bob")), says("done"), earlier=earlier, agent=payer(reconcile=never_went))
    assert keys == ["k2"]


CLAUDE = (
    {"step": "session", "session": "s"},
    {"step": "intent", "id": "1", "key": "k1", "name": "pay", "input": {"to": "ann"}},
    {"step": "intent", "id": "2", "key": "k2", "name": "pay", "input": {"to": "bob"}},
    {"step": "result", "result": {"id": "1", "name": "pay", "ok": True, "text": "paid"}},
)
CODEX = (
    {"step": "intent", "call": {"id": "1", "name": "pay", "input": {"to": "ann"}}, "key": "k1"},
    {"step": "ran", "call": {"id": "1", "name": "pay"}, "result": {"id": "1", "name": "pay", "ok": True, "text": "paid"}},
    {"step": "intent", "call": {"id": "2", "name": "pay", "input": {"to": "bob"}}, "key": ""},
)


@pytest.mark.case(387)
@pytest.mark.parametrize(("taken", "key"), [(CLAUDE, "k2"), (CODEX, "t0/2")], ids=["claude", "codex"])
def test_intents_that_name_their_calls_are_enough(taken: tuple[Any, ...], key: str) -> None:
    former = open_calls([kept(taken, retried=True), kept(taken, name="other")], (), "t1", frozenset())
    assert [(one.call.name, one.call.input, one.key) for one in former] == [("pay", {"to": "bob"}, key)]
    assert list(open_calls([kept(taken, retried=True)], (), "t1", frozenset({key}))) == []
    assert former.meet(Call("9", "pay", {"to": "ann"})) is None
    assert former.meet(Call("9", "pay", {"to": "bob"})) is not None and list(former) == []


# --- keys -------------------------------------------------------------------------------------------------------------
@pytest.mark.case(385)
def test_every_owner_reads_the_key_that_the_intent_has() -> None:
    """Also one whose own rule would give another key."""
    taken = steps([wants(("1", "ann"))], results={}, intents={"1": "the key of another build"})
    talk(wants(("1", "ann")), says("done"), earlier=[], agent=payer(reconcile=never_went), taken=Dying(taken))
    assert keys == ["the key of another build"]


@pytest.mark.case(385)
def test_an_intent_has_its_key_before_anything_is_fired() -> None:
    steps_ = Dying(at=1)
    with pytest.raises(DiedError):
        talk(wants(("1", "ann")), says("done"), earlier=[], taken=steps_)
    assert steps_.taken[-1] == {"step": "intent", "id": "1", "key": "t/1"} and keys == []


@pytest.mark.case(386)
def test_a_call_whose_function_still_runs_is_not_asked_after() -> None:
    """Its tool would say, truly, that nothing was done; and a moment later it is."""
    begun, goes_on = threading.Event(), threading.Event()

    @tool(effect="once", reconcile=never_went)
    def pay(to: str) -> str:
        """Pay."""
        begun.set()
        goes_on.wait(60)
        return "paid"

    async def check() -> None:
        box = Toolbox(type("Payer", (Agent,), {"tools": (pay,)})())
        call, turn = Call("1", "pay", {"to": "ann"}), Turn("threaded", "1", 1, steps=UnjournaledSteps(key="t"))
        running = asyncio.create_task(box.run(call, turn))
        await asyncio.to_thread(begun.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        found = await box.reconcile(call, turn)
        assert found is not None and found.error == "unknown_outcome"
        goes_on.set()
        await eventually(lambda: not any("threaded" in work for work in functions._at_work), what="the end of the thread")
        assert await box.reconcile(call, turn) is None

    run(check())
