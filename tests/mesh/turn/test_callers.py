"""On whose behalf a turn runs, through all that an owner does with its request; and who may ask (cases 635 to 637)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Agent, Defer, Idle, Init, Prompt
from agentmesh.identity import UNVERIFIED, Chain, Party
from agentmesh.records import SendMail
from mesh.turn.harness import Rig

SHOP = Party(kind="user", name="shop", account="CALLERS")
BANK = Party(kind="user", name="bank", account="CALLERS")
CODER = Party(kind="agent", name="coder")
BOSS = Party(kind="agent", name="boss")


SEEN: list[Chain] = []
"""The chains of the turns that were decided."""


class Asks(Agent[dict[str, Any]]):
    """Tells others what it is asked, in all ways."""

    def init_agent(self, options: Any) -> Any:
        return Init({})

    def handle_response(self, ref: str, response: Any, state: Any) -> Any:
        SEEN.append(self.request.chain)
        assert self.request.caller == (self.request.chain[0] if self.request.chain else None)
        if response.text == "defer":
            return Defer(state)
        self.tell("helper", "p")
        self.tell("helper", "p", detached=True)
        self.notify("helper", 1)
        return Prompt("more", state) if response.text == "chain" else Idle(state)

    def handle_error(self, ref: str, error: Any, state: Any) -> Any:
        return Prompt("again", state)

    def handle_event(self, event: Any, state: Any) -> Any:
        self.tell("helper", "event")
        return Idle(state)


def sent(rig: Rig) -> list[Chain]:
    return [effect.chain for effect in rig.performed.values() if isinstance(effect, SendMail)]


@pytest.mark.case(635)
@pytest.mark.parametrize(
    ("fields", "seen", "given"),
    [
        ({"lane": "inbox"}, (UNVERIFIED,), ()),
        ({"lane": "peer-inbox", "chain": (SHOP,)}, (SHOP,), (SHOP, CODER)),
        (
            {"lane": "peer-inbox", "sender": "boss", "origin": "1.1.0", "chain": (SHOP, BOSS)},
            (SHOP, BOSS),
            (SHOP, BOSS, CODER),
        ),
        ({"lane": "peer-inbox", "sender": "boss", "origin": "1.1.0"}, (UNVERIFIED, BOSS), ()),
    ],
)
def test_a_turn_knows_its_chain_and_hands_it_on(fields: dict[str, Any], seen: Chain, given: Chain) -> None:
    SEEN.clear()
    rig = Rig(Asks)
    rig.prompt("p", **fields)
    rig.finish("done")
    assert [seen] == SEEN
    assert sent(rig) == [given] * 3
    assert rig.core.ledger.history[-1].chain == fields.get("chain", ()), "the history says so"


@pytest.mark.case(635)
def test_a_request_keeps_its_chain_over_a_failed_try_a_deferral_and_the_death_of_its_owner() -> None:
    SEEN.clear()
    rig = Rig(Asks)
    rig.prompt("p", lane="peer-inbox", chain=(SHOP,))
    rig.kill()
    rig.fail("backend_error")
    rig.kill()
    rig.finish("defer")
    rig.kill()
    assert SEEN == [(SHOP,)]
    (entry,) = rig.core.ledger.deferred.values()
    assert entry.caller.chain == (SHOP,)
    rig.event({"n": 1}, lane="peer-notify", chain=(SHOP,))
    assert sent(rig) == [(SHOP, CODER)], "an event is handed on, too"


@pytest.mark.case(707)
def test_what_goes_wrong_is_told_live_with_its_chain() -> None:
    rig = Rig(Asks, callers=("shop",))
    rig.prompt("p", lane="peer-inbox", chain=(SHOP,))
    rig.fail("backend_error")
    rig.event({"n": 1}, lane="peer-notify", chain=(BANK,))
    rig.event({"n": 2})
    assert [fact["chain"] for fact in rig.facts("prompt_error")] == [(SHOP,)]
    rig.finish("done")
    assert [fact["chain"] for fact in rig.facts("dead_lettered")] == [(BANK,), ()]


@pytest.mark.case(683)
def test_what_an_agent_prompts_itself_is_for_nobody() -> None:
    SEEN.clear()
    rig = Rig(Asks)
    rig.prompt("p", lane="peer-inbox", chain=(SHOP,))
    rig.finish("chain")
    rig.finish("done")
    assert SEEN == [(SHOP,), ()] and sent(rig)[3:] == [()] * 3


@pytest.mark.case(637)
def test_who_may_not_ask_is_refused_before_a_turn_and_the_next_owner_says_the_same() -> None:
    rig = Rig(Asks, callers=("shop",))
    refused = rig.prompt("p")
    permitted = rig.prompt("q", lane="peer-inbox", chain=(SHOP,))
    rig.finish("done")
    error = rig.outcomes[refused].error
    assert error is not None and error.code == "not_permitted" and "no user is known" in error.message
    assert rig.outcomes[permitted].ok and rig.prompts == ["q"], "nothing was paid for the other"
    before = len(rig.calls)
    rig.event({"n": 1})
    assert len(rig.calls) == before, "an event is not handled"
    assert any(type(effect).__name__ == "Bury" for effect in rig.performed.values()), "but kept as a dead letter"
    rig.kill()
    assert rig.outcomes[refused].error == error


@pytest.mark.case(637)
def test_a_policy_that_raises_ends_nothing_but_the_request() -> None:
    def broken(request: Any) -> bool:
        raise KeyError(request.ref)

    rig = Rig(Asks, callers=broken)
    refused = rig.prompt("p")
    error = rig.outcomes[refused].error
    assert error is not None and error.code == "not_permitted" and "KeyError" in error.message
    assert rig.calls.count("terminate_agent") == 0
