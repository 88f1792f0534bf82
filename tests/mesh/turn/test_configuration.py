"""`mesh set`: a running agent's configuration, one record between two turns (docs/agent.md#a-configuration-that-changes)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw, structs

from agentmesh.agent import Halt, Init
from agentmesh.budget import Limits
from agentmesh.configuration import KEPT, shown_in
from agentmesh.control_values import Adjustment
from agentmesh.errors import BackendError
from agentmesh.formats import FIRST
from agentmesh.registry_values import Restart, Spec
from agentmesh.turn.configuration import shown
from agentmesh.turn.values import Cancel, Configure, Phase
from mesh.turn.harness import Plain, Rig, agent

WATCHDOG = Adjustment(watchdog_s=60.0)


class Modelled(Plain):
    """An agent whose backend refuses one model."""

    refused: Any = None

    def init_agent(self, options: dict[str, Any]) -> Any:
        return Init([], backend={"model": "old", "effort": "low"})

    def change_options(self) -> Any:
        if self.refused is not None:
            raise self.refused
        return "s0"


def ask(rig: Rig, change: Adjustment, *, id: str = "r1", token: str = "t", **fields: Any) -> Any:
    rig.feed(Configure(id=id, change=change, token=token, **fields))
    return rig.answers.get(token)


@pytest.mark.case(464)
def test_what_a_start_asks_of_the_backend_goes_over_what_the_class_chooses() -> None:
    rig = Rig(Modelled, backend_options={"model": "new", "effort": None, "more": 1})
    assert rig.core.ledger.backend_options == {"model": "new", "more": 1}
    rig.kill()
    assert rig.core.ledger.backend_options == {"model": "new", "more": 1}
    ask(rig, Adjustment(backend_options={"model": "newer"}))
    assert rig.core.ledger.backend_options == {"model": "newer", "more": 1}


@pytest.mark.case(340)
def test_turns_use_what_was_set_in_one_record() -> None:
    rig = Rig()
    said = ask(rig, Adjustment(watchdog_s=60.0, budget={"usd": 2}, restart=Restart(max=1)))
    assert rig.kinds[-1] == "set" and rig.kinds.count("set") == 1
    assert said["set"] is True and said["configuration"]["watchdog_s"] == 60.0
    rig.prompt("p")
    assert rig.running().watchdog_s == 60.0 and rig.running().purse.limits == Limits(usd=2)
    rig.kill()
    assert rig.core.config.watchdog_s == 60.0 and rig.core.config.restart == Restart(max=1)


@pytest.mark.case(341)
def test_the_backend_takes_new_options_before_they_are_written() -> None:
    rig = Rig(Modelled, hold=("change_options",))
    assert ask(rig, Adjustment(backend_options={"model": "new", "effort": None})) is None
    assert rig.phase() == Phase.CONFIGURING and rig.kinds[-1] != "set"
    assert rig.held[0].args[1] == {"model": "new"}
    ref = rig.prompt("p")
    rig.release()
    assert rig.answers["t"]["set"] is True
    assert rig.core.ledger.backend_options == {"model": "new"}
    rig.finish()
    assert rig.answer(ref) == "P"


@pytest.mark.case(341)
def test_what_the_backend_refuses_changes_nothing() -> None:
    refusal = BackendError("no such model", details={"reason": "bad_options"})
    rig = Rig(type("Refusing", (Modelled,), {"refused": refusal}))
    before = rig.kinds
    said = ask(rig, Adjustment(backend_options={"model": "none"}))
    assert said["error"]["code"] == "backend_error" and said["error"]["details"] == {"reason": "bad_options"}
    assert "no such model" in said["error"]["message"]
    assert rig.kinds == before and rig.core.ledger.backend_options == {"model": "old", "effort": "low"}
    rig.prompt("p")
    rig.finish()
    assert rig.state == ["P"]


@pytest.mark.case(341)
def test_a_session_that_the_backend_repairs_for_its_new_options_is_kept() -> None:
    rig = Rig(agent(change_options=lambda self: {"thread": 2}))
    ask(rig, Adjustment(backend_options={"model": "new"}))
    assert rig.core.ledger.session == Raw(b'{"thread":2}')


@pytest.mark.case(342)
def test_a_change_waits_for_the_end_of_the_turn_and_comes_before_the_next_prompt() -> None:
    rig = Rig()
    rig.prompt("a")
    rig.prompt("b")
    rig.event("e")
    assert ask(rig, WATCHDOG) is None
    assert rig.running().watchdog_s == 600.0
    rig.finish()
    assert rig.answers["t"]["set"] is True
    assert rig.running().prompt == "b" and rig.running().watchdog_s == 60.0
    assert rig.kinds[-3:] == ["turn", "set", "event"] or rig.kinds[-2:] == ["turn", "set"]


@pytest.mark.case(342)
def test_what_is_refused_or_known_between_two_turns_holds_up_nothing() -> None:
    rig = Rig()
    ask(rig, WATCHDOG)
    rig.prompt("a")
    refs = [rig.prompt("b"), rig.prompt("c"), rig.prompt("d")]
    ask(rig, WATCHDOG, id="r2", token="same")
    rig.finish()
    ask(rig, WATCHDOG, id="r3", token="expects", expect="other")
    rig.finish()
    ask(rig, WATCHDOG, id="r1", token="again")
    rig.drain()
    assert rig.answers["same"]["set"] is False
    assert rig.answers["expects"]["error"]["code"] == "conflict"
    assert rig.answers["again"]["set"] is True
    assert [rig.answer(ref) for ref in refs] == ["B", "C", "D"] and rig.kinds.count("set") == 1


@pytest.mark.case(342)
def test_a_halted_and_a_failed_agent_can_be_set_and_stay_so() -> None:
    rig = Rig(agent(handle_response=lambda self, ref, response, state: Halt(state)))
    rig.prompt("p")
    rig.finish()
    assert rig.halted() and ask(rig, WATCHDOG)["set"] is True and rig.halted()

    def boom(self: Any, ref: str, response: Any, state: Any) -> Any:
        raise RuntimeError("boom")

    rig = Rig(agent(handle_response=boom), restart=Restart(max=0))
    rig.prompt("p")
    rig.finish()
    assert rig.phase() == Phase.FAILED
    assert ask(rig, Adjustment(backend_options={"model": "new"}, watchdog_s=60.0))["set"] is True
    assert rig.phase() == Phase.FAILED and rig.shown() == "failed"
    rig.kill()
    assert rig.phase() == Phase.FAILED and rig.core.config.watchdog_s == 60.0
    assert rig.resume() == {"resumed": True}
    assert rig.running().watchdog_s == 60.0


@pytest.mark.case(342)
def test_a_failed_agent_that_is_being_set_is_resumed_afterwards() -> None:
    def boom(self: Any, ref: str, response: Any, state: Any) -> Any:
        raise RuntimeError("boom")

    rig = Rig(agent(handle_response=boom), restart=Restart(max=0), hold=("change_options",))
    rig.prompt("p")
    rig.finish()
    ask(rig, Adjustment(backend_options={"model": "new"}))
    assert rig.resume() is None
    rig.release()
    assert rig.answers["r"] == {"resumed": True} and rig.kinds[-2:] == ["set", "control"]


@pytest.mark.case(343)
def test_the_same_request_twice_is_one_change() -> None:
    rig = Rig()
    ask(rig, Adjustment(watchdog_s=60.0), id="r1")
    ask(rig, Adjustment(watchdog_s=90.0), id="r2", token="t2")
    assert ask(rig, Adjustment(watchdog_s=60.0), id="r1", token="t3")["set"] is True
    assert rig.core.config.watchdog_s == 90.0 and rig.kinds.count("set") == 2
    rig.kill()
    assert ask(rig, Adjustment(watchdog_s=60.0), id="r1", token="t4")["configuration"]["watchdog_s"] == 90.0
    assert ask(rig, Adjustment(watchdog_s=90.0), id="r5", token="t5")["set"] is False, "it is so already"
    assert rig.kinds.count("set") == 2


@pytest.mark.case(343)
def test_a_request_that_is_repeated_while_it_waits_is_answered_once() -> None:
    rig = Rig()
    rig.prompt("p")
    ask(rig, WATCHDOG, token="first")
    ask(rig, WATCHDOG, token="second")
    assert rig.answers == {"first": {"status": "pending"}}
    rig.finish()
    assert rig.answers["second"]["set"] is True and rig.kinds.count("set") == 1


@pytest.mark.case(343)
def test_a_change_whose_owner_dies_is_whole_or_was_not() -> None:
    for landed in (False, True):
        rig = Rig(Modelled)
        rig.auto_commit = False
        rig.feed(Configure(id="r1", change=Adjustment(backend_options={"model": "new"}, watchdog_s=60.0), token="t"))
        assert rig.appending is not None and rig.appending.kind == "set"
        rig.auto_commit = True
        rig.kill(landed=landed)
        assert (rig.core.config.watchdog_s, rig.core.ledger.backend_options["model"]) == (
            (60.0, "new") if landed else (600.0, "old")
        )
        assert ask(rig, Adjustment(backend_options={"model": "new"}, watchdog_s=60.0), token="t2")["set"] is True
        assert rig.core.config.watchdog_s == 60.0
        assert len(rig.core.ledger.sets) == 1


@pytest.mark.case(344)
def test_expect_compares_with_what_status_shows() -> None:
    rig = Rig(Modelled)
    tag = shown(rig.core, {"zone": "a"}).tag
    assert ask(rig, WATCHDOG, labels={"zone": "b"}, expect=tag)["error"]["code"] == "conflict"
    said = ask(rig, WATCHDOG, token="t2", labels={"zone": "a", "mesh.reads-2": "yes"}, expect=tag)
    assert said["set"] is True
    following = said["configuration"]["tag"]
    assert following == shown(rig.core, {"zone": "a"}).tag != tag
    late = ask(rig, Adjustment(watchdog_s=5.0), id="r2", token="t3", labels={"zone": "a"}, expect=tag)
    assert late["error"]["details"] == {"expected": tag, "found": following}
    assert ask(rig, WATCHDOG, id="r1", token="t4", labels={}, expect=tag)["set"] is True, (
        "it was done: nobody has changed it since"
    )


@pytest.mark.case(345)
def test_the_spec_shows_what_is_in_force() -> None:
    rig = Rig(Modelled)
    spec = Spec(kind="Coder", incarnation="life-1", status="running", labels={"zone": "a"}, watchdog_s=5.0)
    assert shown_in(spec, rig.core.ledger) is spec
    ask(rig, Adjustment(backend_options={"model": "new"}, budget={"usd": 1}))
    assert rig.shown() == "running", "it is shown behind the record"
    told = shown_in(spec, rig.core.ledger)
    assert told == structs.replace(spec, backend_options={"model": "new", "effort": "low"}, budget={"usd": 1.0}, sets=1)
    assert shown_in(told, rig.core.ledger) is told
    newer = structs.replace(told, sets=2, watchdog_s=7.0)
    assert shown_in(newer, rig.core.ledger) is newer, "a former owner does not put an older one back"
    ask(rig, Adjustment(budget={}), id="r2", token="t2")
    assert shown_in(told, rig.core.ledger).budget is None


@pytest.mark.case(346)
def test_the_journal_remembers_the_newest_changes_through_snapshots_and_the_end() -> None:
    rig = Rig(snapshot_records=3)
    rig.prompt("p")
    rig.finish()
    for number in range(KEPT + 3):
        ask(rig, Adjustment(watchdog_s=float(number + 1)), id=f"r{number}", token=f"t{number}")
    sets = rig.core.ledger.sets
    assert [info.number for info in sets] == list(range(4, KEPT + 4))
    assert (sets[-1].turn, sets[-1].values, sets[-1].node) == (1, {"watchdog_s": KEPT + 3.0}, "n1")
    ask(rig, Adjustment(backend_options={"script": ["x" * 500], "model": "m"}), id="long", token="long")
    values = rig.core.ledger.sets[-1].values["backend_options"]
    assert values == {"script": "(504 bytes)", "model": "m"}
    assert rig.facts("configured")[-1] == {"parts": ["backend_options"]}
    rig.stop()
    folded = rig.folded()
    assert rig.phase() == Phase.OVER and folded is not None and len(folded.sets) == KEPT
    rig.new_life()
    assert rig.core.ledger.sets == () and rig.core.config.watchdog_s == 600.0


@pytest.mark.case(347)
def test_while_an_older_build_lives_nothing_is_changed() -> None:
    rig = Rig()
    rig.core = structs.replace(rig.core, writes=FIRST)
    before = rig.kinds
    assert ask(rig, WATCHDOG)["error"]["code"] == "unavailable"
    assert rig.kinds == before and rig.core.config.watchdog_s == 600.0


def test_other_requests_do_not_wait_for_the_backend_but_a_stop_waits_a_moment() -> None:
    rig = Rig(Modelled, hold=("change_options",))
    ask(rig, Adjustment(backend_options={"model": "new"}))
    first, second = rig.prompt("p"), rig.prompt("q")
    rig.feed(Cancel(first, "c"))
    assert rig.answers["c"] == {"cancelled": True} and rig.code(first) == "cancelled"
    rig.stop()
    assert rig.phase() is Phase.CONFIGURING
    rig.release()
    rig.drain()
    assert rig.phase() == Phase.OVER and rig.code(second) == "stopped"
