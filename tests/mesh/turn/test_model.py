"""The turn machine against a model of GenAgent, under random inputs and deaths of its owner at any moment.

`Mesh` steps both and compares them after every step. `test_any_interleaving` lets callbacks, commits and acknowledgements take
their time, too, where a simple model cannot say what must come next; it checks what must hold at the end. In both, the bench
watches after every step that the machine raises nothing, leaves its input alone, runs one prompt task at most, gives no request
two different outcomes, keeps to its tables, and that the journal folds to what the owner holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentmesh.agent import Undelivered
from agentmesh.control_values import Adjustment
from agentmesh.records import SendMail
from agentmesh.registry_values import Restart
from agentmesh.turn import interruption
from agentmesh.turn.step_values import Circled
from agentmesh.turn.values import BackoffOver, Command, Configure, Core, GaveUp, Phase, Reply, Tick
from agentmesh.wire import ErrorBody
from mesh.turn.genagent import ERROR, MAX_ATTEMPTS, PRE, RESPONSE, Model, Scripted
from mesh.turn.harness import error, table_is_kept
from mesh.turn.span_books import check_spans
from mesh.turn.stepping import Stepping
from mesh.turn.withdrawing import withdraw

EXAMPLES, STEPS = 250, 50
"""At least 10,000 steps in all."""
PATIENT = Restart(max=10**6)
SCRIPTS = st.builds(
    lambda pre, response, wrong: pre + response + wrong,
    st.sampled_from("pppp" + PRE),
    st.sampled_from("ii" + RESPONSE),
    st.sampled_from(ERROR),
)


class Mesh(RuleBasedStateMachine):
    """Prompts, events, completions, failures, interrupts, halts, resumes, crashes, cancels, deadlines, stops, takeovers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table_is_kept()
        self.table.__enter__()
        self.bench = Stepping(Scripted, max_attempts=MAX_ATTEMPTS, restart=PATIENT, snapshot_records=5, traced=True)
        self.model = Model()
        self.ids = 0
        self.refs: list[str] = []

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.table.__exit__(None, None, None)

    def number(self) -> int:
        self.ids += 1
        return self.ids

    # --- rules ------------------------------------------------------------------------------------------------------
    @rule(script=SCRIPTS, patience=st.none() | st.integers(1, 30))
    def prompt(self, script: str, patience: int | None) -> None:
        text = f"{script}:{self.number()}"
        deadline = None if patience is None else self.bench.now + patience
        ref = self.bench.prompt(text, deadline=deadline)
        self.refs.append(ref)
        self.model.prompt(ref, text, self.bench.now, deadline)

    @rule(do=st.sampled_from(["note", "note", "prompt", "halt", "raise", "reply"]), script=SCRIPTS, data=st.data())
    def event(self, do: str, script: str, data: st.DataObject) -> None:
        number = self.number()
        event: dict[str, Any] = {"do": do, "n": number, "text": f"{script}:e{number}"}
        if do == "reply":
            event["ref"] = data.draw(st.sampled_from([*self.model.deferred, *self.refs[-2:], "none"]))
        self.bench.event(event)
        self.model.event(event, self.bench.now)

    @precondition(lambda self: self.model.current is not None)
    @rule()
    def finish(self) -> None:
        self.bench.finish(self.bench.running().prompt)
        self.model.finish(self.bench.now)

    @precondition(lambda self: self.model.current is not None)
    @rule(code=st.sampled_from(["backend_error", "no_terminal_event", "task_crashed", "timeout"]))
    def fail(self, code: str) -> None:
        if code == "timeout":
            self.bench.watchdog()
        else:
            self.bench.fail(code)
        self.model.fail(code, self.bench.now)

    @precondition(lambda self: self.model.current is not None)
    @rule()
    def take(self) -> None:
        """A step changes nothing that others see; the bench watches that the turn keeps it."""
        self.bench.take(self.number())

    @rule()
    def interrupt(self) -> None:
        running = self.model.current is not None
        assert self.bench.interrupt(f"i{self.number()}") == {"interrupted": running}
        if running:
            self.model.fail("interrupted", self.bench.now)

    @rule()
    def resume(self) -> None:
        assert self.bench.resume(f"r{self.number()}") == {"resumed": self.model.resume(self.bench.now)}

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [item.ref for item in (self.model.chain, *self.model.mailbox) if item is not None]
        ref = data.draw(st.sampled_from([*waiting, *self.refs[-2:], "none"]))
        assert self.bench.cancel(ref, f"c{self.number()}") == {"cancelled": self.model.cancel(ref, self.bench.now)}

    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        """Somebody answers in the agent's place."""
        ref, token = data.draw(st.sampled_from([*self.model.deferred, *self.refs[-2:], "none"])), f"y{self.number()}"
        self.bench.feed(Reply(ref=ref, text=token, token=token))
        assert self.bench.answers[token] == {"replied": self.model.close(ref, token, "replied", self.bench.now)}

    @rule(model=st.integers(1, 3))
    def set_options(self, model: int) -> None:
        """What others see of the agent stays as it is."""
        change = Adjustment(backend_options={"model": model})
        self.bench.feed(Configure(id=f"s{self.number()}", change=change, token=f"s{self.number()}"))

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.bench.tick(self.bench.now + seconds)
        self.model.expire(self.bench.now)

    @rule()
    def take_over(self) -> None:
        self.bench.kill()
        self.model.taken_over(self.bench.now)

    @rule(sure=st.integers(0, 9))
    def stop(self, sure: int) -> None:
        if sure:
            return  # a life is worth living
        self.bench.stop()
        assert self.bench.phase() is Phase.OVER
        self.model.stop()
        assert self.outcomes() == self.model.outcomes
        self.bench.new_life()
        self.model = Model(outcomes=self.model.outcomes, post_runs=self.model.post_runs)

    # --- what must hold -----------------------------------------------------------------------------------------------
    def outcomes(self) -> dict[str, str]:
        return {ref: (o.text or "") if o.ok else f"!{o.error.code if o.error else ''}" for ref, o in self.bench.outcomes.items()}

    @invariant()
    def the_state_is_the_models(self) -> None:
        assert self.bench.state == self.model.log
        assert self.bench.halted() == self.model.halted

    @invariant()
    def the_same_prompt_runs(self) -> None:
        task, current = self.bench.task, self.model.current
        assert (task and (task.request.ref, task.prompt)) == (current and (current.ref, current.text))

    @invariant()
    def the_same_prompts_wait(self) -> None:
        core, model = self.bench.core, self.model
        assert (core.work.next.ref if core.work.next else None) == (model.chain.ref if model.chain else None)
        mail = [(2 * m.seq, m.ref) for m in core.prompts]
        queue: list[tuple[int, str]] = []
        for item in core.work.queue:  # a queue is in order, whatever the places say
            queue.append((max(2 * item.place + 1, queue[-1][0] if queue else 0), item.ref))
        assert [ref for _, ref in sorted([*mail, *queue], key=lambda pair: pair[0])] == [i.ref for i in model.mailbox]

    @invariant()
    def the_same_callers_were_answered(self) -> None:
        assert self.outcomes() == self.model.outcomes

    @invariant()
    def post_run_ran_once_for_each_halt(self) -> None:
        assert sum(m.event == "post_run" for m in self.bench.mails("monitor")) == self.model.post_runs

    def settle(self) -> None:
        """In the end nobody is left waiting."""
        self.bench.stop()
        assert set(self.bench.outcomes) == set(self.refs)
        self.bench.rested()
        check_spans(self.bench)


