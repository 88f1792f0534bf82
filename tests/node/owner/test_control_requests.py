"""Control requests to an agent: each is answered once, by what its owner can prove, and bad ones harm nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw, structs

from agentmesh import control_values, wire
from agentmesh.control_operations import OPERATIONS
from agentmesh.control_values import Probe
from agentmesh.edge.publish import store
from agentmesh.edge.results import LAST_REF
from agentmesh.edge.transport import Message
from agentmesh.records import Caller, Deferred, Echo, Ledger, Open, Queued, Resolve, SetTimer
from agentmesh.registry_values import Spec
from agentmesh.turn.configuration import PENDING
from agentmesh.turn.values import (
    Active,
    AnswerControl,
    AskTimer,
    Cancel,
    Configure,
    DropTimer,
    Inflight,
    Input,
    Interrupt,
    Phase,
    Reply,
    Resume,
    TurnEnded,
)
from agentmesh.wire import ErrorBody, Mail, Outcome, encode_outcome
from agentmesh_node.owner.control_requests import MAX_PROBE, ControlRequests
from node.owner.noting_loop import AGENT, NotingLoop
from node.simulated import NODE, SimulatedNode, simulate
from support import never_sent

REPLIES = "_INBOX.test"
CALLER = Caller(ref="7", reply_to="_INBOX.caller")
ACTIVE = Active(ref="7", key="inbox:7", number=3, text="hello", started=0.0, caller=CALLER)
OUTCOME = Outcome(agent=AGENT, ref="7", ok=True, text="yes")
PROBE = Probe(id="p", root="b", since=1.0, origin="1.1.0", sender="b", request="1.1.0")


class Desk:
    """Where an agent's control requests are handled, and somebody who sends them."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.notes = NotingLoop(node)
        self.spec = Spec(kind="Doll", incarnation="life")
        self.spent: dict[str, Any] | None = None
        self.probes: list[Probe] = []
        self.replies: list[dict[str, Any]] = []
        self.requests = ControlRequests(
            self.notes.loop,
            node.services,
            "life",
            spec=lambda: self.spec,
            backend_name=lambda spec: f"backend of {spec.kind}",
            spent=lambda: self.spent,
            on_probe=self.probes.append,
        )

    async def listen(self) -> None:
        await self.node.others.subscribe(f"{REPLIES}.*", lambda m: self.replies.append(msgspec.json.decode(m.data)))
        await self.node.others.flush()

    def send(self, body: dict[str, Any] | bytes, reply: str = f"{REPLIES}.1") -> None:
        """A request arrives."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self.requests.handle(Message(self.node.subjects.control(AGENT), data, {}, reply))

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The one reply to a request."""
        before = len(self.replies)
        self.send({"op": op, **fields})
        await self.node.until(lambda: len(self.replies) > before, f"an answer to {op}")
        await self.node.pass_time(0.1)
        assert len(self.replies) == before + 1
        assert self.replies[-1]["v"] == wire.VERSION
        return self.replies[-1]

    async def poll(self, ref: str) -> str:
        """What is said of a request."""
        status: str = (await self.ask("poll", ref=ref))["status"]
        return status

    async def refusal(self, op: str, **fields: Any) -> tuple[str, str]:
        """Code and message of the error that a request is answered with."""
        error = (await self.ask(op, **fields))["error"]
        return error["code"], error["message"]

    def work(self, **fields: Any) -> None:
        """Fields of the ledger, in the journal and in the draft of the next record."""
        ledger = structs.replace(self.notes.core.ledger, **fields)
        self.notes.become(ledger=ledger, work=ledger)


def desk(story: Callable[[Desk], Awaitable[None]], *, begin: bool = True) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Desk(node)
        if begin:
            it.notes.begin()
        await it.listen()
        await story(it)
        await it.notes.loop.close()

    main.__name__ = story.__name__
    simulate(main)


