"""Control requests in every phase of the turn machine, as the table of docs/semantics.md has it (cases 440 to 445)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentmesh.agent import Defer, Halt, Idle, Proceed, Prompt, Skip
from agentmesh.backend import Response
from agentmesh.control_values import Adjustment
from agentmesh.records import Change, SetTimer
from agentmesh.registry_values import Restart
from agentmesh.tool_runs import ToolRun
from agentmesh.turn import machine, state_of
from agentmesh.turn.interruption import CALLBACKS, STOP_PATIENCE_S
from agentmesh.turn.values import (
    Arrived,
    AskTimer,
    AwaitPermit,
    Cancel,
    CancelCallback,
    Command,
    Configure,
    DropTimer,
    Interrupt,
    Phase,
    Returned,
    Start,
    Tick,
)
from mesh.turn.harness import Plain, Rig, table_is_kept
from mesh.turn.stepping import Stepping
from mesh.turn.withdrawing import withdraw

PAGE = Path(__file__).parents[3] / "docs" / "semantics.md"


class Row(NamedTuple):
    """One row of the page's table."""

    phase: str
    runs: str
    interrupt: str
    outcome: str
    kept: str
    behind: str
    stop: str
    cancel: str
    status: str

    @property
    def key(self) -> str:
        return f"{self.phase.strip('`')}: {self.runs}"


def rows() -> list[Row]:
    text = PAGE.read_text().partition("### Control requests in every phase")[2]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    table = [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]
    return [row for row in table if row.phase.strip("`") in set(Phase) or row.interrupt[:4] in ("true", "fals")]


class Busy(Plain):
    """Has all callbacks. A prompt `halt` halts, `defer` defers, `skip` is skipped, `crash` crashes, and so on."""

    def activate_agent(self, state: list[Any]) -> Any:
        return None

    def pre_run(self, state: list[Any]) -> Any:
        return state

    def pre_turn(self, prompt: str, state: list[Any]) -> Any:
        self.notify("pre", prompt)
        if prompt == "stay":
            return Halt([*state, "pre"])
        return Skip(state) if prompt == "skip" else Proceed(prompt, [*state, "pre"])

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        self.notify("response", response.text)
        match response.text:
            case "HALT":
                return Halt([*state, "response"])
            case "DEFER":
                return Defer([*state, "response"])
            case "CHAIN":
                return Prompt("chained", [*state, "response"])
            case "CRASH":
                raise RuntimeError("boom")
        return Idle([*state, "response"])

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        self.notify("error", error.code)
        return Idle([*state, f"error {error.code}"])

    def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
        self.notify("post", outcome.error.code if outcome.error else "")
        return [*state, "post"]

    def post_run(self, state: list[Any]) -> Any:
        self.notify("run", "")

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        return Halt(state) if event == "halt" else Idle([*state, event])

    def terminate_agent(self, reason: Any, state: list[Any]) -> Any:
        return None


class Bench(Rig):
    """A rig that can be brought into every phase. `ref` is the prompt that is being handled, `waiting` one that waits."""

    ref = ""
    waiting = ""
    told: float | None = None
    """How long the callback that runs may go on."""

    def _note(self, command: Command) -> None:
        if isinstance(command, CancelCallback):
            self.told = command.after_s
        elif not isinstance(command, AwaitPermit):
            super()._note(command)

    def begin(self) -> None:
        """Put the core where an owner has it before its first input."""
        self.core = machine.new_core(self.config, self.core.ledger)


def held(hook: str, *, start: bool = True, **config: Any) -> Bench:
    """A bench whose first call of `hook` does not end by itself."""
    return Bench(Busy, hold=(hook,), start=start, **config)


def _start(hook: str) -> Bench:
    bench = held(hook)
    bench.waiting = bench.prompt("waits")
    return bench


def _turn(hook: str, text: str = "a", *, fail: bool = False, event: Any = None, run: bool = True) -> Bench:
    bench = held(hook)
    bench.ref, bench.waiting = bench.prompt(text), bench.prompt("waits")
    if event is not None:
        bench.event(event)
    if run:
        bench.fail() if fail else bench.finish()
    return bench


def _outside(hook: str, event: str) -> Bench:
    bench = held(hook)
    bench.event(event)
    bench.waiting = bench.prompt("waits")
    return bench


