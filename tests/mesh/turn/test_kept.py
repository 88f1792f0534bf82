"""What turns did that ended without their answers, in the turn machine: kept for the next turn, over takeovers and snapshots."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Idle, Proceed, Prompt, Skip
from agentmesh.formats import FIRST
from agentmesh.records import NOTHING, KeptTurn, decode_record
from agentmesh.tool_runs import MAX_NOTE, ToolRun
from agentmesh.turn import kept as machine_kept
from agentmesh.turn.values import Interrupt, TurnEnded, Watchdog
from agentmesh.wire import ErrorBody
from mesh.turn.harness import agent
from mesh.turn.stepping import Stepping


def wants(*calls: str) -> dict[str, Any]:
    """A model's answer that wants tools, as its step has it."""
    found = [{"id": f"c{n}", "name": "pay", "input": {"to": who}} for n, who in enumerate(calls, 1)]
    return {"step": "answer", "message": ["model"], "calls": found}


def intent(id: str) -> dict[str, Any]:
    return {"step": "intent", "id": id, "key": f"key-{id}"}


def paid(id: str) -> dict[str, Any]:
    return {"step": "result", "result": {"id": id, "name": "pay", "ok": True, "text": "paid"}}


def pay_two(bench: Stepping, prompt: str = "pay") -> str:
    """A turn that has paid one, and is about to pay another."""
    ref = bench.prompt(prompt)
    for step in (wants("ann", "bob"), intent("c1"), paid("c1"), intent("c2")):
        bench.take(step)
    return ref


def shown(bench: Stepping) -> list[KeptTurn]:
    """What the running turn is given of earlier ones."""
    return [turn for _, turn in bench.running().kept]


def steps_of(turn: KeptTurn) -> list[Any]:
    return [msgspec.json.decode(step.value) for step in turn.steps]


def fail(bench: Stepping, reason: str, *, rejected: bool = False, session: Raw = NOTHING, **fields: Any) -> str:
    """The prompt task ends with an error event of that reason."""
    task = bench.running()
    bench.task = None
    details: dict[str, Any] = {"reason": reason, **({"rejected": True} if rejected else {})}
    error = ErrorBody(code="backend_error", message="no", details=details)
    bench.feed(TurnEnded(turn=task.number, error=error, session=session, **fields))
    return task.request.ref


@pytest.fixture
def bench() -> Stepping:
    return Stepping()


# --- however it ends ----------------------------------------------------------------------------------------------------
@pytest.mark.case(380)
@pytest.mark.parametrize("end", ["interrupt", "watchdog", "crash", "wall time", "unavailable"])
def test_what_a_turn_did_is_given_to_the_next_however_it_ended(bench: Stepping, end: str) -> None:
    ref = pay_two(bench)
    match end:
        case "interrupt":
            bench.interrupt("")
        case "watchdog":
            bench.watchdog()
        case "crash":
            bench.fail("task_crashed")
        case "wall time":
            bench.fail("budget_exceeded")
        case "unavailable":
            fail(bench, "overloaded")
    bench.prompt("what did you do?")
    (turn,) = shown(bench)
    assert (turn.number, turn.ref, turn.prompt, turn.shown) == (1, ref, "pay", "whole")
    assert steps_of(turn) == [wants("ann", "bob"), intent("c1"), paid("c1"), intent("c2")]
    bench.finish("this and that")
    assert bench.core.ledger.kept == {}, "the session has it now"
    bench.prompt("and now?")
    assert shown(bench) == []


@pytest.mark.case(380)
def test_it_survives_takeovers_and_snapshots_and_turns_that_did_nothing() -> None:
    bench = Stepping(snapshot_records=3)
    pay_two(bench)
    bench.interrupt("")
    for _ in range(3):
        bench.prompt("more")
        assert [steps_of(turn)[-1] for turn in shown(bench)] == [intent("c2")]
        bench.kill()
        assert [steps_of(turn)[-1] for turn in shown(bench)] == [intent("c2")]
        bench.interrupt("")
    pay_two(bench, "pay again")
    bench.watchdog()
    bench.prompt("what did you do?")
    assert [turn.prompt for turn in shown(bench)] == ["pay", "pay again"], "oldest first"


