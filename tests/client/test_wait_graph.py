"""Who waits for whom, made of values: what each end of a request knows, put together."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from agentmesh.records import Awaited, Caller, Deferred, Delegated, Ledger, Open, Queued, Resolve, SendMail, Turning, Wait
from agentmesh.registry_values import Spec
from agentmesh.wire import ErrorBody, Mail, Outcome, PromptBody, format_time
from agentmesh_client.results import WaitEntry
from agentmesh_client.wait_graph import AgentFacts, concerning, for_clients, state_of, wait_graph, waits

AGENTS = ("a", "b", "c", "d")
BEGAN = 1_000_000.0
"""When requests are made, in seconds since the epoch; each at a second of its own."""


def at(second: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(BEGAN + second, dt.UTC)


def facts(ledger: Ledger | None = None, *, node: str | None = "n1", **fields: Any) -> AgentFacts:
    return AgentFacts(**{"spec": Spec(kind="K", incarnation="i", status="running"), "node": node, "ledger": ledger, **fields})


def ledger(**fields: Any) -> Ledger:
    return Ledger(incarnation="i", phase="ready", **fields)


def prompt(seq: int, **fields: Any) -> Mail:
    lane = "inbox" if fields.get("sender") is None else "peer-inbox"
    return Mail(lane=lane, seq=seq, stored=format_time(BEGAN + seq), **fields)


def sent(to: str, **fields: Any) -> Open:
    return Open(SendMail(to=to, lane="peer-inbox", prompt=PromptBody(prompt="p"), **fields), "n", BEGAN)


def shape(entry: WaitEntry) -> tuple[Any, ...]:
    return entry.waiter, entry.agent, entry.kind, entry.stage, entry.ref


# --- any set of requests ----------------------------------------------------------------------------------------------
class World:
    """Agents whose ledgers and mail are made of requests, as they would make them."""

    def __init__(self) -> None:
        self.ledgers = {name: ledger() for name in AGENTS}
        self.mail: dict[str, list[Mail]] = {name: [] for name in AGENTS}
        self.answers: dict[str, set[tuple[str, str]]] = {name: set() for name in AGENTS}
        self.expected: set[tuple[Any, ...]] = set()
        self._seq = 0

    def add(self, waiter: str | None, agent: str, kind: str, stage: str) -> None:
        self._seq += 1
        origin = f"1.{self._seq}.0"
        if waiter is not None:
            self._ask(waiter, agent, kind, stage, origin)
        tag = None if waiter is None or kind == "tell" else origin if kind == "turn" else f"t{self._seq}"
        mail = prompt(
            self._seq,
            reply_to="r" if kind == "ask" else None,
            sender=waiter,
            origin=origin if waiter is not None else None,
            tag=tag,
            path=(waiter,) if waiter is not None and kind == "turn" else (),
        )
        self._hold(agent, mail, stage)
        if stage == "answered" and waiter is not None and tag is not None:
            self.answers[waiter].add((agent, tag))
        ref = mail.ref if stage in ("queued", "deferred") else None
        if ref is not None or (waiter is not None and kind != "tell"):
            self.expected.add((waiter, agent, kind, stage, ref))

    def _ask(self, waiter: str, agent: str, kind: str, stage: str, origin: str) -> None:
        old = self.ledgers[waiter]
        if kind == "turn":
            wait = Wait(agent=agent, since=BEGAN + self._seq, deadline=BEGAN + 900, origin=origin)
            new = structs.replace(old, turning=Turning(key="ref:c9", number=1, prompt=""), waits={**old.waits, origin: wait})
        elif kind == "tag":
            new = structs.replace(old, awaiting={**old.awaiting, origin: Awaited(agent, f"t{self._seq}", BEGAN + self._seq)})
        else:
            new = structs.replace(old, delegated={**old.delegated, origin: Delegated(agent, "5")})
        if stage == "sent":
            new = structs.replace(new, effects={**new.effects, origin: sent(agent)})
        self.ledgers[waiter] = new

    def _hold(self, agent: str, mail: Mail, stage: str) -> None:
        old = self.ledgers[agent]
        if stage == "queued":
            self.mail[agent].append(mail)
        elif stage == "deferred":
            caller = Caller(
                ref=mail.ref, reply_to=mail.reply_to, sender=mail.sender, tag=mail.tag, path=mail.path, origin=mail.origin
            )
            self.ledgers[agent] = structs.replace(old, deferred={**old.deferred, mail.ref: Deferred(caller=caller, turn=1)})

    def facts(self) -> dict[str, AgentFacts]:
        # Halted, so that nothing of what waits is about to run; those that wait in a turn run it.
        return {
            name: facts(
                structs.replace(found, halted=found.turning is None),
                prompts=tuple(self.mail[name]),
                answers=frozenset(self.answers[name]),
            )
            for name, found in self.ledgers.items()
        }


requests = st.lists(
    st.tuples(
        st.sampled_from([None, *AGENTS]),
        st.sampled_from(AGENTS),
        st.sampled_from(["ask", "tell", "turn", "tag"]),
        st.sampled_from(["sent", "queued", "deferred", "answered"]),
    ),
    max_size=12,
)


@pytest.mark.case(500)
@given(requests)
def test_every_request_that_is_open_is_shown_once_with_what_both_ends_know(drawn: list[tuple[Any, ...]]) -> None:
    world = World()
    for waiter, agent, kind, stage in drawn:
        known = ("ask", "tell") if waiter is None else ("tell", "turn", "tag")
        world.add(waiter, agent, kind if kind in known else "tell", stage)
    shown = [shape(entry) for entry in waits(world.facts())]
    # Two requests of one agent to another that have no ref yet look alike.
    assert set(shown) == world.expected
    with_refs = [entry for entry in shown if entry[-1] is not None]
    assert len(with_refs) == len(set(with_refs))


@pytest.mark.case(504)
@given(requests, st.sampled_from(AGENTS))
def test_what_concerns_an_agent_is_what_leads_to_it_and_away_from_it(drawn: list[tuple[Any, ...]], agent: str) -> None:
    found = [
        WaitEntry(waiter=w, agent=a, kind="tag", stage="queued", state="idle", ref=str(n)) for n, (w, a, *_) in enumerate(drawn)
    ]
    up, down = {agent}, {agent}
    for _ in AGENTS:
        up |= {entry.waiter for entry in found if entry.agent in up and entry.waiter is not None}
        down |= {entry.agent for entry in found if entry.waiter in down}
    chosen = concerning(found, agent)
    assert chosen == [entry for entry in found if entry.agent in up or entry.waiter in down]


# --- what is known of a request ---------------------------------------------------------------------------------------
def test_the_prompt_that_runs_is_told_from_those_behind_it() -> None:
    three = tuple(prompt(seq, reply_to="r", deadline=BEGAN + 50, end_by=BEGAN + 90) for seq in (4, 5, 6))
    running, *queued = waits({"a": facts(ledger(positions={"inbox": 3}), prompts=three)})
    assert shape(running) == (None, "a", "ask", "running", "4")
    assert (running.since, running.deadline, running.state, running.node) == (at(4), at(90), "running", "n1")
    assert [shape(entry) for entry in queued] == [(None, "a", "ask", "queued", ref) for ref in ("5", "6")]
    assert {entry.deadline for entry in queued} == {at(50)}, "a deadline counts until the turn begins"

    turning = ledger(turning=Turning(key="inbox:5", number=1, prompt=""))
    assert [entry.stage for entry in waits({"a": facts(turning, prompts=three)})] == ["queued", "running", "queued"]
    chained = ledger(next=Queued(ref="c1", text="t", caller=Caller(ref="2", reply_to="r")))
    shown = {entry.ref: entry.stage for entry in waits({"a": facts(chained, prompts=three)})}
    assert shown == {"4": "queued", "5": "queued", "6": "queued", "2": "running"}, "the request goes on with a prompt of its own"
    kept = ledger(deferred={"2": Deferred(caller=Caller(ref="2"), turn=1, exclusive=True, until=BEGAN + 70)})
    first, *others = waits({"a": facts(kept, prompts=three)})
    assert {entry.stage for entry in (first, others[0])} == {"queued"} and others[-1].exclusive and others[-1].deadline == at(70)
    again = ledger(queue=(Queued(ref="2", text="t", place=4, caller=Caller(ref="2")),))
    shown = {entry.ref: entry.stage for entry in waits({"a": facts(again, prompts=three)})}
    assert shown["4"] == "running" and shown["2"] == "queued", "it stands behind the message of its place"


def test_what_is_consumed_or_repeated_is_not_waited_for() -> None:
    known = ledger(positions={"inbox": 4}, taken={"inbox": (6,)}, origins={"b/peer-inbox": "1.9.0"}, halted=True)
    mail = (
        *(prompt(seq) for seq in (4, 5, 6)),
        prompt(7, sender="b", origin="1.9.0"),
        prompt(8, sender="b", origin="1.10.0"),
    )
    assert [entry.ref for entry in waits({"a": facts(known, prompts=mail), "b": facts()})] == ["5", "8"]


def test_a_question_whose_asker_wants_no_answer_any_more_is_not_shown() -> None:
    held = facts(ledger(halted=True), prompts=(prompt(4, sender="b", origin="1.2.0", tag="t"),))
    assert [*waits({"a": held, "b": facts(ledger())})] == []
    assert [*waits({"a": held})] == [], "the asker has ended"
    unknown = facts(trouble=ErrorBody(code="unreadable_record"))
    assert [shape(entry) for entry in waits({"a": held, "b": unknown})] == [("b", "a", "tag", "queued", "4")]
    assert wait_graph({"a": held, "b": unknown}).unread == ("b",)


def test_a_deferred_request_of_an_older_build_is_found_by_its_tag() -> None:
    caller = Caller(ref="4", sender="b", tag="t", deadline=BEGAN + 30)
    owing = facts(ledger(deferred={"4": Deferred(caller=caller, turn=1)}))
    asking = facts(ledger(awaiting={"1.2.0": Awaited("a", "t")}, delegated={"1.2.0": Delegated("a", "9")}))
    (entry,) = waits({"a": owing, "b": asking})
    assert shape(entry) == ("b", "a", "tag", "deferred", "4")
    assert (entry.request, entry.since, entry.deadline) == ("9", None, at(30))


def test_an_answer_that_is_on_its_way_back_is_no_debt_of_the_other_agent() -> None:
    asking = ledger(awaiting={"1.2.0": Awaited("a", "t", BEGAN, BEGAN + 9)}, effects={"1.2.0": sent("a", tag="t")})
    (entry,) = waits({"a": facts(), "b": facts(asking)})
    assert (entry.stage, entry.deadline) == ("sent", at(9))
    (entry,) = waits({"a": facts(), "b": facts(asking, answers=frozenset({("a", "t")}))})
    assert (entry.stage, entry.deadline) == ("answered", None)
    (entry,) = waits({"a": facts(ledger(origins={"b/peer-inbox": "1.2.0"})), "b": facts(asking)})
    assert entry.stage == "answered", "it was consumed"
    (entry,) = waits({"a": facts(), "b": facts(structs.replace(asking, effects={}))})
    assert entry.stage == "answered", "it was delivered, and is not there any more"


def test_an_answer_that_no_owner_has_told_yet_is_still_waited_for() -> None:
    outcome = Outcome(agent="a", ref="4", ok=True, stored=format_time(BEGAN + 4))
    mailed = Outcome(agent="a", ref="5", ok=True)
    effects = {
        "1.1.0": Open(Resolve(outcome=outcome, reply_to="r"), "n", BEGAN),
        "1.1.1": Open(Resolve(outcome=mailed), "n", BEGAN),
        "1.1.2": Open(SendMail(to="b", lane="peer-notify", outcome=mailed, tag="t"), "n", BEGAN),
    }
    found = for_clients(ledger(effects=effects))
    assert [effect.outcome.ref for _, effect in found] == ["4"], "what is for an agent, that agent waits for"
    (entry,) = waits({"a": facts(ledger(), node=None, untold=tuple(effect for _, effect in found))})
    assert shape(entry) == (None, "a", "ask", "answered", "4")
    assert (entry.state, entry.since) == ("not_placed", at(4))


# --- what the agent that owes is doing --------------------------------------------------------------------------------
LOST = ErrorBody(code="store_lost", message="gone")


def spec(status: Any, reason: ErrorBody | None = None) -> Spec:
    return Spec(kind="K", incarnation="i", status=status, reason=reason)


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (AgentFacts(), "no_agent"),
        (facts(spec=spec("stopped")), "stopped"),
        (facts(spec=spec("stopping")), "stopping"),
        (facts(spec=spec("failed", LOST)), "stuck"),
        (facts(spec=spec("wanted", ErrorBody(code="unreadable_record"))), "stuck"),
        (facts(trouble=LOST), "stuck"),
        (facts(spec=spec("failed", ErrorBody(code="failed"))), "failed"),
        (facts(ledger(failed=ErrorBody(code="failed"))), "failed"),
        (facts(node=None), "not_placed"),
        (facts(ledger(halted=True), prompts=(prompt(1),)), "halted"),
        (facts(ledger(turning=Turning(key="inbox:1", number=1, prompt=""))), "running"),
        (facts(ledger(), prompts=(prompt(1),)), "running"),
        (facts(prompts=(prompt(1),)), "running"),
        (facts(ledger()), "idle"),
        (facts(ledger(positions={"inbox": 1}), prompts=(prompt(1),)), "idle"),
        (facts(), "idle"),
    ],
)
def test_the_state_of_the_agent_that_owes(known: AgentFacts, state: str) -> None:
    assert state_of(known) == state


def test_the_oldest_wait_comes_first_and_reasons_are_told() -> None:
    known = {
        "a": facts(node=None, spec=spec("wanted", ErrorBody(code="unavailable", message="no node")), prompts=(prompt(9),)),
        "nobody": AgentFacts(prompts=(prompt(3),)),
        "b": facts(),
    }
    graph = wait_graph(known, read=2)
    assert [(entry.agent, entry.state) for entry in graph.waits] == [("nobody", "no_agent"), ("a", "not_placed")]
    assert graph.waits[1].reason is not None and graph.waits[1].reason.message == "no node"
    assert (graph.agents, graph.read, graph.unread, graph.circles) == (3, 2, (), ())
    assert wait_graph(known, "b").waits == ()