def _boot() -> Bench:
    bench = Bench(Busy)
    bench.begin()
    bench.waiting = bench.prompt("waits")
    return bench


def _idle() -> Bench:
    bench = Bench(Busy)
    bench.event("halt")
    bench.waiting = bench.prompt("waits")
    return bench


def _suspect() -> Bench:
    bench = Bench(Busy)
    bench.auto_commit = False
    bench.waiting = bench.prompt("waits")
    bench._reset()
    bench.auto_commit = True
    bench._store(bench._record("activated", change=Change(takeovers={f"inbox:{bench.waiting}": 2})))
    owned = bench.folded()
    assert owned is not None
    bench.core = machine.new_core(bench.config, owned)
    bench.agent = bench._instance()
    bench.feed_backlog()
    bench.feed(Start(True))
    return bench


def _committing() -> Bench:
    bench = Bench(Busy)
    bench.ref, bench.waiting = bench.prompt("a"), bench.prompt("waits")
    bench.auto_commit = False
    bench.finish()
    return bench


def _crashed(hook: str = "", *, restart: bool = False, most: int = 5) -> Bench:
    bench = Bench(Busy, hold=(hook,) if hook else (), restart=Restart(max=most))
    bench.auto_restart = restart
    bench.ref, bench.waiting = bench.prompt("crash"), bench.prompt("waits")
    bench.finish()
    return bench


def _configuring() -> Bench:
    bench = held("change_options")
    bench.feed(Configure(id="s1", change=Adjustment(backend_options={"model": 1}), token="s1"))
    bench.waiting = bench.prompt("waits")
    return bench


def _stopping(hook: str = "") -> Bench:
    bench = Bench(Busy, hold=(hook,) if hook else ())
    bench.auto_done = bool(hook)
    bench.ref, bench.waiting = bench.prompt("a"), bench.prompt("waits")
    bench.stop()
    return bench


def _over() -> Bench:
    bench = Bench(Busy)
    bench.ref, bench.waiting = bench.prompt("a"), bench.prompt("waits")
    bench.stop()
    return bench


BENCHES: dict[str, Callable[[], Bench]] = {
    "boot: nothing": _boot,
    "init: `init_agent`": lambda: _start("init_agent"),
    "session: `start_session`, `resume_session`": lambda: _start("start_session"),
    "activate: `activate_agent`": lambda: _start("activate_agent"),
    "pre_run: `pre_run`": lambda: _start("pre_run"),
    "idle: nothing": _idle,
    "suspect: nothing": _suspect,
    "pre_turn: `pre_turn`": lambda: _turn("pre_turn", run=False),
    "turn: the prompt task": lambda: _turn("none", run=False),
    "deciding: `handle_response`": lambda: _turn("handle_response"),
    "deciding: `handle_error`": lambda: _turn("handle_error", fail=True),
    "post_turn: `post_turn`": lambda: _turn("post_turn"),
    "handling: `handle_event`, in a turn": lambda: _turn("handle_event", event="e"),
    "handling: `handle_event`, outside a turn": lambda: _outside("handle_event", "e"),
    "post_run: `post_run`, in a turn": lambda: _turn("post_run", "halt"),
    "post_run: `post_run`, behind `pre_turn`": lambda: _turn("post_run", "stay", run=False),
    "post_run: `post_run`, outside a turn": lambda: _outside("post_run", "halt"),
    "committing: nothing: a record is on its way": _committing,
    "crashing: `terminate_agent`": lambda: _crashed("terminate_agent"),
    "restarting: nothing": _crashed,
    "failed: nothing": lambda: _crashed(restart=True, most=0),
    "configuring: the backend looks at new options": _configuring,
    "ending: `terminate_agent`": lambda: _stopping("terminate_agent"),
    "closing: `terminate_session`": lambda: _stopping("terminate_session"),
    "stopped: nothing": _stopping,
    "over: nothing": _over,
}
ROWS = {row.key: row for row in rows()}
KEYS = pytest.mark.parametrize("key", list(BENCHES))


def bench_of(key: str) -> Bench:
    bench = BENCHES[key]()
    assert bench.phase() == key.partition(":")[0]
    return bench