@pytest.mark.case(380)
@pytest.mark.parametrize("end", ["too often", "bad_return", "skipped", "expired"])
def test_an_input_that_is_given_up_leaves_what_it_did(end: str) -> None:
    trouble = {end}

    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        if "too often" in trouble:
            raise RuntimeError("no")
        return 7 if "bad_return" in trouble else Idle(state)

    def pre_turn(self: Any, prompt: str, state: list[Any]) -> Any:
        return Skip(state) if "skipped" in trouble and tries.pop() else Proceed(prompt, state)

    tries = [True, False]
    bench = Stepping(agent(handle_response=handle_response, pre_turn=pre_turn), max_attempts=2)
    ref = bench.prompt("pay", deadline=bench.now + 10)
    for step in (wants("ann"), intent("c1"), paid("c1")):
        bench.take(step)
    match end:
        case "too often":
            bench.finish()
            bench.finish()
            assert bench.outcomes[ref].tools == {"pay": {"ok": 1}}
        case "bad_return":
            bench.finish()
        case "skipped":
            bench.kill()
        case "expired":
            bench.now += 20
            bench.kill()
    ended = {"too often": "failed", "skipped": "pre_turn_skipped"}
    assert bench.code(ref) == ended.get(end, end)
    trouble.clear()
    bench.prompt("what did you do?")
    assert [steps_of(turn)[-1] for turn in shown(bench)] == [paid("c1")]


@pytest.mark.case(380)
@pytest.mark.case(387)
@pytest.mark.parametrize("end", ["interrupt", "watchdog", "fail", "too_long"])
def test_tools_of_a_backend_that_had_taken_no_step_are_told_by_a_note(bench: Stepping, end: str) -> None:
    """Codex takes its first step behind a whole answer and the results of its commands: one of these may run by then."""
    ran = (ToolRun("command_execution", arguments='{"command":"pay ann"}', id="x1"),)
    ref = bench.prompt("pay")
    match end:
        case "interrupt":
            bench.feed(Interrupt("i", None, None, ran))
        case "watchdog":
            bench.feed(Watchdog(bench.running().number, None, ran))
        case _:
            fail(bench, "overloaded" if end == "fail" else end, tools=ran)
    bench.prompt("what did you do?")
    bench.kill()
    (turn,) = shown(bench)
    assert (turn.number, turn.ref, turn.prompt, turn.shown, turn.steps) == (1, ref, "pay", "note", ())
    assert turn.note == bench.core.ledger.history[0].note
    assert turn.note is not None and 'command_execution({"command":"pay ann"}): interrupted; it may have' in turn.note
    bench.finish("this")
    bench.prompt("and now?")
    assert shown(bench) == [], "the session has it now"
    bench.finish("that", tools=ran)
    assert bench.core.ledger.kept == {}, "what has its answer is in the session"


def test_a_session_that_holds_it_needs_nothing_beside_it(bench: Stepping) -> None:
    """A backend that leaves another session behind when it fails says by that: it is all in there."""
    pay_two(bench)
    fail(bench, "overloaded", session=Raw(b'{"messages":["all of it"]}'))
    assert bench.core.ledger.kept == {}
    bench.prompt("next")
    assert (bench.running().session, shown(bench)) == (Raw(b'{"messages":["all of it"]}'), [])


def test_a_stopped_agent_leaves_nothing(bench: Stepping) -> None:
    pay_two(bench)
    bench.interrupt("")
    bench.stop()
    assert bench.core.ledger.kept == {}


def test_nothing_is_kept_while_an_older_build_would_lose_it() -> None:
    bench = Stepping()
    bench.core.writes = FIRST
    pay_two(bench)
    bench.interrupt("")
    assert bench.core.ledger.kept == {}
    assert all(decode_record(body).v == 1 for _, body in bench.journal)