# --- what is no request ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"op":1}', b"\xff", b'{"op":"resume"', b"[" * 100_000], ids=lambda body: repr(body[:16])
)
def test_what_cannot_be_read_is_answered(body: bytes) -> None:
    async def story(it: Desk) -> None:
        it.send(body)
        await it.node.until(lambda: it.replies, "it is answered")
        assert it.replies[0]["error"]["code"] == "bad_request" and it.notes.inputs == []

    desk(story)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"op": "dance"}, "dance"),
        ({"op": "x" * 1000}, "unknown operation"),
        ({"op": "poll"}, "'ref'"),
        ({"op": "cancel", "ref": ""}, "'ref'"),
        ({"op": "resend"}, "'ref'"),
        ({"op": "resend", "ref": "letter"}, "sequence"),
        ({"op": "poll", "ref": "two tokens.here"}, "ref"),
        ({"op": "cancel_timer"}, "'id'"),
        ({"op": "set_timer", "id": "t"}, "'at' or 'after_s'"),
        ({"op": "set_timer", "id": "t", "at": "2030-01-01T00:00:00Z", "after_s": 1}, "'at' or 'after_s'"),
        ({"op": "set_timer", "id": "t", "at": "tomorrow"}, "tomorrow"),
        ({"op": "set_timer", "after_s": 1}, "'id'"),
        ({"op": "set"}, "'set'"),
        ({"op": "set", "set": {}}, "nothing to set"),
        ({"op": "set", "set": {"model": "m"}}, "model"),
        ({"op": "set", "set": {"budget": {"euro": 1}}}, "euro"),
        ({"op": "set", "set": {"watchdog_s": -1}}, "watchdog_s"),
        ({"op": "set_timer", "id": "t", "after_s": 1, "every_s": 0.001}, "period"),
    ],
    ids=lambda value: msgspec.json.encode(value).decode()[:40] if isinstance(value, dict) else "",
)
def test_a_request_that_lacks_something_says_what(request_: dict[str, Any], says: str) -> None:
    async def story(it: Desk) -> None:
        code, message = await it.refusal(**request_)
        assert code == "bad_request" and says in message and len(message) < 300
        assert it.notes.inputs == []

    desk(story)


@pytest.mark.parametrize("reply", ["mesh.inbox.victim", "$JS.API.STREAM.PURGE.X", "a b", "x" * 300], ids=lambda r: r[:12])
def test_nothing_is_sent_where_no_owner_may_publish(reply: str) -> None:
    async def story(it: Desk) -> None:
        heard: list[Message] = []
        await it.node.others.subscribe(">", heard.append)
        await it.node.others.flush()
        heard.clear()
        for op in ("status", "resume", "dance"):
            it.send({"op": op}, reply)
        await it.node.pass_time(1.0)
        assert heard == [] and it.notes.inputs == []

    desk(story)


@pytest.mark.case(735)
def test_what_is_asked_while_a_turn_is_handed_on_is_to_be_asked_again() -> None:
    async def story(it: Desk) -> None:
        it.send({"op": "interrupt"}, f"{REPLIES}.early")
        it.send({"op": "cancel", "ref": "7"}, f"{REPLIES}.early2")
        it.notes.become(phase=Phase.HANDED_ON)
        it.requests.handed_on()
        await it.node.until(lambda: len(it.replies) == 2, "both are answered")
        fed = len(it.notes.inputs)
        for op in ("interrupt", "resume"):
            await it.refusal(op)
        assert len(it.notes.inputs) == fed
        assert [(reply["error"]["code"], reply["error"]["details"]["nobody"]) for reply in it.replies] == [
            ("unavailable", True)
        ] * 4
        it.requests.handed_on()
        await it.node.pass_time(0.2)
        assert len(it.replies) == 4, "each is answered once"

    desk(story)


def test_a_caller_that_cannot_be_reached_costs_nothing() -> None:
    async def story(it: Desk) -> None:
        await it.node.stop_server()
        it.send({"op": "status"})
        it.send({"op": "dance"})
        await it.node.pass_time(0.01)
        assert len(it.node.logged("could not be answered")) == 2

    desk(story)


# --- probes ---------------------------------------------------------------------------------------------------------
def test_a_probe_is_handed_on_and_gets_no_answer() -> None:
    async def story(it: Desk) -> None:
        it.send(wire.encode(control_values.ControlRequest(op="probe", probe=PROBE)), reply="")
        assert it.probes == [PROBE]

    desk(story)