@pytest.mark.case(440)
def test_the_page_has_a_row_for_each_phase_of_the_machine() -> None:
    answering = set(machine.TABLE) - {Phase.HANDED_ON}  # in that one the next owner answers
    assert {row.phase.strip("`") for row in rows()} == {str(phase) for phase in answering}
    assert set(ROWS) == set(BENCHES), "each row is tried, and each phase has one"


@pytest.mark.case(440)
def test_each_phase_in_which_a_callback_runs_is_known() -> None:
    assert {phase for phase, moves in machine.TABLE.items() if Returned in moves} == set(CALLBACKS)


@KEYS
@pytest.mark.case(440)
@pytest.mark.case(441)
@pytest.mark.case(442)
@pytest.mark.case(443)
def test_an_interrupt_is_answered_at_once_and_ends_what_the_page_says(key: str) -> None:
    row = ROWS[key]
    with table_is_kept():
        bench = bench_of(key)
        call = bench.held[0] if bench.held else None
        hook = call.hook if call is not None else None
        answer = bench.interrupt("now")
        assert answer is not None, "it is answered before anything else happens"
        assert answer["interrupted"] is row.interrupt.startswith("true")
        assert answer.get("callback") == (hook if "named" in row.interrupt else None)
        assert (hook is not None) is ("named" in row.interrupt)
        if answer["interrupted"]:
            assert all(other is not call for other in bench.held), "the callback was cancelled"
        elif call is not None:
            assert bench.held[0] is call, "the callback is not touched"
        bench.auto_commit = bench.auto_done = True
        bench.hold.clear()
        if bench.appending is not None:
            bench.commit()
        if answer["interrupted"]:
            expected = "backend_error" if "handle_error" in row.runs else row.outcome.strip("`")
            assert bench.code(bench.ref) == expected


@KEYS
@pytest.mark.case(440)
@pytest.mark.case(441)
def test_a_stop_ends_the_life_from_every_phase(key: str) -> None:
    row = ROWS[key]
    with table_is_kept():
        bench = bench_of(key)
        cut = row.stop == "cuts"
        bench.stop()
        assert bench.told == (STOP_PATIENCE_S if cut else None)
        if cut:
            assert bench.held, "the callback has a moment to end by itself"
            bench.hold.clear()
            bench.cut()
        bench.auto_commit = bench.auto_done = True
        bench.drain()
        bench.do_effects()
        assert bench.phase() is Phase.OVER
        answered = key.startswith("committing")
        for ref in filter(None, (bench.ref, bench.waiting)):
            ended = bench.outcomes[ref]
            assert ended.ok if answered and ref == bench.ref else ended.error is not None and ended.error.code == "stopped", ref


@KEYS
@pytest.mark.case(440)
def test_a_callback_that_ends_by_itself_while_a_stop_waits_is_heard(key: str) -> None:
    if ROWS[key].stop != "cuts":
        return
    bench = bench_of(key)
    bench.stop()
    bench.drain()
    assert bench.phase() is Phase.OVER
    assert all(ref in bench.outcomes for ref in (bench.ref, bench.waiting) if ref)


@KEYS
@pytest.mark.case(440)
@pytest.mark.case(245)
def test_a_prompt_that_waits_can_be_cancelled(key: str) -> None:
    row = ROWS[key]
    with table_is_kept():
        bench = bench_of(key)
        hook = bench.held[0].hook if bench.held else None
        answer = bench.cancel(bench.waiting)
        if row.cancel.startswith(("waits", "behind")):
            assert answer is None
            bench.auto_commit = True
            bench.drain() if bench.appending is not None else bench.feed(Start())
            answer = bench.answers["c"]
        assert answer == {"cancelled": row.cancel != "no"}
        if answer["cancelled"]:
            assert bench.code(bench.waiting) == "cancelled"
        if hook is not None:
            assert bench.held[0].hook == hook, "what runs is not touched"
        if bench.ref and row.cancel == "yes":
            assert bench.cancel(bench.ref, "running") == {"cancelled": key.startswith(("restarting", "failed"))}


@KEYS
@pytest.mark.case(440)
def test_the_status_is_as_the_page_says(key: str) -> None:
    row, bench = ROWS[key], bench_of(key)
    assert row.status in (state_of(bench.core), "either")