# --- what the model refuses -----------------------------------------------------------------------------------------------
REFUSED = ("too_long", "bad_request", "refused")


@pytest.mark.case(381)
@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_model_refused_is_told_by_a_note_and_then_not_at_all(bench: Stepping, reason: str) -> None:
    ref = pay_two(bench)
    fail(bench, reason, rejected=True)
    (info,) = bench.core.ledger.history
    assert (
        info.note is not None
        and 'pay({"to":"ann"}): ok' in info.note
        and 'pay({"to":"bob"}): interrupted; it may have' in info.note
    )
    assert info.tools == bench.outcomes[ref].tools == {"pay": {"ok": 1, "interrupted": 1}}
    bench.prompt("1")
    (turn,) = shown(bench)
    assert (turn.shown, turn.steps, turn.note) == ("note", (), info.note)
    fail(bench, reason, rejected=True)
    for number in range(4):
        bench.prompt(f"{number}")
        assert shown(bench) == [], "a turn that fails with the note in it goes on without"
        fail(bench, reason, rejected=True)
    assert bench.core.ledger.history[0].note == info.note, "it stays in the history"


@pytest.mark.case(381)
@pytest.mark.parametrize("reason", REFUSED)
def test_exchanges_that_the_model_refuses_become_a_note(bench: Stepping, reason: str) -> None:
    pay_two(bench)
    bench.interrupt("")
    forms = []
    for _ in range(3):
        bench.prompt("next")
        forms.append([turn.shown for turn in shown(bench)])
        fail(bench, reason, rejected=True)
    assert forms == [["whole"], ["note"], []]


@pytest.mark.case(381)
@pytest.mark.parametrize("code", ["task_crashed", "server_error"])
def test_a_failure_that_may_be_their_fault_shortens_them_in_the_end(bench: Stepping, code: str) -> None:
    pay_two(bench)
    bench.interrupt("")
    forms = []
    for _ in range(6):
        bench.prompt("next")
        forms.append([turn.shown for turn in shown(bench)])
        bench.fail(code) if code == "task_crashed" else fail(bench, code)
    assert forms == [["whole"], ["whole"], ["note"], ["note"], [], []]


@pytest.mark.case(381)
@pytest.mark.parametrize("end", ["interrupt", "overloaded", "unauthenticated"])
def test_a_failure_that_is_not_their_fault_leaves_them(bench: Stepping, end: str) -> None:
    pay_two(bench)
    bench.interrupt("")
    for _ in range(9):
        bench.prompt("next")
        assert [turn.shown for turn in shown(bench)] == ["whole"]
        bench.interrupt("") if end == "interrupt" else fail(bench, end)


def test_what_is_kept_is_bounded(bench: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_kept, "MAX_BYTES", 1500)
    for number in range(20):
        bench.prompt(f"pay {number}")
        bench.take(wants("x" * 500))
        bench.interrupt("")
    bench.prompt("next")
    turns = shown(bench)
    assert len(turns) <= machine_kept.MAX_KEPT
    assert [turn.prompt for turn in turns][-2:] == ["pay 18", "pay 19"]
    assert [turn.shown for turn in turns][-2:] == ["whole", "whole"]
    assert all(turn.steps == () for turn in turns if turn.shown == "note")
    assert sum(len(turn.note or "") for turn in turns if turn.shown == "note") <= MAX_NOTE


# --- tried again ----------------------------------------------------------------------------------------------------------
def persistent() -> Stepping:
    """An agent that tries each failed turn again."""

    def handle_error(self: Any, ref: str, error: Any, state: list[Any]) -> Any:
        return Prompt("try again", state)

    return Stepping(agent(handle_error=handle_error))


@pytest.mark.case(382)
def test_another_try_is_given_the_calls_of_the_one_before() -> None:
    bench = persistent()
    ref = pay_two(bench)
    name = bench.running().key
    bench.watchdog()
    assert bench.running().request.ref == ref and bench.running().key != name
    assert [(key, turn.ref) for key, turn in bench.running().kept] == [(name, ref)]
    bench.kill()
    assert [(key, turn.ref) for key, turn in bench.running().kept] == [(name, ref)]


