"""On whose behalf a request is made, and who may ask (cases 635 to 637)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.errors import InvalidAgent
from agentmesh.identity import (
    MAX_CHAIN,
    UNVERIFIED,
    Chain,
    Party,
    as_meta,
    behalf,
    callers_of,
    chain_in,
    encoded,
    handed_on,
    refusal,
    told,
    user_of,
    whole,
)

SHOP = Party(kind="user", name="shop", account="CALLERS")
NAMELESS = Party(kind="user", account="CALLERS")
BOSS = Party(kind="agent", name="team-a.boss")


@pytest.mark.case(635)
def test_what_a_server_has_told_comes_back_from_its_header() -> None:
    chain: Chain = handed_on(handed_on(user_of("CALLERS", "shop"), "team-a.boss"), "coder")
    assert chain == (SHOP, BOSS, Party(kind="agent", name="coder")) and chain_in(encoded(chain)) == chain
    assert told(chain) == "user shop of CALLERS -> agent team-a.boss -> agent coder"
    long: Chain = chain
    for number in range(50):
        long = handed_on(long, f"a{number}")
    assert len(long) == MAX_CHAIN and long[0] == SHOP and long[-1].name == "a49", "never the user, and the newest agents"


@pytest.mark.case(635)
@pytest.mark.parametrize("text", ["", "x", "[]", "{}", "null", '[{"kind":"god"}]', '[{"kind":"user","name":"x"}]', "[" * 5000])
def test_what_is_no_chain_counts_as_none(text: str) -> None:
    assert chain_in(text) == ()
    agents: Chain = (BOSS,)
    assert chain_in(encoded(agents)) == chain_in(encoded((UNVERIFIED, BOSS))) == (), "nobody stands behind it"
    assert user_of(None, "shop") == user_of("", "shop") == user_of("caf\u00e9", "shop") == ()


def test_where_no_chain_came_the_lane_tells_what_is_known() -> None:
    assert whole((), None) == (UNVERIFIED,) and whole((), "team-a.boss") == (UNVERIFIED, BOSS) and whole((SHOP,), None) == (SHOP,)
    assert handed_on((), "coder") == ()


@pytest.mark.case(637)
@pytest.mark.parametrize(
    ("pattern", "permitted"),
    [
        ("shop", [(SHOP,), (SHOP, BOSS)]),
        ("user:sh*", [(SHOP,), (SHOP, BOSS)]),
        ("agent:shop", []),
        ("team-a.*", [(SHOP, BOSS), (NAMELESS, BOSS), (UNVERIFIED, BOSS)]),
        ("user:team-a.*", []),
        ("user:*", [(SHOP,), (SHOP, BOSS)]),
        ("account:CALLERS", [(SHOP,), (SHOP, BOSS), (NAMELESS,), (NAMELESS, BOSS)]),
        ("*", [(SHOP,), (SHOP, BOSS), (NAMELESS, BOSS), (UNVERIFIED, BOSS)]),
    ],
)
def test_a_pattern_is_for_the_user_or_for_the_agent_that_sends_it(pattern: str, permitted: list[Chain]) -> None:
    every: list[Chain] = [(SHOP,), (SHOP, BOSS), (NAMELESS,), (NAMELESS, BOSS), (UNVERIFIED,), (UNVERIFIED, BOSS)]
    policy = callers_of([pattern], "Doll")
    assert policy is not None
    assert [chain for chain in every if refusal(policy, chain, None) is None] == permitted


@pytest.mark.case(637)
def test_a_refusal_says_why() -> None:
    assert "no user is known" in str(refusal(("shop",), (UNVERIFIED,), None))
    assert "share: true" in str(refusal(("shop",), (NAMELESS,), None))
    other = str(refusal(("bank",), (SHOP,), None))
    assert "user shop of CALLERS" in other and "bank" in other and "share" not in other
    assert "nobody" in str(refusal((), (SHOP,), None))


@pytest.mark.case(637)
def test_a_function_decides_and_one_that_fails_refuses() -> None:
    def fails(request: object) -> bool:
        raise KeyError("gone")

    assert refusal(lambda request: True, (SHOP,), None) is None
    assert "refuses" in str(refusal(lambda request: False, (SHOP,), None))
    assert "KeyError" in str(refusal(fails, (SHOP,), None))
    assert refusal(lambda request: "yes", (SHOP,), None) is not None  # type: ignore[arg-type,return-value]


@pytest.mark.case(637)
@pytest.mark.parametrize("declared", ["shop", 3, [""], ["a b"], ["root:shop"], ["user:"], ["sh?p"], ["[ab]"], [3], ["a:b:c"]])
def test_a_bad_pattern_is_an_error_when_the_class_is_loaded(declared: Any) -> None:
    with pytest.raises(InvalidAgent, match="Doll"):
        callers_of(declared, "Doll")


@pytest.mark.case(637)
def test_a_function_that_cannot_be_called_with_the_request_is_an_error_when_the_class_is_loaded() -> None:
    async def later(request: object) -> bool:
        return True

    for wrong in (later, lambda self, request: True, lambda: True):
        with pytest.raises(InvalidAgent, match="Doll"):
            callers_of(wrong, "Doll")
    assert callers_of(None, "Doll") is None


@pytest.mark.case(682)
def test_a_tool_of_another_program_is_called_on_behalf_of_whom_another_agent_would_be_asked() -> None:
    coder = Party(kind="agent", name="coder")
    assert behalf((SHOP, BOSS), "coder") == (SHOP, BOSS, coder)
    for unknown in ((), (UNVERIFIED,), (UNVERIFIED, BOSS)):
        assert behalf(unknown, "coder") == (UNVERIFIED, coder)
    assert as_meta((SHOP, coder)) == json.loads(encoded((SHOP, coder))), "as the header has it"