@KEYS
@pytest.mark.case(445)
def test_timers_are_set_and_deadlines_kept_beside_a_callback(key: str) -> None:
    row = ROWS[key]
    bench = bench_of(key)
    if not bench.held or row.cancel == "no":
        return
    late = bench.prompt("late", deadline=bench.now + 1)
    bench.feed(AskTimer(SetTimer(id="t", due=5000.0), "set"))
    assert bench.answers["set"]["set"] is True and "t" in bench.core.ledger.timers
    bench.feed(DropTimer("t", "drop"))
    assert bench.answers["drop"] == {"cancelled": True} and "t" not in bench.core.ledger.timers
    bench.now += 2
    bench.feed(Tick())
    assert bench.code(late) == "expired"
    bench.hold.clear()
    bench.auto_restart = True
    for _ in range(20):
        if bench.held or bench.task:
            bench.drain()
    assert "t" not in bench.core.ledger.timers


def test_a_timer_of_an_agent_that_ends_is_refused() -> None:
    bench = _stopping("terminate_agent")
    bench.feed(AskTimer(SetTimer(id="t", due=5000.0), "set"), DropTimer("t", "drop"))
    assert bench.answers["set"]["error"]["code"] == "stopped" and bench.answers["drop"] == {"cancelled": False}


# --- what is kept -----------------------------------------------------------------------------------------------------
@pytest.mark.case(441)
def test_nothing_of_an_interrupted_pre_turn_is_kept_and_no_turn_has_begun() -> None:
    bench = _turn("pre_turn", run=False)
    bench.interrupt()
    assert bench.code(bench.ref) == "interrupted" and bench.mails("pre") == []
    bench.hold.clear()
    assert bench.calls.count("handle_error") == bench.calls.count("post_turn") == 0
    assert [turn.ref for turn in bench.core.ledger.history] == []
    bench.release()
    bench.finish()
    assert bench.state == ["pre", "response", "post"] and bench.core.ledger.history[-1].number == 1


@pytest.mark.case(441)
def test_of_an_interrupted_handle_response_nothing_is_kept_but_the_answer_in_the_history() -> None:
    bench = _turn("handle_response")
    bench.hold.clear()
    bench.interrupt()
    assert bench.code(bench.ref) == "interrupted"
    assert bench.state == ["error interrupted", "post"], "of pre_turn nothing is kept either"
    assert bench.mails("response") == [] and bench.mails("pre") == []
    assert [m.event for m in bench.mails("error")] == [m.event for m in bench.mails("post")] == ["interrupted"]
    turn = bench.core.ledger.history[-1]
    assert turn.answer == "A" and turn.error is not None and turn.error.code == "interrupted"
    assert [fact["reason"] for fact in bench.facts("prompt_error")] == ["interrupted"]
    assert bench.core.ledger.attempts == {} and bench.core.ledger.restarts == (), "it is no crash"


@pytest.mark.case(441)
@pytest.mark.parametrize("text", ["a", "halt", "chain", "defer"])
def test_behind_an_interrupted_post_turn_the_decision_holds(text: str) -> None:
    bench = _turn("post_turn", text)
    bench.hold.clear()
    bench.interrupt()
    assert bench.code(bench.ref) == "interrupted"
    assert bench.core.ledger.state is not None and bench.state[:2] == ["pre", "response"]
    assert "post" not in bench.state
    assert [m.event for m in bench.mails("response")] == [text.upper()]
    assert bench.halted() is (text == "halt")
    following = {"halt": None, "chain": "chained"}.get(text, "waits")
    assert (bench.task.prompt if bench.task is not None else None) == following
    assert bench.core.ledger.deferred == {}
    assert bench.state[2:] == ([{"ref": bench.ref, "how": "interrupted"}] if text == "defer" else [])
    assert bench.core.ledger.history[-1].answer == text.upper()