@pytest.mark.case(382)
def test_calls_without_a_result_outlive_a_session_that_has_the_exchanges() -> None:
    """The next try's session tells of the call, and its failure leaves it open all the same."""
    bench = persistent()
    ref = pay_two(bench)
    bench.watchdog()
    bench.take(wants("cat"))
    fail(bench, "overloaded", session=Raw(b'{"messages":["all of it"]}'))
    first, second = shown(bench)
    assert (first.shown, second.shown) == ("told", "told")
    assert steps_of(first)[-1] == intent("c2") and first.ref == second.ref == ref
    bench.finish("done")
    assert bench.core.ledger.kept == {}


@pytest.mark.case(382)
def test_what_a_try_was_not_told_of_is_not_in_the_session_that_it_leaves() -> None:
    bench = persistent()
    pay_two(bench)
    fail(bench, "too_long", rejected=True)
    bench.take({**wants("cat"), "earlier": "not"})
    fail(bench, "overloaded", session=Raw(b'{"messages":["all of it"]}'))
    assert [(turn.shown, bool(turn.steps)) for turn in shown(bench)] == [("note", True), ("told", True)]


@pytest.mark.case(382)
def test_the_calls_of_a_refused_try_stay_open_too() -> None:
    bench = persistent()
    pay_two(bench)
    for _ in range(3):
        fail(bench, "too_long", rejected=True)
        assert steps_of(shown(bench)[0])[-1] == intent("c2")
    assert shown(bench)[0].shown == "not"


@pytest.mark.case(383)
def test_a_request_that_is_asked_anew_is_another(bench: Stepping) -> None:
    ref = pay_two(bench)
    bench.watchdog()
    again = bench.prompt("pay")
    assert again != ref and [turn.ref for turn in shown(bench)] == [ref]


def test_another_try_of_a_prompt_that_nobody_waits_for_goes_on_with_its_calls() -> None:
    ends = iter([Prompt("chained", []), Idle([])])

    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        return next(ends)

    def handle_error(self: Any, ref: str, error: Any, state: list[Any]) -> Any:
        return Prompt("try again", state)

    bench = Stepping(agent(handle_response=handle_response, handle_error=handle_error))
    bench.prompt("begin")
    bench.finish()
    for step in (wants("ann"), intent("c1")):
        bench.take(step)
    bench.watchdog()
    (turn,) = shown(bench)
    assert turn.ref == bench.running().request.ref


# --- told -----------------------------------------------------------------------------------------------------------------
RUNS = (ToolRun("pay", "ok", '{"to":"ann"}', "paid", "c1"), ToolRun("Bash", "failed", '{"command":"rm"}', "no", "b1"))


@pytest.mark.case(384)
@pytest.mark.parametrize("how", ["answer", "interrupt", "watchdog", "fail"])
def test_outcome_and_history_name_the_tools_that_ran(bench: Stepping, how: str) -> None:
    ref = bench.prompt("pay")
    match how:
        case "answer":
            bench.finish("done", tools=RUNS)
        case "interrupt":
            bench.feed(Interrupt("i", None, None, RUNS))
        case "watchdog":
            bench.feed(Watchdog(bench.running().number, None, RUNS))
        case "fail":
            fail(bench, "overloaded", tools=RUNS)
    assert bench.outcomes[ref].tools == {"pay": {"ok": 1}, "Bash": {"failed": 1}}
    (info,) = bench.core.ledger.history
    assert info.tools == bench.outcomes[ref].tools
    assert (info.note is None) is (how == "answer")


def test_a_result_that_the_journal_has_counts_although_nobody_heard_of_it(bench: Stepping) -> None:
    ref = pay_two(bench)
    bench.feed(Interrupt("i", None, None, (ToolRun("pay", arguments='{"to":"ann"}', id="c1"),)))
    assert bench.outcomes[ref].tools == {"pay": {"ok": 1, "interrupted": 1}}
