"""One request as a tree."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from agentmesh import semconv
from agentmesh.identity import Party
from agentmesh.trace.spans import Began, ToldSpan
from agentmesh.trace.tree import merged, tree_of, walk


def span(
    number: int, parent: int | None, op: str = "process", *, end: str | None = None, usd: float = 0.0, error: str = ""
) -> ToldSpan:
    attributes: dict[str, str | int | float | bool] = {semconv.COST: usd} if usd else {}
    if end is not None:
        attributes[semconv.ATTEMPT_END] = end
    begun = {"start": float(number), "end": number + 1.0, "agent": "a", "service": "A", "error": error}
    above = "" if parent is None else str(parent)
    return ToldSpan(trace="t", id=str(number), parent=above, name=op, op=op, attributes=attributes, **begun)  # type: ignore[arg-type]


def test_attempts_stand_below_their_message_and_a_dead_one_before_the_next() -> None:
    spans = [
        span(1, None),
        span(2, 1, "invoke_agent", end="lost", usd=0.25),
        span(3, 2, "chat", usd=0.25),
        span(4, 1, "invoke_agent", end="ok", usd=0.5),
    ]
    [top] = tree_of(spans)
    assert [(depth, branch.id, branch.ended, branch.died) for depth, branch in walk([top])] == [
        (0, "1", None, False),
        (1, "2", "lost", True),
        (2, "3", None, False),
        (1, "4", "ok", False),
    ]
    assert (top.all_usd, top.usd) == (0.75, 0.0)  # what an attempt costs has its model calls in it


def test_an_attempt_that_runs_is_shown_until_its_span_is_told() -> None:
    ids = {"trace": "t", "span": "2", "parent": "1", "agent": "a", "service": "A", "life": "l", "ref": "7", "input": "inbox:7"}
    owner = {"node": "n1", "generation": 1, "boot": "b"}
    began = Began(**ids, **owner, turn=3, started=2.0, crashes=1)  # type: ignore[arg-type]
    [top] = tree_of([span(1, None)], [began])
    [running] = top.below
    assert (running.end, running.attempt, running.node, running.turn) == (None, 2, "n1", 3)
    [top] = tree_of([span(1, None), span(2, 1, "invoke_agent", end="ok")], [began])
    assert top.below[0].end == 3.0


@pytest.mark.case(680)
def test_a_branch_says_on_whose_behalf_it_is() -> None:
    ids = {"trace": "t", "span": "2", "parent": "1", "agent": "a", "service": "A", "life": "l", "ref": "7", "input": "inbox:7"}
    shop = Party(kind="user", name="shop", account="CALLERS")
    began = Began(**ids, node="n1", generation=1, boot="b", turn=3, started=2.0, chain=(shop,))  # type: ignore[arg-type]
    [top] = tree_of([structs.replace(span(1, None), attributes={semconv.CHAIN: "user shop of CALLERS"})], [began])
    assert (top.chain, top.below[0].chain) == ("user shop of CALLERS",) * 2


def test_what_was_committed_counts_more_than_what_was_found() -> None:
    ok, lost = span(2, 1, "invoke_agent", end="ok"), span(2, 1, "invoke_agent", end="lost")
    assert merged([ok, lost])["2"] == merged([lost, ok])["2"] == ok


def test_what_has_no_parent_here_is_a_top_and_circles_are_flat() -> None:
    tops = tree_of([span(1, None), span(2, 99), span(3, 4), span(4, 3), span(5, 5)])
    assert sorted(branch.id for branch in tops) == ["1", "2", "3", "4", "5"]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(0, 9))
def test_each_span_stands_once_in_whatever_order_it_is_told(parents: list[int], seed: int) -> None:
    spans = [span(number, parent) for number, parent in enumerate(parents)]
    random.Random(seed).shuffle(spans)
    found = [branch.id for _, branch in walk(tree_of([*spans, *spans[:5]]))]
    assert sorted(found, key=int) == [str(number) for number in range(len(parents))]


def test_a_long_chain_is_no_deep_recursion() -> None:
    spans = [span(number, number - 1 if number else None) for number in range(5000)]
    assert max(depth for depth, _ in walk(tree_of(spans))) == 4999
