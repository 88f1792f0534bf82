"""What travels with a request: headers there and back, and what is left out where they would be too large (case 359)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.budget import Limits
from agentmesh.carried import (
    BUDGET,
    CHAIN,
    END_BY,
    MAX_BYTES,
    MAX_PATH,
    NOTHING_CARRIED,
    PATH,
    ROOT,
    Carried,
    carried_in,
    size_of,
)
from agentmesh.identity import MAX_NAME, Party, encoded

AGENT = st.text("abc-_7.", min_size=1, max_size=128).map(lambda text: text.strip(".") or "a")
TRACE = st.fixed_dictionaries(
    {"traceparent": st.just("00-" + "1" * 32 + "-" + "2" * 16 + "-01")},
    optional={"tracestate": st.text("ab=,", max_size=600), "baggage": st.text("ab=,", max_size=9000)},
)
SHOP = Party(kind="user", name="s" * MAX_NAME, account="A" * MAX_NAME)
CARRIED = st.builds(
    Carried,
    root=st.none() | AGENT.map(lambda name: f"{name}/17"),
    path=st.lists(AGENT, max_size=40).map(tuple),
    trace=st.just({}) | TRACE,
    deadline=st.none() | st.integers(0, 2**31).map(float),
    end_by=st.none() | st.integers(0, 2**31).map(float),
    budget=st.none() | st.builds(Limits, tokens=st.integers(0, 9999).map(float), usd=st.just(0.5)),
    chain=st.just(()) | st.lists(AGENT, max_size=40).map(lambda names: (SHOP, *(Party(kind="agent", name=n) for n in names))),
)


def read(headers: dict[str, str], *, prompt: bool = True, trusted: bool = True) -> Carried:
    found, problem = carried_in(headers, prompt=prompt, trusted=trusted, stored_at=None)
    assert problem is None
    return found


@pytest.mark.case(359)
@given(CARRIED)
def test_it_takes_four_kilobytes_at_most_and_what_fits_comes_back(carried: Carried) -> None:
    headers = carried.headers()
    assert size_of(headers) <= MAX_BYTES and all(value.isascii() for value in headers.values())
    back = read(headers)
    assert (back.root, back.end_by, back.budget) == (carried.root, carried.end_by, carried.budget)
    bounds = [bound for bound in (carried.deadline, carried.end_by) if bound is not None]
    assert back.deadline == min(bounds, default=None), "nothing need begin behind its end"
    assert back.path == carried.path[len(carried.path) - len(back.path) :] and bool(back.path) == bool(carried.path)
    assert back.trace.get("traceparent") == carried.trace.get("traceparent")
    assert back.chain[:1] == carried.chain[:1], "whom it is for is never left out"
    assert back.chain[1:] == carried.chain[len(carried.chain) - len(back.chain) + 1 :], "of the agents the newest stay"


@pytest.mark.case(359)
def test_what_is_left_out_first() -> None:
    trace = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tracestate": "s" * 500, "baggage": "b" * 3000}
    path = tuple(f"agent-{number:03d}" for number in range(MAX_PATH + 3))
    carried = Carried(trace=trace, path=path, root="a/1")
    assert set(carried.headers()) == {"traceparent", "tracestate", "baggage", PATH, ROOT}
    assert carried.headers()[PATH].split(",") == list(path[3:]), "the newest agents"
    long = tuple(name + "x" * 100 for name in path)
    assert set(Carried(trace=trace, path=long[:20], root="a/1").headers()) == {"traceparent", "tracestate", PATH, ROOT}
    cut = Carried(trace=trace, path=long, root="a/1").headers()
    assert set(cut) == {"traceparent", PATH, ROOT} and cut[PATH].split(",")[-1] == long[-1]
    assert 30 < len(cut[PATH].split(",")) < MAX_PATH or len(cut[PATH].split(",")) == MAX_PATH


@pytest.mark.case(359)
def test_of_baggage_whole_members_are_left_out_and_of_tracestate_all_but_the_meshs_own() -> None:
    trace = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tracestate": "mesh=3-990,a=" + "s" * 400}
    baggage = ",".join(f"k{i:02d}={'b' * 95}" for i in range(50))
    headers = Carried(trace={**trace, "baggage": baggage}).headers()
    assert headers["tracestate"] == trace["tracestate"] and size_of(headers) > MAX_BYTES - 100
    assert baggage.startswith(headers["baggage"] + ","), "no member is cut in two"
    path = tuple(f"agent-{number:03d}" + "x" * 110 for number in range(MAX_PATH))
    headers = Carried(trace={**trace, "baggage": baggage}, path=path).headers()
    assert headers["tracestate"] == "mesh=3-990" and "baggage" not in headers, "how long the trace is goes on"


def test_a_stranger_gives_neither_root_nor_path() -> None:
    headers = {ROOT: "boss/1", PATH: "boss", END_BY: "2026-12-01T00:00:00Z"}
    found = read(headers, trusted=False)
    assert (found.root, found.path) == (None, ()) and found.end_by is not None
    forged = {CHAIN: encoded((Party(kind="user", name="boss", account="A"),))}
    assert read(forged, trusted=False) == NOTHING_CARRIED and read(forged).chain, "nor whom it is for"


def test_only_a_prompt_has_an_end_and_a_budget() -> None:
    headers = {END_BY: "2026-12-01T00:00:00Z", BUDGET: '{"tokens":5}'}
    assert read(headers, prompt=False) == NOTHING_CARRIED.__replace__(deadline=None)


def test_what_cannot_be_read_is_said_and_the_rest_is_there() -> None:
    found, problem = carried_in({PATH: "a,b", END_BY: "soon"}, prompt=True, trusted=True, stored_at=None)
    assert found.path == ("a", "b") and problem is not None and "soon" in problem