@pytest.mark.case(614)
@pytest.mark.parametrize("name", ["status", "probe", ""])
def test_a_probe_from_somebody_who_may_send_one_operation_only_is_nothing(name: str) -> None:
    async def story(it: Desk) -> None:
        probe = wire.encode(control_values.ControlRequest(op="probe", probe=PROBE))
        it.requests.handle(Message(it.node.subjects.control_op(name, AGENT), probe, {}, ""))
        await it.node.pass_time(1.0)
        assert it.probes == [] and it.notes.inputs == [] and it.replies == []

    desk(story)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b'{"op":"probe"}',
        b'{"op":"resume"}',
        wire.encode(control_values.ControlRequest(op="status", probe=PROBE)),
        wire.encode(control_values.ControlRequest(op="probe", probe=structs.replace(PROBE, id="x" * MAX_PROBE))),
    ],
    ids=["cut off", "deep", "empty", "resume", "status", "long"],
)
def test_what_nobody_waits_for_and_is_no_probe_is_nothing(body: bytes) -> None:
    async def story(it: Desk) -> None:
        it.send(body, reply="")
        await it.node.pass_time(1.0)
        assert it.probes == [] and it.notes.inputs == [] and it.replies == []

    desk(story)


# --- status ---------------------------------------------------------------------------------------------------------
def test_status_tells_of_the_agent_as_the_next_record_has_it() -> None:
    async def story(it: Desk) -> None:
        ledger = Ledger(
            incarnation="life",
            phase="ready",
            generation=9,
            state=Raw(b'{"depth":2}'),
            turn=3,
            backend_options={"model": "m"},
        )
        it.spec = structs.replace(it.spec, labels={"zone": "a", "mesh.reads-2": "yes"})
        draft = structs.replace(ledger, turn=4, halted=True, usage={"tokens": 7}, queue=(Queued(ref="s1", text="again"),))
        waiting = (Mail(lane="inbox", seq=8), Mail(lane="inbox", seq=9))
        it.notes.become(ledger=ledger, work=draft, active=ACTIVE, phase=Phase.TURN, prompts=waiting)
        status = await it.ask("status")
        tag = status["configuration"].pop("tag")
        assert len(tag) == 10
        assert status == {
            "v": wire.VERSION,
            "name": AGENT,
            "kind": "Doll",
            "backend": "backend of Doll",
            "state": "processing",
            "halted": True,
            "queued": 3,
            "current_request": "7",
            "node": NODE,
            "incarnation": "life",
            "generation": 9,
            "turn": 4,
            "usage": {"tokens": 7},
            "failed": None,
            "open": [],
            "open_more": 0,
            "waiting": None,
            "since": "1970-01-01T00:00:00.000000Z",
            "sender": None,
            "tool": None,
            "callback": None,
            "configuration": {
                "backend_options": {"model": "m"},
                "budget": {},
                "watchdog_s": 600.0,
                "restart": {"policy": "permanent", "max": 5, "within_s": 60.0},
                "labels": {"zone": "a"},
                "sets": 0,
            },
        }
        it.notes.become(active=None, phase=Phase.IDLE)
        status = await it.ask("status", content=True)
        assert (status["state"], status["current_request"], status["agent_state"]) == ("idle", None, {"depth": 2})

    desk(story)


@pytest.mark.case(595)
@pytest.mark.parametrize(
    ("phase", "named"),
    [
        (Phase.INIT, "init_agent"),
        (Phase.PRE_TURN, "pre_turn"),
        (Phase.HANDLING, "handle_event"),
        (Phase.TURN, None),
        (Phase.IDLE, None),
    ],
)
def test_status_names_the_callback_that_runs(phase: Phase, named: str | None) -> None:
    async def story(it: Desk) -> None:
        it.notes.become(phase=phase)
        assert (await it.ask("status"))["callback"] == named

    desk(story)


def test_an_agent_without_a_state_shows_none() -> None:
    async def story(it: Desk) -> None:
        assert (await it.ask("status", content=True))["agent_state"] is None

    desk(story)


