"""Circles of agents that wait for each other, against all simple circles of small random graphs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh_client.results import WaitEntry
from agentmesh_client.wait_circles import circles

AGENTS = "abcdef"
TIME = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)

edges = st.lists(st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS), st.booleans()), max_size=14)
"""Who waits, for whom, and whether in the middle of a turn."""


def wait(waiter: str | None, agent: str, **fields: Any) -> WaitEntry:
    return WaitEntry(
        **{"waiter": waiter, "agent": agent, "kind": "tag", "stage": "queued", "state": "running", "ref": "1", **fields}
    )


def waits_of(drawn: list[tuple[str, str, bool]]) -> list[WaitEntry]:
    return [wait(waiter, agent, kind="turn" if turn else "tag") for waiter, agent, turn in drawn]


def simple_circles(pairs: set[tuple[str, str]]) -> set[tuple[str, ...]]:
    """All circles in which no agent stands twice, each beginning with its first agent by name."""
    found: set[tuple[str, ...]] = set()
    paths: list[tuple[str, ...]] = [(agent,) for agent in AGENTS]
    while paths:
        path = paths.pop()
        for waiter, agent in pairs:
            if waiter != path[-1]:
                continue
            if agent == path[0]:
                found.add(path)
            elif agent > path[0] and agent not in path:
                paths.append((*path, agent))
    return found


@pytest.mark.case(503)
@given(edges)
def test_an_agent_is_in_a_circle_that_is_shown_exactly_if_there_is_one(drawn: list[tuple[str, str, bool]]) -> None:
    pairs = {(waiter, agent) for waiter, agent, _ in drawn}
    every = simple_circles(pairs)
    shown = circles(waits_of(drawn))
    members = [agent for circle in shown for agent in (*circle.agents, *circle.others)]
    assert len(members) == len(set(members)), "each agent is named once"
    assert set(members) == {agent for circle in every for agent in circle}
    for circle in shown:
        knot = {*circle.agents, *circle.others}
        assert all(set(other) <= knot or not set(other) & knot for other in every)


@given(edges)
def test_what_is_shown_is_a_circle_and_none_of_its_first_agent_is_shorter(drawn: list[tuple[str, str, bool]]) -> None:
    pairs = {(waiter, agent) for waiter, agent, _ in drawn}
    tight = simple_circles({(waiter, agent) for waiter, agent, turn in drawn if turn})
    for circle in circles(waits_of(drawn)):
        knot = {*circle.agents, *circle.others}
        inside = {other for other in tight if set(other) <= knot}
        assert circle.blocked == bool(inside)
        candidates = inside or simple_circles(pairs)
        assert circle.agents in candidates
        assert len(circle.agents) == min(len(other) for other in candidates if circle.agents[0] in other)


@given(edges, st.randoms(use_true_random=False))
def test_the_order_of_the_waits_does_not_matter(drawn: list[tuple[str, str, bool]], chance: Any) -> None:
    shuffled = list(drawn)
    chance.shuffle(shuffled)
    assert circles(waits_of(drawn)) == circles(waits_of(shuffled))


def test_a_long_circle_and_a_long_chain_need_no_deep_stack() -> None:
    size = 20_000
    chain = [wait(f"a{n}", f"a{n + 1}") for n in range(size)]
    assert circles(chain) == ()
    (circle,) = circles([*chain, wait(f"a{size}", "a0")])
    assert len(circle.agents) == size + 1 and circle.agents[0] == "a0"


def test_what_binds_nobody_makes_no_circle() -> None:
    there = wait("a", "b")
    assert circles([there, wait("b", "a", kind="tell")]) == (), "nobody is told its outcome"
    assert circles([there, wait("b", "a", stage="answered")]) == (), "it is about to end"
    assert circles([there, wait(None, "a")]) == ()
    (circle,) = circles([there, wait("b", "a", kind="tell", request="7")])
    assert circle.agents == ("a", "b"), "b has a request open until that is done"


def test_a_circle_of_exclusive_requests_is_blocked_and_ends_with_the_first_of_its_waits() -> None:
    later = TIME + dt.timedelta(hours=1)
    ring = [
        wait("a", "b", request="3", deadline=later),
        wait("b", "a", kind="turn", deadline=TIME),
        wait("client", "a", deadline=TIME - dt.timedelta(hours=1)),
    ]
    held = wait(None, "a", kind="ask", stage="deferred", ref="3", exclusive=True)
    (circle,) = circles([*ring, held])
    assert circle.blocked and circle.deadline == TIME
    (circle,) = circles([*ring, wait(None, "a", kind="ask", stage="deferred", ref="4", exclusive=True)])
    assert not circle.blocked, "b's answer is for another request of a's: a takes prompts"