@pytest.mark.case(442)
def test_a_second_interrupt_cancels_the_callback_behind_the_first_once() -> None:
    bench = held("handle_error")
    bench.hold.add("post_turn")
    ref = bench.prompt("a")
    assert bench.interrupt("i1") == {"interrupted": True}
    assert bench.held[0].hook == "handle_error"
    assert bench.interrupt("i2") == {"interrupted": True, "callback": "handle_error"}
    assert bench.held[0].hook == "post_turn" and bench.calls.count("handle_error") == 1
    assert bench.interrupt("i3", ref) == {"interrupted": True, "callback": "post_turn"}
    assert bench.code(ref) == "interrupted" and bench.calls.count("post_turn") == 1
    assert bench.state == ["pre"]
    assert bench.interrupt("i4", ref) == {"interrupted": False}


@pytest.mark.case(442)
def test_what_a_callback_returns_behind_its_interrupt_is_thrown_away() -> None:
    """Its end and the interrupt cross: the machine hears of the end behind its answer."""

    class Deaf(Bench):
        def cut(self) -> None:
            return None

    bench = Deaf(Busy, hold=("handle_response",))
    ref = bench.prompt("a")
    bench.finish()
    assert bench.interrupt("i1")["interrupted"] and bench.interrupt("i2")["interrupted"]
    bench.hold.clear()
    bench.release()
    assert bench.code(ref) == "interrupted" and bench.mails("response") == []


@pytest.mark.case(443)
def test_an_interrupt_for_another_request_touches_nothing() -> None:
    bench = _turn("handle_response")
    assert bench.interrupt("i", bench.waiting) == {"interrupted": False, "callback": "handle_response"}
    bench.hold.clear()
    bench.release()
    assert bench.answer(bench.ref) == "A"


@pytest.mark.case(444)
def test_a_plain_callback_is_named_as_one() -> None:
    bench = Bench(Busy, hold=("handle_response",), plain=frozenset({"handle_response"}))
    bench.prompt("a")
    bench.finish()
    assert bench.interrupt() == {"interrupted": True, "callback": "handle_response", "plain": True}


@pytest.mark.case(443)
def test_events_behind_an_interrupted_one_are_handled_and_none_is_lost() -> None:
    bench = held("handle_event")
    ref = bench.prompt("a")
    for event in ("e1", "e2", "e3"):
        bench.event(event)
    bench.finish()
    bench.hold.clear()
    bench.interrupt()
    assert bench.code(ref) == "interrupted"
    assert bench.state == ["pre", "response", "post", "e2", "e3"]


@pytest.mark.case(440)
def test_a_change_of_options_that_a_stop_cuts_short_is_refused() -> None:
    bench = _configuring()
    bench.stop()
    bench.hold.clear()
    bench.cut()
    assert bench.answers["s1"]["error"]["code"] == "stopped" and bench.phase() is Phase.OVER


@pytest.mark.case(440)
def test_no_turn_begins_once_a_stop_waits() -> None:
    bench = _turn("handle_response", event="e")
    bench.stop()
    bench.hold.clear()
    bench.release()
    assert len(bench.turns) == 1 and "handle_event" not in bench.calls
    assert bench.phase() is Phase.OVER and bench.answer(bench.ref) == "A" and bench.code(bench.waiting) == "stopped"


@pytest.mark.parametrize("how", ["interrupt", "cancel", "end_by", "withdrawal"])
def test_a_turn_is_not_told_to_have_spent_and_done_what_the_one_before_it_had(how: str) -> None:
    """Seed 150892: an interrupt that came at the end of one turn ended the next, with the tools and the usage of the first."""
    bench = Stepping()
    before, usage = ToolRun("pay", "ok"), {"output_tokens": 7}
    bench.prompt("first")
    bench.finish()
    fields: dict[str, Any] = {"end_by": bench.now + 5} if how == "end_by" else {}
    ref = bench.prompt("second", lane="peer-inbox", sender="boss", origin="1.9.0", tag="t", **fields)
    turn = bench.running().number - 1
    match how:
        case "interrupt":
            bench.feed(Interrupt("i", None, usage, (before,), (), turn))
        case "cancel":
            bench.feed(Cancel(ref, "c", True, usage, turn))
        case "end_by":
            bench.now += 6
            bench.feed(Tick(usage, turn))
        case _:
            bench.feed(Arrived((withdraw(bench, "1.9.0", deliver=False),), usage, turn))
    outcome = bench.outcomes[ref]
    assert not outcome.ok and outcome.usage is None and outcome.tools == {} and bench.core.ledger.kept == {}