@pytest.mark.parametrize("committed", [True, False])
def test_status_says_why_an_agent_has_failed(committed: bool) -> None:
    async def story(it: Desk) -> None:
        error = ErrorBody(code="task_crashed", message="boom")
        if committed:
            it.work(failed=error)
        else:
            it.notes.become(phase=Phase.FAILED, reason=error)
        assert (await it.ask("status"))["failed"] == {"code": "task_crashed", "message": "boom"}
        it.work(failed=None)
        it.notes.become(phase=Phase.IDLE, reason=error)
        assert (await it.ask("status"))["failed"] is None

    desk(story)


def test_status_comes_behind_the_mail_that_came_before_it() -> None:
    async def story(it: Desk) -> None:
        it.notes.react = lambda item: it.work(turn=42)
        it.notes.loop.feed(TurnEnded(turn=3))
        assert (await it.ask("status"))["turn"] == 42

    desk(story)


def test_a_state_that_no_message_can_hold_is_said_to_be_too_large() -> None:
    async def story(it: Desk) -> None:
        it.work(state=Raw(b'"' + b"x" * it.node.transport.max_payload + b'"'))
        assert (await it.refusal("status", content=True))[0] == "too_large"
        assert "agent_state" not in await it.ask("status")

    desk(story)


@pytest.mark.case(613)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_of_the_table_is_taken_by_its_subject_alone(name: str) -> None:
    async def story(it: Desk) -> None:
        body = b'{"ref":"7","id":"t","after_s":1,"text":"x","set":{"watchdog_s":5}}'
        subject = it.node.subjects.control_op(name, AGENT)
        it.requests.handle(Message(subject, body, {}, f"{REPLIES}.1"))
        await it.node.until(lambda: it.replies or it.notes.inputs, f"{name} is done")
        assert not it.replies or "unknown operation" not in str(it.replies[0].get("error"))
        if name == "state":
            assert "agent_state" in it.replies[0]
        it.replies.clear()
        it.requests.handle(Message(subject, b'{"op":"dance"}', {}, f"{REPLIES}.1"))
        await it.node.until(lambda: it.replies, "it is refused")
        assert it.replies[0]["error"]["code"] == "bad_request"

    desk(story)


# --- what the turn machine answers ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"op": "interrupt"}, Interrupt(ref=None, usage={"tokens": 5})),
        ({"op": "interrupt", "ref": "7"}, Interrupt(ref="7", usage={"tokens": 5})),
        ({"op": "resume"}, Resume()),
        ({"op": "cancel", "ref": "8"}, Cancel(ref="8")),
        ({"op": "cancel_timer", "id": "tea"}, DropTimer(id="tea")),
        (
            {"op": "set_timer", "id": "tea", "at": "2030-01-01T00:00:00Z", "every_s": 60, "event": {"cup": 1}},
            AskTimer(SetTimer(id="tea", due=1893456000.0, every=60.0, event={"cup": 1})),
        ),
    ],
    ids=lambda value: str(value.get("op")) if isinstance(value, dict) else "",
)
def test_it_is_asked_and_its_answer_goes_to_who_asked(request_: dict[str, Any], expected: Input) -> None:
    async def story(it: Desk) -> None:
        it.spent = {"tokens": 5}
        it.send(request_, f"{REPLIES}.1")
        it.send(request_, f"{REPLIES}.2")
        await it.node.pass_time(0.1)
        first, second = it.notes.inputs
        assert structs.replace(first, token="") == structs.replace(second, token="") == expected
        assert it.replies == [], "nothing is promised yet"
        heard: list[str] = []
        await it.node.others.subscribe(f"{REPLIES}.*", lambda message: heard.append(message.subject))
        await it.node.others.flush()
        for item, body in ((second, {"second": True}), (first, {"first": True})):
            it.requests.answer(AnswerControl(token=token_of(item), body=body))
            it.requests.answer(AnswerControl(token=token_of(item), body=body))  # nobody waits for this one
            await it.node.pass_time(0.1)
        assert it.replies == [{"v": 1, "second": True}, {"v": 1, "first": True}]
        assert heard == [f"{REPLIES}.2", f"{REPLIES}.1"]

    desk(story)


