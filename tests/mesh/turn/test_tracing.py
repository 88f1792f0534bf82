"""Which trace a turn and an event belong to, and what records tell of their spans: cases 560 to 571."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Defer, Halt, Idle, Prompt, Skip
from agentmesh.backend import Response
from agentmesh.ledger import fold
from agentmesh.records import Bury, Handled, Inner, SendMail, SetTimer, Traced, decode_record
from agentmesh.trace.context import (
    MAX_AGE_S,
    MAX_DEPTH,
    TraceContext,
    attempt_span_id,
    context_in,
    next_trace_id,
    process_span_id,
    trace_id_of,
)
from agentmesh.trace.derived import traced_of
from agentmesh.turn.tracing import MAX_CAUSES, MAX_INNER, began_of
from agentmesh.turn.values import AskTimer, GaveUp, Interrupt, Tick, TurnAttempt, Watchdog
from agentmesh.wire import ErrorBody, PromptBody
from mesh.turn.harness import Plain
from mesh.turn.span_books import check_spans
from mesh.turn.stepping import Stepping
from mesh.turn.test_poison import Rig as Mortal

TRACE, SENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = {"traceparent": f"00-{TRACE}-{SENT}-01"}
STORED = "1970-01-01T00:16:00.5Z"


class Asks(Plain):
    """Asks `peer` in each turn, and tells it of each event; the answer `chain` chains, an event that begins with `go` prompts."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        self.tell("peer", response.text, tag="t")
        return Prompt("more", state) if response.text == "chain" else Idle(state)

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        return Prompt("again", state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        match event:
            case "raise":
                raise ValueError("no")
            case ["timer", every]:
                self.notify_after(60, "tick", id="t", every=every)
            case str() if event.startswith("go"):
                return Prompt(event, state)
            case _:
                self.notify("peer", "seen")
        return Idle(state)


class Bench(Stepping, Mortal):
    """One whose nodes die."""

    def attempt(self) -> TurnAttempt:
        """What the running turn was told of its attempt."""
        found = self.running().attempt
        assert found is not None
        return found


def rig(cls: type[Plain] = Asks, **config: Any) -> Bench:
    return Bench(cls, traced=True, **config)


def told(bench: Bench) -> Traced:
    """What the newest turn of the history tells."""
    ledger = bench.core.ledger
    found = traced_of("coder", ledger.incarnation, ledger.history[-1])
    assert found is not None
    return found


def handled(bench: Bench) -> list[Handled]:
    return [one for record in bench.written for one in record.handled]


def attempted(bench: Bench) -> list[tuple[str, str | None, Traced]]:
    """Of attempts without an entry in the history: the kind of their record, their error, their spans."""
    found: list[tuple[str, str | None, Traced]] = []
    for record in bench.written:
        if (attempt := record.attempt) is not None:
            assert attempt.trace is not None
            found.append((record.kind, attempt.error.code if attempt.error is not None else None, attempt.trace))
    return found


def causes(bench: Bench) -> int:
    return len(bench.core.ledger.causes)


def context_of(effect: SendMail | SetTimer) -> TraceContext:
    found = context_in(effect.trace)
    assert found is not None
    return found


def sent(bench: Bench) -> list[TraceContext]:
    return [context_of(effect) for effect in bench.effects(SendMail) if effect.outcome is None]


# --- one trace --------------------------------------------------------------------------------------------------------
@pytest.mark.case(560)
def test_a_turn_goes_on_in_the_trace_of_its_message() -> None:
    bench = rig()
    ref = bench.prompt("p", trace={**FROM_CLIENT, "tracestate": "a=1,mesh=3-990", "baggage": "user=7"}, stored=STORED)
    context = bench.attempt().context
    assert context == TraceContext(TRACE, context.span_id, True, 4, 990.0, "a=1", "user=7"), "it is one turn further"
    bench.finish("done")
    trace = told(bench)
    process = process_span_id("coder", "life-1", "inbox", ref)
    assert (trace.trace, trace.span, trace.parent, trace.process, trace.above) == (TRACE, context.span_id, process, process, SENT)
    assert (trace.lane, trace.stored, trace.links, trace.sampled) == ("inbox", 960.5, (), True)
    assert [(c.trace_id, c.span_id, c.depth) for c in sent(bench)] == [(TRACE, context.span_id, 4)]


@pytest.mark.case(560)
def test_where_nobody_sent_a_context_every_owner_derives_the_same() -> None:
    bench = rig()
    ref = bench.prompt("p", stored=STORED, root="boss/9", trace={"baggage": "user=7"})
    first = bench.attempt()
    assert first.context.trace_id == trace_id_of("boss/9", "coder", "life-1", ref, STORED)
    assert (first.context.depth, first.context.began, first.context.baggage) == (1, 960.5, "user=7")
    bench.now += 7
    bench.kill()
    second = bench.attempt()
    assert second.context.trace_id == first.context.trace_id
    assert second.context.span_id != first.context.span_id, "another owner makes another attempt"
    assert (second.spans.parent, second.spans.process) == (first.spans.parent, first.spans.process)
    bench.finish("done")
    assert told(bench).above == "", "nothing stands above the message"


@pytest.mark.case(560)
def test_whether_a_trace_is_sampled_follows_from_its_id_and_a_senders_word_holds() -> None:
    none, every = rig(trace_ratio=0.0), rig(trace_ratio=1.0)
    for bench, sampled in ((none, False), (every, True)):
        bench.prompt("p")
        assert bench.attempt().context.sampled is sampled
        bench.finish("done")
        assert told(bench).sampled is sampled and sent(bench)[0].sampled is sampled
    none.prompt("p", trace=FROM_CLIENT)
    assert none.attempt().context.sampled


@pytest.mark.case(561)
@pytest.mark.parametrize("parent", ["", "00-x", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SENT}-01"])
def test_a_malformed_context_costs_no_turn(parent: str) -> None:
    bench = rig()
    ref = bench.prompt("p", trace={"traceparent": parent, "tracestate": "mesh=99-1"})
    bench.finish("done")
    assert bench.answer(ref) == "done"
    assert told(bench).trace == trace_id_of(None, "coder", "life-1", ref, None) and told(bench).above == ""


@pytest.mark.case(561)
def test_flags_of_the_future_are_passed_over() -> None:
    bench = rig()
    bench.prompt("p", trace={"traceparent": f"00-{TRACE}-{SENT}-fb"})
    assert bench.attempt().context.sampled and bench.attempt().context.trace_id == TRACE


# --- how long it goes on ----------------------------------------------------------------------------------------------
class Endless(Plain):
    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        return Prompt("more", state)


@pytest.mark.case(562)
def test_a_trace_has_a_hundred_turns_one_behind_the_other_and_the_next_one_is_linked() -> None:
    bench = rig(Endless)
    bench.prompt("p", trace=FROM_CLIENT)
    spans = []
    for _ in range(MAX_DEPTH):
        bench.finish("x")
        spans.append(told(bench))
    assert {span.trace for span in spans} == {TRACE}
    assert [span.parent for span in spans[1:]] == [span.span for span in spans[:-1]], "each stands below what made it"
    bench.finish("x")
    new, last = told(bench), spans[-1]
    assert new.trace == next_trace_id(TraceContext(TRACE, last.span)) and (new.parent, new.process) == ("", "")
    assert new.links == (f"{TRACE}-{last.span}",), "one link, though it is the turn before as well as the cause"
    bench.kill()
    assert bench.attempt().context.depth == 2


@pytest.mark.case(562)
def test_a_message_from_a_trace_that_is_full_begins_another_one() -> None:
    bench = rig()
    full = {**FROM_CLIENT, "tracestate": f"mesh={MAX_DEPTH}-990"}
    bench.prompt("p", trace=full, stored=STORED)
    bench.finish("x")
    trace = told(bench)
    assert trace.trace == next_trace_id(TraceContext(TRACE, SENT)) and (trace.above, trace.links) == ("", (f"{TRACE}-{SENT}",))
    assert (sent(bench)[0].depth, sent(bench)[0].began) == (1, 960.0)
    mail = bench.event("e", trace=full)
    (span,) = handled(bench)
    assert (span.seq, span.trace, span.parent, span.links) == (mail.seq, trace.trace, "", (f"{TRACE}-{SENT}",))


@pytest.mark.case(563)
@pytest.mark.parametrize(("later", "depth"), [(MAX_AGE_S - 10, 2), (MAX_AGE_S + 10, MAX_DEPTH)])
def test_whether_an_hour_is_over_is_decided_where_a_context_is_handed_on(later: float, depth: int) -> None:
    bench = rig()
    bench.prompt("p", trace={**FROM_CLIENT, "tracestate": "mesh=1-1000"})
    bench.now = 1000.0 + later
    bench.ask("w", "peer")
    bench.finish("chain")
    assert [c.depth for c in sent(bench)] == [depth, depth], "what is asked in mid-turn and what the decision tells"
    assert (bench.attempt().context.trace_id == TRACE) is (depth == 2), "a chained prompt, too"


@pytest.mark.case(563)
def test_who_receives_an_old_context_goes_by_its_depth_alone() -> None:
    bench = rig()
    bench.now = 10.0 + 5 * MAX_AGE_S
    bench.prompt("p", trace={**FROM_CLIENT, "tracestate": "mesh=4-10"})
    assert bench.attempt().context.trace_id == TRACE


@pytest.mark.case(564)
def test_what_an_event_makes_stands_below_its_own_span() -> None:
    bench = rig()
    mail = bench.event({"n": 1}, trace=FROM_CLIENT, stored=STORED, lane="peer-notify", sender="peer", origin="1.5.0")
    (span,) = handled(bench)
    own = process_span_id("coder", "life-1", "peer-notify", mail.ref)
    assert (span.span, span.trace, span.parent, span.sender, span.stored) == (own, TRACE, SENT, "peer", 960.5)
    assert (span.began, span.ended, span.error) == (1000.0, 1000.0, "")
    assert [(c.trace_id, c.span_id, c.depth) for c in sent(bench)] == [(TRACE, own, 1)]
    bench.event("go on", trace=FROM_CLIENT)
    bench.finish("done")
    last = handled(bench)[-1]
    assert (told(bench).trace, told(bench).parent, told(bench).process) == (TRACE, last.span, "")
    bench.event("raise")
    assert handled(bench)[-1].error == "task_crashed"


@pytest.mark.case(564)
def test_a_timer_that_fires_once_goes_on_in_the_trace_that_set_it() -> None:
    bench = rig()
    bench.event(["timer", None], trace=FROM_CLIENT)
    (setter,) = handled(bench)
    (effect,) = bench.effects(SetTimer)
    assert (context_of(effect).trace_id, context_of(effect).span_id) == (TRACE, setter.span)
    tick(bench, effect)
    span = handled(bench)[-1]
    assert (span.lane, span.timer, span.trace, span.parent, span.links) == ("due", "t", TRACE, setter.span, ())


@pytest.mark.case(564)
def test_each_tick_of_a_timer_that_repeats_begins_a_trace_linked_to_the_one_before() -> None:
    bench = rig()
    bench.event(["timer", 60], trace=FROM_CLIENT)
    traces, above = {TRACE}, handled(bench)[-1]
    for _ in range(3):
        bench.now += 60
        effect = bench.effects(SetTimer)[-1]
        tick(bench, effect)
        span = handled(bench)[-1]
        assert span.trace not in traces and span.parent == "" and span.links == (f"{above.trace}-{above.span}",)
        traces.add(span.trace)
        above = span
        assert context_of(bench.effects(SetTimer)[-1]).span_id == span.span


def tick(bench: Bench, effect: SetTimer) -> None:
    """The server delivers a tick, with the headers of its schedule."""
    origin = bench.core.ledger.timers[effect.id].origin
    bench.event(None, "due", origin=origin, schedule=f"mesh.timer.coder.{effect.id}", trace=effect.trace)


@pytest.mark.case(564)
def test_a_timer_that_a_client_sets_goes_on_in_the_clients_trace() -> None:
    bench = rig()
    bench.feed(AskTimer(SetTimer(id="t", due=1060.0, event="e", trace=FROM_CLIENT), "x"))
    (effect,) = bench.effects(SetTimer)
    tick(bench, effect)
    assert (handled(bench)[-1].trace, handled(bench)[-1].parent) == (TRACE, SENT)
    bench.feed(AskTimer(SetTimer(id="u", due=1060.0, event="e", trace={"traceparent": "x" * 5000}), "y"))
    assert bench.effects(SetTimer)[-1].trace == {}, "what strangers write does not get into the journal"


# --- links ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(565)
def test_a_fan_in_links_to_all_its_causes_but_its_parent() -> None:
    bench = rig()
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("x")
    for number, trace in enumerate((FROM_CLIENT, FROM_CLIENT, {})):
        bench.event(["answer", number], trace=trace)
    bench.kill()
    bench.event("go", trace=FROM_CLIENT)
    events = handled(bench)
    assert len(events) == 4
    bench.finish("done")
    assert told(bench).parent == events[-1].span
    assert told(bench).links == tuple(f"{c.trace}-{c.span}" for c in events[:-1])
    bench.event("go", trace=FROM_CLIENT)
    bench.finish("done")
    assert told(bench).links == (), "each event causes one prompt"


@pytest.mark.case(565)
def test_what_came_before_a_turn_is_no_cause_of_what_follows_it() -> None:
    bench = rig()
    bench.event(["note"], trace=FROM_CLIENT)
    assert causes(bench) == 1
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("x")
    assert causes(bench) == 0
    for number in range(MAX_CAUSES + 5):
        bench.event(["note", number], trace=FROM_CLIENT)
    assert causes(bench) == MAX_CAUSES


@pytest.mark.case(566)
def test_a_turn_in_another_trace_than_the_turn_before_links_to_that() -> None:
    bench = rig()
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("x")
    first = told(bench)
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("x")
    second = told(bench)
    assert (first.links, second.links) == ((), ())
    bench.prompt("p")
    bench.finish("x")
    assert told(bench).links == (f"{TRACE}-{second.span}",)


# --- attempts ---------------------------------------------------------------------------------------------------------
class Crashing(Asks):
    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text == "crash":
            raise ValueError("no")
        return Idle(state)


@pytest.mark.case(567)
def test_an_attempt_is_named_by_its_owner_and_what_is_charged_to_its_input() -> None:
    bench = rig(Crashing)
    ref = bench.prompt("p", trace=FROM_CLIENT)
    name = f"coder.life-1.1.1.inbox:{ref}"
    bench.finish("crash", inner=(inner("c1"),))
    ((kind, error, crashed),) = attempted(bench)
    process = process_span_id("coder", "life-1", "inbox", ref)
    assert (kind, error, crashed.process, crashed.parent) == ("crashed", "task_crashed", "", process)
    assert crashed.span == attempt_span_id(name, 1, "b1", 0, 0) and crashed.inner == (inner("c1"),)
    bench.kill()
    fact = began_of(bench.core)
    assert fact is not None and (fact.span, fact.crashes, fact.input) == (
        attempt_span_id(name, 2, "b2", 1, 0),
        1,
        f"inbox:{ref}",
    )
    assert (fact.trace, fact.parent, fact.agent, fact.service, fact.generation, fact.boot) == (
        *(TRACE, crashed.parent, "coder", "Coder"),
        *(2, "b2"),
    )
    bench.fail()
    failed = told(bench)
    assert (failed.span, failed.crashes, failed.retries, failed.process) == (fact.span, 1, 0, fact.parent)
    bench.finish("fine")
    retried = told(bench)
    assert (retried.retries, retried.parent, retried.process) == (1, failed.parent, ""), "it stands below the same message"
    assert retried.span == attempt_span_id(f"coder.life-1.1.2.ref:{ref}", 2, "b2", 0, 1)
    assert began_of(bench.core) is None


def inner(name: str) -> Inner:
    return Inner(id=f"{name:0<16}", op="chat", name="m", began=1.0, ended=2.0)


@pytest.mark.case(567)
def test_a_prompt_that_crashes_the_agent_too_often_ends_its_message() -> None:
    bench = rig(Crashing, max_attempts=2)
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("crash")
    bench.finish("crash")
    assert [trace.process for _, _, trace in attempted(bench)] == [""]
    assert told(bench).process and told(bench).span and told(bench).crashes == 1


class Refusing(Asks):
    def pre_turn(self, prompt: str, state: list[Any]) -> Any:
        return Skip(state)


@pytest.mark.case(568)
def test_an_attempt_that_no_turn_of_the_history_shows_is_told_with_its_error() -> None:
    bench = rig(Refusing)
    bench.prompt("p", trace=FROM_CLIENT)
    ((kind, error, trace),) = attempted(bench)
    assert (kind, error, trace.above) == ("refused", "pre_turn_skipped", SENT) and trace.process and trace.span
    stopped = rig()
    ref = stopped.prompt("p", trace=FROM_CLIENT)
    stopped.stop()
    ((kind, error, trace),) = attempted(stopped)
    assert (kind, error, trace.process) == ("stopped", "stopped", "")
    assert ref in stopped.outcomes


@pytest.mark.case(568)
@pytest.mark.parametrize("how", ["watchdog", "interrupt"])
def test_a_turn_that_is_ended_from_outside_tells_the_calls_that_it_made(how: str) -> None:
    bench = rig()
    bench.prompt("p", trace=FROM_CLIENT)
    calls = tuple(inner(f"{n:x}") for n in range(MAX_INNER + 6))
    number = bench.running().number
    bench.feed(Watchdog(number, inner=calls) if how == "watchdog" else Interrupt("i", inner=calls))
    (turn, *_) = bench.core.ledger.history
    assert turn.error is not None and turn.trace is not None and turn.trace.inner == calls[-MAX_INNER:]


@pytest.mark.case(569)
def test_a_message_that_ends_without_a_turn_has_a_span_with_its_error_and_a_repetition_has_none() -> None:
    bench = rig()
    late = bench.prompt("p", trace=FROM_CLIENT, deadline=900.0)
    bad = bench.post("inbox", trace=FROM_CLIENT, problem="no JSON")
    other = bench.post("inbox", prompt=PromptBody(prompt="p"), trace=FROM_CLIENT, for_life="gone")
    bench.feed_backlog()
    first = bench.prompt("p", trace=FROM_CLIENT, msg_id="m")
    waiting = bench.prompt("p", trace=FROM_CLIENT)
    expiring = bench.prompt("p", trace=FROM_CLIENT, deadline=1100.0)
    bench.prompt("p", trace=FROM_CLIENT, repeats=first)
    bench.event("e", trace=FROM_CLIENT, deadline=900.0)
    bench.cancel(waiting)
    bench.now = 1200.0
    bench.feed(Tick())
    bench.finish("x")
    found = {span.seq: span for span in handled(bench)}
    assert {str(seq): span.error for seq, span in found.items()} == {
        late: "expired",
        bad.ref: "bad_request",
        other.ref: "stopped",
        waiting: "cancelled",
        expiring: "expired",
        str(bench.seq): "expired",
    }
    assert {(span.trace, span.parent, span.began) for span in found.values()} == {(TRACE, SENT, 0.0)}
    assert found[int(waiting)].span == process_span_id("coder", "life-1", "inbox", waiting)


@pytest.mark.case(569)
def test_what_killed_its_owners_before_this_one_ends_its_message_without_an_attempt() -> None:
    bench = rig(max_takeovers=3)
    ref = bench.prompt("p", trace=FROM_CLIENT)
    for _ in range(9):
        if ref in bench.outcomes:
            break
        bench.die()
    trace = told(bench)
    assert (trace.span, trace.process, trace.above, trace.trace) == (
        "",
        process_span_id("coder", "life-1", "inbox", ref),
        SENT,
        TRACE,
    )


@pytest.mark.case(573)
def test_what_is_made_of_a_dead_letter_goes_on_below_the_span_of_its_message() -> None:
    bench = rig()
    bad = bench.post("inbox", problem="no JSON", stored=STORED)
    bench.feed_backlog()
    event = bench.event(None, trace=FROM_CLIENT, problem="no JSON")
    buried = {effect.seq: context_in(effect.trace) for effect in bench.effects(Bury)}
    spans = {span.seq: (span.trace, span.span) for span in handled(bench)}
    assert {seq: context and (context.trace_id, context.span_id) for seq, context in buried.items()} == spans
    assert spans[bad.seq][0] == trace_id_of(None, "coder", "life-1", bad.ref, STORED) and spans[event.seq][0] == TRACE
    crashing = rig(Crashing, max_attempts=1)
    ref = crashing.prompt("p")
    crashing.finish("crash")
    (context,) = [context_in(effect.trace) for effect in crashing.effects(Bury)]
    assert context is not None
    assert (context.trace_id, context.span_id) == (told(crashing).trace, told(crashing).process)
    again = crashing.prompt("p", trace=context.headers())
    crashing.finish("x")
    assert (told(crashing).trace, told(crashing).above) == (context.trace_id, context.span_id) and again != ref


# --- ids that nobody asks for -----------------------------------------------------------------------------------------
@pytest.mark.case(610)
def test_a_plain_turns_record_has_no_ids_and_they_follow_from_it() -> None:
    bench = rig(Plain)
    for number in range(4):
        ref = bench.prompt("p", stored=STORED if number != 1 else None)
        if number == 2:
            bench.kill()  # its owner is another one than that of the turn before
        bench.finish("done")
        info = bench.core.ledger.history[-1]
        assert info.trace is None and info.derived is not None and info.ref == ref
        found = told(bench)
        assert found.trace == trace_id_of(None, "coder", "life-1", ref, STORED if number != 1 else None)
        assert found.process == found.parent == process_span_id("coder", "life-1", "inbox", ref)
        assert (found.lane, found.stored, found.above) == ("inbox", 960.5 if number != 1 else 0.0, "")
    check_spans(bench)
    first, *later = [traced_of("coder", "life-1", info) for info in bench.core.ledger.history]
    assert first is not None and first.links == ()
    for trace in later:
        assert trace is not None and trace.links == (f"{first.trace}-{first.span}",), "the turn before"
        first = trace


@pytest.mark.case(610)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_whether_a_plain_turn_is_sampled_follows_from_its_id(ratio: float) -> None:
    bench = rig(Plain, trace_ratio=ratio)
    for _ in range(20):
        bench.prompt("p", stored=STORED)
        bench.finish("done")
    check_spans(bench)
    found = [traced_of("coder", "life-1", info) for info in bench.core.ledger.history]
    assert {trace.sampled for trace in found if trace is not None} == ({True, False} if ratio < 1 else {True})


@pytest.mark.case(610)
def test_a_turn_whose_ids_somebody_has_asked_for_tells_them() -> None:
    bench = rig(Plain)
    bench.prompt("p", stored=STORED)
    asked = bench.attempt().context
    bench.finish("done")
    trace = bench.core.ledger.history[-1].trace
    assert trace is not None and (trace.trace, trace.span) == (asked.trace_id, asked.span_id)
    bench.prompt("p", stored=STORED)
    bench.finish("done")
    assert bench.core.ledger.history[-1].trace is None
    assert told(bench).links == (asked.link,), "a plain turn behind it links to it"
    bench.prompt("p", trace=FROM_CLIENT)
    before = told(bench)
    bench.finish("done")
    assert told(bench).links == (f"{before.trace}-{before.span}",), "and one with a context to that"
    assert before.links == (asked.link,)


# --- steps ------------------------------------------------------------------------------------------------------------
def test_the_books_of_attempts_notice_one_that_is_told_twice_or_never() -> None:
    bench = rig(Crashing)
    bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("crash")
    bench.finish("x")
    check_spans(bench)
    bench.begun["another"] = next(iter(bench.begun.values()))
    with pytest.raises(AssertionError, match="neither told nor lost"):
        check_spans(bench)
    del bench.begun["another"]
    bench.written.append(bench.written[-1])
    with pytest.raises(AssertionError, match="twice"):
        check_spans(bench)


@pytest.mark.case(570)
def test_steps_bear_who_took_them_and_when_also_in_snapshots_and_behind_a_takeover() -> None:
    bench = rig(snapshot_records=2)
    bench.prompt("p", trace=FROM_CLIENT)
    first = bench.attempt().context
    bench.now = 1002.0
    bench.take(1)
    call = inner("aa")
    bench.take(2, call)
    bench.now = 1005.0
    bench.kill()
    second = bench.attempt().context
    bench.take(3)
    one, two, three = bench.core.ledger.steps.values()
    assert (one.began, one.ended, one.generation, one.boot, one.attempt) == (1000.0, 1002.0, 1, "b1", first.span_id)
    assert (two.began, two.ended, two.inner) == (1.0, 2.0, call)
    assert (three.generation, three.boot, three.attempt) == (2, "b2", second.span_id)
    folded, _ = fold([(seq, decode_record(body)) for seq, body in bench.journal])
    assert folded is not None and folded.steps == bench.core.ledger.steps
    turning = bench.core.ledger.turning
    assert turning is not None and turning.traced is not None and turning.traced.span == first.span_id
    bench.ask("w")
    wait = bench.wait("w")
    assert (wait.generation, wait.boot, wait.attempt) == (2, "b2", second.span_id), "as do its questions"
    bench.answer_wait("w")
    assert bench.wait("w").attempt == second.span_id
    bench.finish("done")
    assert told(bench).span == second.span_id and bench.core.ledger.history[-1].started == 1000.0
    assert told(bench).began == 1005.0


# --- what is not traced -----------------------------------------------------------------------------------------------
@pytest.mark.case(571)
def test_without_traces_a_context_is_handed_on_as_it_came_and_records_say_nothing() -> None:
    bench = Bench(Asks)
    given = {"traceparent": "anything", "baggage": "b=1"}
    bench.prompt("p", trace=given)
    assert (bench.running().trace, bench.running().attempt) == (given, None)
    bench.take(1)
    bench.finish("chain")
    assert bench.running().trace == given
    bench.finish("x")
    bench.event(["timer", 60], trace=given)
    bench.event("go", trace=given)
    bench.finish("x")
    text = b"".join(body for _, body in bench.journal)
    assert not any(f'"{word}"'.encode() in text for word in ("handled", "attempt", "causes", "links", "sampled", "traced"))
    assert all(turn.trace is None and turn.derived is None for turn in bench.core.ledger.history)
    assert [effect.trace for effect in bench.effects(SetTimer)] == [{}]
    assert began_of(bench.core) is None


class Restless(Asks):
    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        return Defer(state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        self.notify("peer", "heard")
        return Halt(state)

    def post_run(self, state: list[Any]) -> Any:
        self.notify("peer", "halted")


@pytest.mark.case(564)
def test_what_the_agent_does_about_a_request_that_was_closed_stands_below_that() -> None:
    bench = rig(Restless)
    ref = bench.prompt("p", trace=FROM_CLIENT)
    bench.finish("x")
    bench.cancel(ref)
    process = process_span_id("coder", "life-1", "inbox", ref)
    assert [(c.trace_id, c.span_id) for c in sent(bench)] == [(TRACE, process)] * 2, "post_run of that event, too"


@pytest.mark.case(564)
def test_what_the_agent_does_about_mail_that_came_back_stands_below_what_had_sent_it() -> None:
    bench = rig()
    bench.prompt("p", trace=FROM_CLIENT)
    attempt = bench.attempt().context
    bench.auto_done = False
    bench.finish("x")
    origin = next(o for o, entry in bench.core.ledger.effects.items() if isinstance(entry.effect, SendMail))
    bench.feed(GaveUp(origin, ErrorBody(code="not_found")))
    mails = [e.effect for e in bench.core.ledger.effects.values() if isinstance(e.effect, SendMail)]
    assert [(context_of(m).span_id, context_of(m).depth) for m in mails] == [(attempt.span_id, 2)]
