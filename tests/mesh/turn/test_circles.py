"""Probes along random graphs of waits: each circle loses its youngest wait, and no other wait ends (case 218)."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from agentmesh.control_values import Probe
from agentmesh.records import Caller, Deferred, Ledger, Queued, Turning, Wait
from agentmesh.turn.values import Active, Config, Core, Phase
from agentmesh.turn.wait_cycles import begun, handed_on, holds, open_waits
from agentmesh.wire import Mail, Outcome

type Edge = tuple[str, str]
"""Who waits, and for whom. The place in a list of edges is the wait's age."""


def core_of(name: str, edges: list[Edge]) -> Core:
    """An agent whose turn waits for what `edges` say, and which holds all requests to it: in its mailbox, all but one."""
    waits = {
        f"w{age}": Wait(agent=target, since=float(age), deadline=1e9, origin=f"1.{age}.0")
        for age, (asker, target) in enumerate(edges)
        if asker == name
    }
    held = [(asker, f"1.{age}.0") for age, (asker, target) in enumerate(edges) if target == name]
    ledger = Ledger(incarnation="i", turning=Turning(key="inbox:1", number=1, prompt="p"), waits=waits)
    core = Core(config=Config(name=name, kind="k"), ledger=ledger, work=ledger, phase=Phase.TURN)
    runs, *waiting = held or [("", "")]
    caller = Caller(ref="1", sender=runs[0], tag=runs[1], path=(runs[0],)) if runs[0] else None
    core.active = Active(ref="1", key="inbox:1", number=1, text="p", started=0.0, mail=Mail(lane="inbox", seq=1), caller=caller)
    core.prompts = tuple(Mail(lane="peer-inbox", seq=n, sender=s, origin=o, tag=o) for n, (s, o) in enumerate(waiting, 2))
    return core


def returned(cores: dict[str, Core], name: str, wait: str) -> bool:
    """Whether the probe of a wait comes back, if none is lost."""
    own = cores[name].ledger.waits[wait]
    probes: deque[tuple[str, Probe]] = deque([(own.agent, begun(cores[name], own, "id"))])
    seen: set[str] = set()
    while probes:
        agent, probe = probes.popleft()
        if agent == name:
            if holds(cores[name], probe.sender, probe.request):
                return True
        elif agent not in seen:
            onward = handed_on(cores[agent], probe)
            if onward:
                seen.add(agent)
            probes.extend(onward)
    return False


def closes_a_circle(edges: list[Edge], age: int) -> bool:
    """Whether older waits lead from the agent that this wait waits for back to the waiting one."""
    asker, target = edges[age]
    reached, todo = set[str](), [target]
    while todo:
        agent = todo.pop()
        if agent not in reached:
            reached.add(agent)
            todo += [to for by, to in edges[:age] if by == agent]
    return asker in reached


EDGES = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")).filter(lambda e: e[0] != e[1]), max_size=12)


@given(EDGES)
def test_a_probe_comes_back_to_the_youngest_wait_of_each_circle_and_to_no_other(edges: list[Edge]) -> None:
    cores = {name: core_of(name, edges) for name in "abcdef"}
    found = [age for age, (asker, _) in enumerate(edges) if returned(cores, asker, f"w{age}")]
    assert found == [age for age in range(len(edges)) if closes_a_circle(edges, age)]


@given(st.permutations("abcde"))
def test_of_one_circle_exactly_one_wait_ends(order: list[str]) -> None:
    edges = sorted(zip("abcde", "bcdea", strict=True), key=lambda edge: order.index(edge[0]))
    cores = {name: core_of(name, edges) for name in "abcde"}
    assert [age for age in range(5) if returned(cores, edges[age][0], f"w{age}")] == [4]


def active_of(core: Core) -> Active:
    assert core.active is not None
    return core.active


# --- what is handed on --------------------------------------------------------------------------------------------------
def probe_to_a() -> tuple[Core, Probe]:
    """`a` waits for `b`; `c`, which began later, waits for `a`."""
    core = core_of("a", [("a", "b"), ("c", "a")])
    return core, Probe(id="x", root="c", since=1.0, origin="1.1.0", sender="c", request="1.1.0")


def test_a_probe_is_handed_on_by_who_holds_its_request() -> None:
    core, probe = probe_to_a()
    (agent, onward) = handed_on(core, probe)[0]
    assert (agent, onward.sender, onward.request, onward.root) == ("b", "a", "1.0.0", "c")
    answered = structs.replace(core, active=structs.replace(active_of(core), caller=None))
    assert handed_on(answered, probe) == [], "the answer is on its way: nobody waits for this turn"


@pytest.mark.parametrize("where", ["next", "queue", "deferred"])
def test_a_request_is_held_wherever_it_waits(where: str) -> None:
    core, probe = probe_to_a()
    caller = Caller(ref="1", sender="c", tag="1.1.0", path=("c",))
    queued = Queued(ref="1", text="p", caller=caller)
    held: dict[str, object] = {"next": queued, "queue": (queued,), "deferred": {"1": Deferred(caller=caller, turn=1)}}
    ledger = structs.replace(core.ledger, **{where: held[where]})
    free = structs.replace(active_of(core), caller=None)
    assert len(handed_on(structs.replace(core, active=free, ledger=ledger), probe)) == 1
    told = structs.replace(ledger, **{where: _without_path(held[where])})
    assert handed_on(structs.replace(core, active=free, ledger=told), probe) == [], "a tagged tell never waits"


def _without_path(held: object) -> object:
    match held:
        case Queued(caller=Caller() as caller):
            return structs.replace(held, caller=structs.replace(caller, path=()))
        case (Queued() as item,):
            return (_without_path(item),)
        case {"1": Deferred(caller=caller) as entry}:
            return {"1": structs.replace(entry, caller=structs.replace(caller, path=()))}
    raise TypeError(held)


def test_what_does_not_wait_hands_nothing_on() -> None:
    core, probe = probe_to_a()
    done = Outcome(agent="b", ref="1", ok=True)
    for changed in (
        structs.replace(core, phase=Phase.DECIDING),
        structs.replace(core, ledger=structs.replace(core.ledger, turning=None)),
        structs.replace(core, active=structs.replace(active_of(core), key="inbox:9", mail=Mail(lane="inbox", seq=9))),
        structs.replace(
            core, ledger=structs.replace(core.ledger, waits={"w0": structs.replace(core.ledger.waits["w0"], outcome=done)})
        ),
        structs.replace(
            core, ledger=structs.replace(core.ledger, waits={"w0": structs.replace(core.ledger.waits["w0"], origin="")})
        ),
    ):
        assert open_waits(changed) == {} and handed_on(changed, probe) == []
