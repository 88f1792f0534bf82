"""ask, tell, poll and the order of things: cases 13 to 38 as far as the machine decides them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET, Raw

from agentmesh.agent import Halt, Idle, Proceed, Prompt, Skip
from agentmesh.backend import Event, Response
from agentmesh.records import Bury, Resolve, decode_record
from agentmesh.turn import state_of
from agentmesh.turn.values import Arrived, Phase, RunTurn, TurnEnded
from agentmesh.wire import PromptBody
from mesh.turn.agents import log_event
from mesh.turn.harness import Plain, Rig, agent, error


class Chain(Plain):
    """Answers `first` by prompting itself with `second`."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text == "FIRST":
            return Prompt("second", [*state, ref])
        return Idle([*state, ref])


@pytest.mark.case(13)
def test_ask_returns_the_outcome_and_handle_response_sees_the_events() -> None:
    got: list[Response] = []

    def keep(self: Any, ref: str, response: Response, state: Any) -> Any:
        got.append(response)
        return Idle(state)

    bench = Rig(agent(handle_response=keep))
    ref = bench.prompt("hi")
    events = (Event.text("he"), Event.text("llo"), Event.result("hello"))
    bench.finish(response=Response("hello", events, duration_ms=3))
    assert bench.answer(ref) == "hello"
    assert got[0].events == events and got[0].events[-1].terminal


def test_a_turn_tells_the_journal_only_what_it_has_changed() -> None:
    bench = Rig(agent(handle_response=lambda self, ref, response, state: Idle(state)))
    for session in (b'{"turns":1}', b'{"turns":1}', b'{"turns":2}'):
        bench.prompt("a")
        bench.finish(session=Raw(session))
    records = [decode_record(body) for _, body in bench.journal]
    changes = [record.change for record in records if record.kind == "turn"]
    assert [change.state for change in changes] == [UNSET, UNSET, UNSET]
    assert [change.session for change in changes] == [Raw(b'{"turns":1}'), UNSET, Raw(b'{"turns":2}')]
    folded = bench.folded()
    assert folded is not None and (folded.state, folded.session) == (bench.core.ledger.state, Raw(b'{"turns":2}'))


@pytest.mark.case(14)
def test_after_the_turn_the_agent_is_idle() -> None:
    bench = Rig()
    bench.prompt("a")
    assert state_of(bench.core) == "processing"
    bench.finish()
    assert (state_of(bench.core), bench.phase(), bench.core.active) == ("idle", Phase.IDLE, None)


@pytest.mark.case(15)
def test_a_backend_error_reaches_the_asker_and_leaves_the_agent_usable() -> None:
    bench = Rig()
    bad = bench.prompt("a")
    bench.fail("backend_error", "quota")
    good = bench.prompt("b")
    bench.finish()
    assert bench.error(bad) == error("backend_error", "quota")
    assert bench.answer(good) == "B"


@pytest.mark.case(16)
def test_a_second_ask_waits_and_each_gets_its_own_answer() -> None:
    bench = Rig()
    first, second = bench.prompt("a"), bench.prompt("b")
    assert bench.prompts == ["a"]
    bench.drain()
    assert (bench.answer(first), bench.answer(second)) == ("A", "B")
    assert list(bench.outcomes) == [first, second]


@pytest.mark.case(17)
@pytest.mark.case(30)
def test_a_prompt_to_a_halted_agent_waits_until_resume() -> None:
    bench = Rig(agent(handle_response=lambda self, ref, response, state: Halt(state)))
    bench.prompt("a")
    bench.finish()
    ref = bench.prompt("b")
    assert bench.queued == 1 and ref not in bench.outcomes and bench.task is None
    bench.resume()
    bench.finish()
    assert bench.answer(ref) == "B"


@pytest.mark.case(20)
def test_the_asker_is_answered_after_all_callbacks_and_the_record() -> None:
    hooks = ("handle_response", "post_turn", "handle_event")
    bench = Rig(agent(post_turn=lambda self, outcome, ref, state: state, handle_event=log_event), hold=hooks)
    ref = bench.prompt("a")
    bench.event("e")
    bench.auto_commit = False
    bench.finish()
    for hook in hooks:
        assert bench.held[0].hook == hook
        assert ref not in bench.outcomes
        bench.release()
    assert ref not in bench.outcomes, "answered before the record was committed"
    bench.commit()
    assert bench.answer(ref) == "A"