@pytest.mark.case(582)
def test_a_change_that_is_asked_for_by_a_message_that_came_twice_is_answered_when_it_is_made() -> None:
    """Seed 101563: the answer to the first copy, that it waits, was taken for the answer of both."""

    async def story(it: Desk) -> None:
        request = {"op": "set", "id": "r1", "set": {"watchdog_s": 60.0}}
        for reply in ("1", "1", "2"):
            it.send(request, f"{REPLIES}.{reply}")
        await it.node.pass_time(0.1)
        first, copy, again = map(token_of, it.notes.inputs)
        it.requests.answer(AnswerControl(first, PENDING))
        await it.node.pass_time(0.1)
        assert it.replies == []
        it.requests.answer(AnswerControl(copy, PENDING))
        await it.node.pass_time(0.1)
        assert it.replies == [{"v": 1, **PENDING}], "a caller that asks again by another subject listens to that one"
        it.requests.answer(AnswerControl(again, {"set": True}))
        await it.node.pass_time(0.1)
        assert it.replies[1:] == [{"v": 1, "set": True}]

    desk(story)


def token_of(item: Input) -> str:
    assert isinstance(item, Interrupt | Resume | Cancel | AskTimer | DropTimer | Configure) and item.token
    return item.token


@pytest.mark.parametrize(("after_s", "expected"), [(90.0, 90.0), (0, 0.0), (-5, 0.0)])
def test_a_timer_may_be_set_from_now_on(after_s: float, expected: float) -> None:
    async def story(it: Desk) -> None:
        now = it.node.services.now()
        it.send({"op": "set_timer", "id": "tea", "after_s": after_s})
        await it.node.pass_time(0.01)
        (asked,) = it.notes.inputs
        assert isinstance(asked, AskTimer) and asked.timer.due == pytest.approx(now + expected, abs=0.05)

    desk(story)


@pytest.mark.parametrize("room", [0, -1], ids=["fits", "does not fit"])
def test_an_event_that_no_timer_can_carry_is_refused(room: int) -> None:
    async def story(it: Desk) -> None:
        limit = it.node.transport.max_payload - wire.HEADER_ROOM - wire.MAIL_ROOM
        it.send({"op": "set_timer", "id": "t", "after_s": 1, "event": "x" * (limit - 2 - room)})
        await it.node.pass_time(0.1)
        if room == 0:
            assert len(it.notes.inputs) == 1 and it.replies == []
        else:
            assert it.notes.inputs == [] and it.replies[0]["error"]["code"] == "too_large"

    desk(story)


def test_an_event_that_no_record_can_hold_is_refused() -> None:
    async def story(it: Desk) -> None:
        deep: list[Any] = []
        for _ in range(500):
            deep = [deep]
        assert (await it.refusal("set_timer", id="t", after_s=1, event=deep))[0] == "bad_request"

    desk(story)


# --- poll -----------------------------------------------------------------------------------------------------------
def running(it: Desk) -> None:
    it.notes.become(active=ACTIVE)


def chained(it: Desk) -> None:
    it.work(next=Queued(ref="7", text="hello", caller=CALLER))


def queued(it: Desk) -> None:
    it.work(queue=(Queued(ref="6", text="other"), Queued(ref="7", text="hello", caller=CALLER)))


def deferred(it: Desk) -> None:
    it.work(deferred={"7": Deferred(caller=CALLER, turn=3)})


def in_the_mailbox(it: Desk) -> None:
    it.notes.become(prompts=(Mail(lane="inbox", seq=7),))


def echoing(it: Desk) -> None:
    it.work(effects={"1.1.0": Open(Echo(ref="7", of="3"), "nonce", 0.0)})


@pytest.mark.parametrize("place", [running, chained, queued, deferred, in_the_mailbox, echoing])
def test_a_request_that_its_owner_knows_is_pending(place: Callable[[Desk], None]) -> None:
    async def story(it: Desk) -> None:
        assert await it.poll("7") == "not_found"
        place(it)
        assert await it.poll("7") == "pending"
        assert await it.poll("70") == "not_found"

    desk(story)