Mesh.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestMesh = pytest.mark.slow(Mesh.TestCase)


# --- with everything slow ---------------------------------------------------------------------------------------------
ALL_HOOKS = (
    "init_agent",
    "start_session",
    "resume_session",
    "change_options",
    "pre_turn",
    "handle_response",
    "handle_error",
    "post_turn",
    "post_run",
    "handle_event",
)


class Walk:
    """One random interleaving: each callback, commit, restart and acknowledgement is a step of its own."""

    def __init__(self, draw: Any, snapshot_records: int, traced: bool) -> None:
        self.draw = draw
        self.bench = Stepping(
            Scripted,
            hold=ALL_HOOKS,
            start=False,
            max_attempts=MAX_ATTEMPTS,
            restart=PATIENT,
            snapshot_records=snapshot_records,
            traced=traced,
        )
        self.bench.auto_commit = self.bench.auto_done = self.bench.auto_restart = False
        self.bench.activate()
        self.refs: list[str] = []
        self.events: list[int] = []
        self.raised: set[int] = set()
        self.given_up = Counter[str]()
        self.cut: Counter[str | int] = Counter()
        """Callbacks that were interrupted: `handle_event` with an event by its number or with a notice, and `post_run`."""
        self.drafted: Counter[str | int] = Counter()
        """Those of them that no record shows yet."""
        self.doubtful: Counter[str | int] = Counter()
        """Those whose owner died before a record certainly showed them: the next one may have called them again."""
        self.asked: set[str] = set()
        self.origin = 0
        self.ids = 0
        self.withdrawn: dict[str, int | None] = {}
        """By the origins of requests that their sender has withdrawn: how many turns had begun when the owner heard of that."""

    def actions(self) -> dict[str, int]:
        """What can happen now, and how often it should."""
        bench = self.bench
        now = {"prompt": 3, "event": 3, "cancel": 1, "wait": 1, "resume": 1, "interrupt": 2, "kill": 1, "repeat": 1, "reply": 1}
        now["set_options"] = 2
        if bench.held:
            now["release"] = 12
        if bench.appending is not None:
            now["commit"] = 10
        if bench.undone:
            now |= {"effects": 2, "give_up": 1}
        if bench.task is not None:
            now |= {"finish": 6, "fail": 2, "take": 4, "ask": 3, "circle": 1}
        if self.requests():
            now["answer"] = 3
        if self.origin:
            now["withdraw"] = 2
        if bench.phase() is Phase.RESTARTING:
            now["restart"] = 5
        return now

    def step(self) -> None:
        self.ids += 1
        weighted = [name for name, weight in self.actions().items() for _ in range(weight)]
        getattr(self, self.draw(st.sampled_from(weighted)))()

    def prompt(self) -> None:
        text = f"{self.draw(SCRIPTS)}:{self.ids}"
        if self.draw(st.booleans()):
            self.refs.append(self.bench.prompt(text))
            return
        self.origin += 1
        deadline = self.draw(st.none() | st.just(self.bench.now + 5))
        self.refs.append(
            self.bench.prompt(text, lane="peer-inbox", sender="p", origin=f"1.{self.origin}.0", tag=text, deadline=deadline)
        )

    def repeat(self) -> None:
        """The sending agent was taken over and sends its last prompt again."""
        last = next((m for m in reversed(self.bench.mail.values()) if m.lane == "peer-inbox"), None)
        if last is not None and last.prompt is not None:
            fields = {"deadline": last.deadline, "tag": last.tag}
            self.bench.prompt(last.prompt.prompt, lane="peer-inbox", sender="p", origin=last.origin, **fields)

    def withdraw(self) -> None:
        """The sending agent has no use for a request any more. It may say so twice, or too late."""
        origin = f"1.{self.draw(st.integers(max(1, self.origin - 3), self.origin))}.0"
        self.withdrawn.setdefault(origin, None)
        withdraw(self.bench, origin, deliver=False, sender="p")
        self.look()

    def look(self) -> None:
        """The owner hears of what came last in a lane, if it does, behind all that came before."""
        if self.draw(st.booleans()):
            self.heard()
            self.bench.feed_backlog()

    def heard(self) -> None:
        """The owner reads its lanes: it knows of all withdrawals now."""
        self.withdrawn = {o: len(self.bench.turns) if turn is None else turn for o, turn in self.withdrawn.items()}

    def event(self) -> None:
        do = self.draw(st.sampled_from(["note", "prompt", "halt", "raise", "reply"]))
        event = {"do": do, "n": self.ids, "text": f"{self.draw(SCRIPTS)}:e{self.ids}"}
        if do == "reply":
            event["ref"] = self.draw(st.sampled_from([*self.bench.core.ledger.deferred, "none"]))
        self.bench.event(event)
        self.events.append(self.ids)
        if do == "raise":
            self.raised.add(self.ids)

    def finish(self) -> None:
        self.bench.finish(self.bench.running().prompt)

    def fail(self) -> None:
        if self.draw(st.booleans()):
            self.bench.watchdog()
        else:
            self.bench.fail()

    def take(self) -> None:
        self.bench.take(self.ids)

    def ask(self) -> None:
        """A new wait of the turn, or one that it had before."""
        known = [name for name in self.asked if name.startswith(self.bench.running().key)]
        name = self.draw(st.sampled_from([*known, f"{self.bench.running().key}/{self.ids}"]))
        self.asked.add(name)
        self.bench.ask(name, agent=self.draw(st.sampled_from(["helper", "helper", "coder"])), seconds=6)

    def circle(self) -> None:
        for name, wait in list(self.bench.core.ledger.waits.items())[:1]:
            self.bench.feed(Circled(name, wait.origin))

    def requests(self) -> list[tuple[str, SendMail]]:
        return [(o, e) for o, e in self.bench.performed.items() if isinstance(e, SendMail) and e.wait is not None]

    def answer(self) -> None:
        """Another agent answers a request, for the first time or again."""
        origin, request = self.draw(st.sampled_from(self.requests()))
        self.bench.answer_to(origin, request.to, f"to {request.wait}", deliver=False)
        self.look()

    def interrupt(self) -> None:
        self.bench.interrupt(f"i{self.ids}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what interrupted callbacks were given: it counts as handled, and leaves nothing."""
        handlers = dict(interruption._INTERRUPTED)

        def in_event(core: Core, reason: ErrorBody, out: list[Command]) -> None:
            event = self.bench.last_event
            if isinstance(event, dict):
                self.drafted[event["n"]] += 1
            elif isinstance(event, Undelivered) and event.effect["target"] == "monitor":
                self.drafted["notice"] += 1
            handlers[Phase.HANDLING](core, reason, out)

        def in_post_run(core: Core, reason: ErrorBody, out: list[Command]) -> None:
            self.drafted["post_run"] += 1
            handlers[Phase.POST_RUN](core, reason, out)

        with mock.patch.dict(interruption._INTERRUPTED, {Phase.HANDLING: in_event, Phase.POST_RUN: in_post_run}):
            yield

    def resume(self) -> None:
        self.bench.resume(f"r{self.ids}")

    def reply(self) -> None:
        ref = self.draw(st.sampled_from([*self.bench.core.ledger.deferred, *self.refs[-2:]] or ["none"]))
        self.bench.feed(Reply(ref=ref, text="from outside", token=f"y{self.ids}"))

    def cancel(self) -> None:
        self.bench.cancel(self.draw(st.sampled_from([*self.refs[-4:], "c1", "none"])), f"c{self.ids}")

    def set_options(self) -> None:
        """Set an option, or repeat such a request."""
        number = self.draw(st.sampled_from([self.ids, *range(max(0, self.ids - 20), self.ids)]))
        change = Adjustment(backend_options={"number": number}, watchdog_s=float(number + 1))
        self.bench.feed(Configure(id=f"s{number}", change=change, token=f"s{self.ids}"))

    def wait(self) -> None:
        self.bench.now += 3
        self.bench.feed(Tick())

    def kill(self) -> None:
        self.doubtful += self.drafted
        self._note_cut()
        landed = self.draw(st.booleans())
        self.heard()
        self.bench.kill(landed=landed)

    def release(self) -> None:
        self.bench.release()

    def commit(self) -> None:
        self.bench.commit()
        if self.bench.core.work == self.bench.core.ledger:  # not a record beside what runs
            self._note_cut()

    def _note_cut(self) -> None:
        self.cut += self.drafted
        self.drafted.clear()

    def restart(self) -> None:
        self.bench.feed(BackoffOver())

    def effects(self) -> None:
        self.bench.do_effects()

    def give_up(self) -> None:
        found = next(((o, e.effect) for o, e in self.bench.undone.items() if isinstance(e.effect, SendMail)), None)
        if found is not None and found[0] in self.bench.core.ledger.effects and found[0] not in self.bench.performed:
            self.bench.undone.pop(found[0])
            self.bench.feed(GaveUp(found[0], error("not_found")))

    # --- the end ----------------------------------------------------------------------------------------------------
    def come_to_rest(self) -> None:
        """Let everything that waits run to its end: resumed, replied to, restarted."""
        bench = self.bench
        bench.auto_commit = bench.auto_done = bench.auto_restart = True
        bench.hold.clear()
        self.doubtful += self.drafted  # from here on records are committed by themselves
        self._note_cut()
        self.heard()
        bench.feed_backlog()  # an owner looks again from time to time
        for turn in range(500):
            bench.do_effects()
            if bench.held:
                bench.release()
            elif bench.appending is not None:
                bench.commit()
            elif bench.phase() is Phase.RESTARTING:
                bench.feed(BackoffOver())
            elif bench.task is not None:
                self.finish()
            elif bench.halted():
                bench.resume(f"end{turn}")
            elif bench.core.ledger.deferred:
                self.ids += 1
                bench.event({"do": "reply", "n": self.ids, "ref": next(iter(bench.core.ledger.deferred))})
                self.events.append(self.ids)
            elif bench.core.ledger.delegated:
                origin, one = next(iter(bench.core.ledger.delegated.items()))
                bench.answer_to(origin, one.agent, "too late")
            else:
                return
        raise AssertionError("the agent does not come to rest")

    def check(self) -> None:
        self._note_cut()
        bench = self.bench
        assert set(bench.outcomes) == set(self.refs), "a request without an outcome, or an outcome without a request"
        log: list[str] = bench.state
        handled = [int(line.removeprefix("event ")) for line in log if line.startswith("event ")]
        gone = {n for n in self.cut if n not in self.doubtful or n not in handled} | self.raised
        assert handled == [n for n in self.events if n not in gone], "events lost, repeated or out of order"
        told = Counter(m.event for m in bench.mails("monitor") if m.event != "post_run")
        undelivered = sum(line.startswith("undelivered monitor") for line in log)
        responses = Counter(line for line in log if line.startswith("resp "))
        assert not told - responses, "something was sent that no record shows"
        halts = bench.halts - sum(m.event == "post_run" for m in bench.mails("monitor"))
        lost = (responses - told).total() + halts - undelivered
        cut = self.cut["notice"] + self.cut["post_run"]
        assert cut - self.doubtful["notice"] - self.doubtful["post_run"] <= lost <= cut, "an effect was lost"
        answers = Counter(m.tag for m in bench.mails("p"))
        assert all(count == 1 for count in answers.values()), "an answer was mailed twice"
        ledger = bench.core.ledger
        assert ledger.taken == {} and ledger.attempts == {} and ledger.awaiting == {}
        assert all(seq <= ledger.positions.get(lane, 0) for lane, seq in bench.mail)
        assert not [key for key in ledger.origins if "@" in key]
        assert ledger.backend_options.get("number", 0) + 1 == (ledger.overrides.watchdog_s or 1), "a change was torn"
        assert len({info.id for info in ledger.sets}) == len(ledger.sets), "a request was done twice"
        assert bench.core.config.watchdog_s == (ledger.overrides.watchdog_s or 600.0)
        sent = Counter(e.wait for _, e in self.requests())
        assert all(count == 1 for count in sent.values()), "a request of a wait was sent twice"
        withdrawn = Counter((m.to, m.event["withdraws"]) for m in bench.effects(SendMail) if is_withdrawal(m))
        assert all(count == 1 for count in withdrawn.values()), "a question was withdrawn twice"
        assert ledger.delegated == {} and bench.core.withdrawals == ()
        refs = {m.origin: ref for ref in self.refs if (m := bench.mail.get(("peer-inbox", int(ref)))) is not None}
        for origin, turns in self.withdrawn.items():
            again = [turn for turn in bench.turns[turns or 0 :] if turn.request.ref == refs[origin]]
            assert not again, "a turn began for a request that was withdrawn"
        bench.rested()


def is_withdrawal(mail: SendMail) -> bool:
    return mail.lane == "peer-answer" and mail.outcome is None


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.data(), st.sampled_from([2, 5, 256]), st.booleans())
def test_any_interleaving(data: st.DataObject, snapshot_records: int, traced: bool) -> None:
    walk = Walk(data.draw, snapshot_records, traced)
    with walk.watched():
        for _ in range(STEPS):
            walk.step()
        walk.come_to_rest()
    walk.check()
    walk.bench.stop()
    assert walk.bench.phase() is Phase.OVER
    if traced:
        check_spans(walk.bench)