class Fragile(Plain):
    """Raises on `bad` answers, after changing the state that it was given."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        state.append("half done")
        if response.text == "BAD":
            self.tell("peer", "never sent")
            raise RuntimeError("boom")
        return Idle([response.text])


@pytest.mark.case(21)
@pytest.mark.case(209)
def test_a_raising_handle_response_is_tried_again_and_then_set_aside() -> None:
    bench = Rig(Fragile, max_attempts=3)
    bad, good = bench.prompt("bad"), bench.prompt("good")
    for attempt in range(3):
        assert bench.task is not None and bench.task.prompt == "bad", attempt
        assert bad not in bench.outcomes
        bench.finish()
    bench.finish()
    assert bench.code(bad) == "failed"
    assert bench.answer(good) == "GOOD"
    assert bench.state == ["GOOD"], "a callback that raised left a trace"
    assert bench.mails("peer") == []
    assert bench.calls.count("init_agent") == 1
    assert [b.seq for b in bench.effects(Bury)] == [int(bad)]
    assert bench.core.ledger.attempts == {}


@pytest.mark.case(21)
@pytest.mark.parametrize(("returned", "code"), [(None, "bad_return"), ("Idle", "bad_return"), (Idle([object()]), "bad_state")])
def test_a_wrong_return_ends_the_turn_and_keeps_the_state_before_it(returned: Any, code: str) -> None:
    bench = Rig(
        agent(
            pre_turn=lambda self, prompt, state: Proceed(prompt, ["touched"]),
            handle_response=lambda self, ref, response, state: returned if response.text == "BAD" else Idle([*state, "ok"]),
        )
    )
    bad = bench.prompt("bad")
    bench.finish()
    assert bench.code(bad) == code
    assert bench.state == []
    good = bench.prompt("good")
    bench.finish()
    assert bench.outcomes[good].ok and bench.state == ["touched", "ok"]
    assert bench.backoffs == [], "it was treated as a crash"


@pytest.mark.case(22)
@pytest.mark.case(29)
def test_the_outcome_of_each_request_is_stored() -> None:
    bench = Rig()
    asked = bench.prompt("a", reply_to="_INBOX.1")
    told = bench.prompt("b")
    bench.drain()
    assert set(bench.outcomes) == {asked, told}
    assert [e.reply_to for e in bench.effects(Resolve)] == ["_INBOX.1", None]


@pytest.mark.case(25)
def test_a_failed_tell_keeps_its_reason() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    bench.fail("task_crashed", "KeyError: 'x'")
    assert bench.error(ref) == error("task_crashed", "KeyError: 'x'")


@pytest.mark.case(28)
@pytest.mark.parametrize(("decision", "code"), [(Skip, "pre_turn_skipped"), (Halt, "pre_turn_halted")])
def test_a_tell_that_pre_turn_refuses_can_be_polled(decision: Any, code: str) -> None:
    bench = Rig(agent(pre_turn=lambda self, prompt, state: decision(state)))
    assert bench.code(bench.prompt("a")) == code


# --- the queue ----------------------------------------------------------------------------------------------------
@pytest.mark.case(31)
@pytest.mark.case(33)
@pytest.mark.case(34)
def test_a_chained_turn_has_a_ref_of_its_own_and_answers_nobody() -> None:
    bench = Rig(Chain)
    ref = bench.prompt("first")
    bench.drain()
    assert bench.prompts == ["first", "second"]
    chained = bench.turns[1].request.ref
    assert chained != ref and not chained.isdigit(), "it could be mistaken for a message"
    assert bench.answer(ref) == "FIRST"
    assert set(bench.outcomes) == {ref}
    assert bench.state == [ref, chained]


@pytest.mark.case(32)
def test_a_chained_prompt_runs_before_a_queued_one() -> None:
    bench = Rig(Chain)
    bench.prompt("first")
    bench.prompt("told")
    bench.drain()
    assert bench.prompts == ["first", "second", "told"]


@pytest.mark.case(35)
def test_queued_prompts_run_first_in_first_out_whatever_their_origin() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Prompt(event, state)))
    bench.prompt("running")
    bench.prompt("ask", reply_to="_INBOX.1")
    bench.prompt("peer", lane="peer-inbox", sender="p", origin="1.1.0")
    bench.event("born of an event")
    bench.finish()  # the event is handled now: behind all mail that has arrived
    bench.prompt("late")
    bench.drain()
    assert bench.prompts == ["running", "ask", "peer", "born of an event", "late"]


@pytest.mark.case(35)
def test_a_batch_is_run_in_stream_order_over_its_lanes() -> None:
    bench = Rig()
    mails = [bench.post("inbox" if n % 2 else "peer-inbox", prompt=PromptBody(prompt=str(n))) for n in range(4)]
    bench.feed(Arrived((mails[1], mails[3], mails[0], mails[2])))
    bench.drain()
    assert bench.prompts == ["0", "1", "2", "3"]


@pytest.mark.case(36)
def test_the_next_item_is_chosen_before_mail_that_arrives_with_the_commit() -> None:
    bench = Rig(Chain)
    bench.prompt("first")
    bench.auto_commit = False
    bench.finish()
    bench.prompt("arrives while the record is under way")
    bench.auto_commit = True
    bench.commit()
    assert bench.running().prompt == "second"


@pytest.mark.case(37)
def test_every_prompt_that_waits_emits_the_new_depth() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Prompt(event, state)))
    bench.prompt("runs at once")
    assert bench.facts("mailbox_queued") == []
    bench.prompt("a")
    bench.feed(Arrived((bench.post("inbox", prompt=PromptBody(prompt="b")), bench.post("inbox", prompt=PromptBody(prompt="c")))))
    assert bench.facts("mailbox_queued") == [{"depth": 1}, {"depth": 2}, {"depth": 3}]
    bench.event("d")
    bench.finish()
    assert bench.facts("mailbox_queued")[-1] == {"depth": 4}


@pytest.mark.case(38)
def test_one_prompt_task_at_a_time() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Prompt(event, state)))
    for n in range(5):
        bench.prompt(str(n))
        bench.event(str(n))
    bench.drain()  # the bench fails at a second task
    assert len(bench.prompts) == 10


@pytest.mark.case(73)
def test_the_late_end_of_a_killed_turn_is_dropped() -> None:
    bench = Rig()
    killed = bench.prompt("a")
    late: RunTurn = bench.running()
    bench.interrupt()
    bench.feed(TurnEnded(turn=late.number, response=Response("late")))
    assert bench.code(killed) == "interrupted"
    following = bench.prompt("b")
    bench.feed(TurnEnded(turn=late.number, response=Response("late")))
    assert following not in bench.outcomes and bench.task is not None
    bench.finish()
    assert bench.answer(following) == "B"
    assert bench.state == ["B"]