@pytest.mark.parametrize("place", [running, chained])
def test_a_prompt_of_the_agents_own_is_nobodys_request(place: Callable[[Desk], None]) -> None:
    async def story(it: Desk) -> None:
        place(it)
        if it.notes.core.active is not None:
            it.notes.become(active=structs.replace(ACTIVE, caller=None))
        else:
            it.work(next=Queued(ref="7", text="hello"))
        assert await it.poll("7") == "not_found"

    desk(story)


@pytest.mark.parametrize("lane", ["inbox", "peer-inbox"])
def test_a_prompt_that_lies_in_its_lane_is_pending(lane: str) -> None:
    async def story(it: Desk) -> None:
        other = await it.node.mail("another", lane=lane)
        seq = await it.node.mail(AGENT, lane=lane)
        assert await it.poll(str(seq)) == "pending"
        assert await it.poll(str(other)) == "not_found"
        it.notes.consume(**{lane.replace("-", "_"): seq})
        assert await it.poll(str(seq)) == "not_found"

    desk(story)


@pytest.mark.parametrize("ref", [str(LAST_REF + 1), "9" * 60, "s1", "-1"])
def test_what_no_lane_can_hold_is_not_looked_for(ref: str) -> None:
    async def story(it: Desk) -> None:
        it.node.transport.requests.clear()
        assert await it.poll(ref) == "not_found"
        mail = it.node.subjects.stream("mail")
        assert not any(mail in subject for subject in it.node.transport.requests)

    desk(story)


def test_an_outcome_is_told_from_the_store_and_before_from_the_journal() -> None:
    async def story(it: Desk) -> None:
        it.work(effects={"1.1.0": Open(Resolve(outcome=OUTCOME), "nonce", 0.0)})
        expected = {"v": 1, "status": "completed", "outcome": msgspec.json.decode(encode_outcome(OUTCOME))}
        assert await it.ask("poll", ref="7") == expected
        assert await it.poll("70") == "not_found"
        await store(it.node.others, it.node.subjects.result(AGENT, "7"), encode_outcome(OUTCOME))
        it.work(effects={})
        assert await it.ask("poll", ref="7") == expected
        assert await it.poll("8") == "not_found"

    desk(story)


def test_an_outcome_of_an_older_journal_is_told_as_callers_get_it() -> None:
    async def story(it: Desk) -> None:
        long = structs.replace(OUTCOME, text="x" * it.node.transport.max_payload)
        it.work(effects={"1.1.0": Open(Resolve(outcome=long), "nonce", 0.0)})
        assert (await it.ask("poll", ref="7"))["outcome"]["error"]["code"] == "too_large"

    desk(story)


def test_a_request_that_moves_on_while_it_is_looked_for_is_found() -> None:
    async def story(it: Desk) -> None:
        seq = await it.node.mail(AGENT)
        it.send({"op": "poll", "ref": str(seq)})
        it.notes.become(prompts=(Mail(lane="inbox", seq=seq),))  # its copy has arrived
        it.notes.consume(inbox=seq)
        await it.node.until(lambda: it.replies, "the answer")
        assert it.replies[0]["status"] == "pending"

    desk(story)


def test_where_it_cannot_be_told_now_the_caller_hears_so() -> None:
    async def story(it: Desk) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("result"))
        assert (await it.refusal("poll", ref="7"))[0] == "no_leader"
        it.node.faults.leaderless.clear()
        it.node.transport.inject(f"$JS.API.STREAM.MSG.GET.{it.node.subjects.stream('mail')}", never_sent)
        assert (await it.refusal("poll", ref="7"))[0] == "unavailable"

    desk(story)


# --- whether a request is answered and forgotten --------------------------------------------------------------------
def test_a_request_is_gone_when_neither_its_owner_nor_the_store_knows_of_it() -> None:
    async def story(it: Desk) -> None:
        assert await it.requests.is_gone("7")
        running(it)
        assert not await it.requests.is_gone("7")
        it.notes.become(active=None)
        await store(it.node.others, it.node.subjects.result(AGENT, "7"), encode_outcome(OUTCOME))
        assert not await it.requests.is_gone("7")

    desk(story)


