"""Who has sent a request is believed only where a server has said it, and makes the ids of callers their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agentmesh.carried import Carried, carried_in
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.identity import Chain, Party, handed_on, told, user_of, whole
from agentmesh.outcomes import Asked, answers, id_in_outcome
from agentmesh.subjects import LANES, WAYS, Subjects, WayIn
from agentmesh.wire import Outcome
from agentmesh_node.gateway.requesters import (
    REQUEST_INFO,
    UNVERIFIED,
    Requester,
    chain_of,
    id_for,
    lane_for,
    own_address,
    received,
    requester_of,
)

SUBJECTS = Subjects("mesh")
IMPORTED = WayIn("ask", "coder", imported=True)
OPEN = WayIn("ask", "coder", imported=False)


def test_each_way_is_found_again_in_its_subject() -> None:
    for way in WAYS:
        for agent in ("coder", "team-a.coder", "caller", "ask.tell"):
            assert SUBJECTS.parse_way(SUBJECTS.way(way, agent)) == WayIn(way, agent, imported=False)
            assert SUBJECTS.parse_way(SUBJECTS.caller(way, agent)) == WayIn(way, agent, imported=True)
    assert SUBJECTS.parse_way("mesh.inbox.coder") is None and SUBJECTS.parse_way("mesh.caller.inbox.coder") is None


@pytest.mark.case(621)
@pytest.mark.parametrize(
    ("way_in", "info", "found"),
    [
        (IMPORTED, '{"acc":"CALLERS","user":"shop","rtt":1}', Requester("CALLERS", "shop")),
        (IMPORTED, '{"acc":"AC7","user":"UB5","name_tag":"shop"}', Requester("AC7", "shop")),
        (IMPORTED, '{"acc":"CALLERS","rtt":1}', Requester("CALLERS", None)),
        (IMPORTED, '{"acc":"","user":""}', UNVERIFIED),
        (IMPORTED, "no JSON", UNVERIFIED),
        (IMPORTED, '{"acc":7}', UNVERIFIED),
        (IMPORTED, "[" * 100_000, UNVERIFIED),
        (OPEN, '{"acc":"CALLERS","user":"shop"}', UNVERIFIED),
    ],
)
def test_only_what_came_through_an_import_has_a_sender(way_in: WayIn, info: str, found: Requester) -> None:
    assert requester_of(way_in, {REQUEST_INFO: info}) == found
    assert requester_of(way_in, {}) == UNVERIFIED


@pytest.mark.case(660)
def test_outcomes_and_live_events_go_to_inboxes_of_the_caller_itself() -> None:
    shop = Requester("CALLERS", "shop")
    assert own_address("_INBOX.shop.x.1", "mesh", IMPORTED, shop) == "_INBOX.shop.x.1"
    for theirs in ("_INBOX.bank.x", "_INBOX.shop", "_INBOX.shopping.x", "_INBOX.x", "_R_.abcdef.ghijkl", "orders.new"):
        with pytest.raises(NotPermitted):
            own_address(theirs, "mesh", IMPORTED, shop)
        assert own_address(theirs, "mesh", OPEN, UNVERIFIED) == theirs, "inside one account nothing is known"
    for bad in ("mesh.inbox.coder", "$KV.x", "_INBOX.shop.*", "_INBOX.shop.>", ""):
        with pytest.raises(BadRequest):
            own_address(bad, "mesh", IMPORTED, shop)
    nobody = Requester("CALLERS", None)
    assert own_address("_INBOX.bank.x", "mesh", IMPORTED, nobody), "an import that does not share the user"
    with pytest.raises(NotPermitted):
        own_address("orders.new", "mesh", IMPORTED, nobody)
    certified = Requester("CALLERS", "CN=a shop")
    assert own_address("_INBOX.x", "mesh", IMPORTED, certified), "a name that no subject can hold"


@pytest.mark.case(622)
def test_equal_ids_of_two_callers_are_two_and_of_one_caller_are_one() -> None:
    callers = [Requester(a, u) for a in ("A", "A1", None) for u in ("u", "1u", None)]
    ids = {id_for(IMPORTED, one, "coder.order-7") for one in callers}
    assert len(ids) == len(callers), "each caller has a place of its own"
    assert id_for(IMPORTED, callers[0], "coder.order-7") in ids
    assert id_for(OPEN, UNVERIFIED, "coder.order-7") == "coder.order-7"
    for stored in ids:
        assert id_in_outcome(stored) == "coder.order-7", "outcomes name what the caller has sent"
        for named in (id_in_outcome(stored), stored):  # the second is an older build's
            outcome = Outcome(agent="coder", ref="7", ok=True, msg_id=named, stored=json.loads('"2026-12-01T00:00:00Z"'))
            assert answers(outcome, Asked(stored), 0.0)


def test_events_go_to_their_own_lane() -> None:
    ways = [way for way in WAYS if way != "poll"]
    assert {way: lane_for(WayIn(way, "a", imported=True), ()) for way in ways} == {
        "ask": "inbox",
        "tell": "inbox",
        "event-to": "notify",
    }


@pytest.mark.case(635)
def test_what_a_known_user_asks_goes_to_the_lanes_that_only_the_mesh_writes_to() -> None:
    known = Requester("CALLERS", "shop")
    chain = chain_of(IMPORTED, known)
    assert chain == (Party(kind="user", name="shop", account="CALLERS"),)
    assert {way: lane_for(WayIn(way, "a", imported=True), chain) for way in ("ask", "tell", "event-to")} == {
        "ask": "peer-inbox",
        "tell": "peer-inbox",
        "event-to": "peer-notify",
    }
    assert chain_of(OPEN, known) == () == chain_of(IMPORTED, UNVERIFIED), "nobody has said so"
    assert chain_of(IMPORTED, Requester("CALLERS", None)) == (Party(kind="user", account="CALLERS"),)
    assert chain_of(IMPORTED, Requester("CALLERS", "x" * 300))[0].name == "", "cut short it could be another's"


@pytest.mark.case(621)
def test_who_has_sent_a_request_is_read_once_and_inside_one_account_not_at_all() -> None:
    headers = {REQUEST_INFO: '{"acc":"CALLERS","user":"shop"}'}
    message = Message("mesh.caller.ask.coder", b"p", headers)
    assert received(IMPORTED, message) == (IMPORTED, message, Requester("CALLERS", "shop"))
    assert received(OPEN, message).requester is UNVERIFIED


SECURITY = Path(__file__).parents[3] / "docs" / "security.md"
SHARED = '{"acc":"MESH_CALLERS","user":"shop"}'
FORGED = {REQUEST_INFO: SHARED, **Carried(chain=user_of("MESH_CALLERS", "shop")).headers()}


def asked(way_in: WayIn, info: str) -> Chain:
    """The chain of what the gateway makes of a request that says this of its sender."""
    chain = chain_of(way_in, requester_of(way_in, {REQUEST_INFO: info}))
    return read(lane_for(way_in, chain), Carried(chain=chain).headers(), None)


def read(lane: str, headers: dict[str, str], sender: str | None) -> Chain:
    """The chain of mail in this lane, as its agent sees it."""
    found, _ = carried_in(headers, prompt=True, trusted=LANES[lane].trusted, stored_at=0.0)
    return whole(found.chain, sender)


def by_boss(chain: Chain) -> Chain:
    return read("peer-inbox", Carried(chain=handed_on(chain, "boss")).headers(), "boss")


@pytest.mark.case(683)
def test_the_page_says_for_each_way_in_what_is_known() -> None:
    known = {
        "an import to `mesh.caller.*` that says `share: true`": asked(IMPORTED, SHARED),
        "the same without `share`": asked(IMPORTED, '{"acc":"MESH_CALLERS"}'),
        "`mesh.ask` and its like inside": asked(OPEN, SHARED),
        "`mesh.inbox` or `mesh.notify`, published straight": read("inbox", FORGED, None),
        "a turn or an event of agent `boss` that was for a user": by_boss(user_of("MESH_CALLERS", "shop")),
        "a turn or an event of agent `boss` without a known user": by_boss(()),
        "agent `boss` of its own accord": by_boss(()),
        "the agent itself (`Prompt`)": (),  # tests/mesh/turn/test_callers.py
    }
    table = SECURITY.read_text().partition("<!-- ways in")[2].partition("<!-- end of ways in")[0]
    rows = re.findall(r"^\| (?!a request|---)(.+?) \| (.+?) \|$", table, re.M)
    assert [way for way, _ in rows if not way.startswith(tuple(known))] == [] and len(rows) == len(known)
    for (way, tells), (ours, chain) in zip(rows, known.items(), strict=True):
        assert way.startswith(ours)
        assert tells.partition("`")[2].partition("`")[0] == told(chain), way