def test_while_a_record_is_on_its_way_nothing_is_known_to_be_gone() -> None:
    async def story(it: Desk) -> None:
        it.notes.become(inflight=Inflight(kind="turn", effects=(), done=(), base=it.notes.core.ledger))
        assert not await it.requests.is_gone("7")
        it.notes.become(inflight=None)
        asking = asyncio.ensure_future(it.requests.is_gone("7"))
        await it.node.pass_time(0)
        it.work(turn=5)  # the agent has gone on meanwhile
        assert not await asking

    desk(story)


def test_before_its_owner_has_begun_nothing_is_known_to_be_gone() -> None:
    async def story(it: Desk) -> None:
        assert not await it.requests.is_gone("7")

    desk(story, begin=False)


# --- dead letters ---------------------------------------------------------------------------------------------------
async def bury(it: Desk, lane: str, **headers: str) -> int:
    fields = {"Mesh-Lane": lane, **headers}
    return (await store(it.node.others, it.node.subjects.dead(AGENT), b'{"v":1,"prompt":"hi"}', headers=fields)).seq


def test_a_dead_letter_of_an_agent_is_sent_again_for_the_present_life() -> None:
    async def story(it: Desk) -> None:
        letter = await bury(it, "peer-inbox", **{wire.FROM: "b", wire.FROM_LIFE: "b-life", wire.ORIGIN: "1.1.0", "X": "y"})
        ref = (await it.ask("resend", ref=str(letter)))["ref"]
        (mail,) = it.node.stored(it.node.subjects.lane("peer-inbox", AGENT))
        assert ref == str(mail.seq) and mail.data == b'{"v":1,"prompt":"hi"}'
        expected = {wire.FROM: "b", wire.FROM_LIFE: "b-life", wire.FOR: "life", "Nats-Msg-Id": f"{AGENT}.dead-{letter}"}
        assert mail.headers == expected
        assert (await it.ask("resend", ref=str(letter)))["ref"] == ref, "a repetition changes nothing"

    desk(story)


def test_a_letter_that_cannot_be_sent_again_is_refused() -> None:
    async def story(it: Desk) -> None:
        assert (await it.refusal("resend", ref="1"))[0] == "not_found"
        strangers = await bury(it, "inbox", **{wire.FROM: "b"})
        assert (await it.refusal("resend", ref=str(strangers)))[0] == "bad_request"
        assert (await it.refusal("resend", ref=str(strangers + 1)))[0] == "not_found"
        letter = await bury(it, "peer-inbox", **{wire.FROM: "b"})
        it.node.faults.leaderless.add(it.node.subjects.stream("mail"))
        assert (await it.refusal("resend", ref=str(letter)))[0] == "unavailable"

    desk(story)


# --- deferred requests ------------------------------------------------------------------------------------------------
@pytest.mark.case(447)
def test_a_reply_from_outside_needs_a_ref_and_a_text() -> None:
    async def story(it: Desk) -> None:
        def answer(item: Input) -> None:
            assert isinstance(item, Reply)
            it.requests.answer(AnswerControl(item.token, {"replied": (item.ref, item.text) == ("7", "yes")}))

        it.notes.react = answer
        assert (await it.ask("reply", ref=7, text="yes"))["replied"] is True
        assert (await it.refusal("reply", text="yes"))[0] == "bad_request"
        assert await it.refusal("reply", ref="7") == ("bad_request", "this operation needs 'text', the answer")

    desk(story)


@pytest.mark.case(446)
def test_the_status_shows_what_is_open_and_how_many_more_there_are() -> None:
    async def story(it: Desk) -> None:
        entries = {str(ref): Deferred(caller=Caller(ref=str(ref)), turn=ref, since=float(ref)) for ref in range(1, 104)}
        it.work(deferred=entries)
        status = await it.ask("status")
        assert [request["ref"] for request in status["open"]] == [str(ref) for ref in range(1, 101)]
        assert status["open"][0] == {"ref": "1", "since": "1970-01-01T00:00:01.000000Z"} and status["open_more"] == 3

    desk(story)
