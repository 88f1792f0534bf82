"""The key of a request goes with it, wherever it waits (case 625)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.formats import FIRST
from agentmesh.keys import digest_of
from agentmesh.records import Echo, Resolve, decode_record
from agentmesh.turn.request_keys import digest_for
from agentmesh.turn.values import Cancel
from mesh.turn.harness import Rig, agent
from mesh.turn.test_deferral import Desk, Exclusive, deferring
from mesh.turn.test_errors import Retrying

KEY = digest_of("0123456789abcdef")
OTHER = digest_of("fedcba9876543210")

pytestmark = pytest.mark.case(625)


def cancel(bench: Rig, ref: str, key: str | None, token: str, *, tree: bool = False) -> Any:
    bench.feed(Cancel(ref, token, tree, key=key))
    return bench.answers.get(token)


def refused(answer: Any) -> bool:
    return bool(answer.get("error", {}).get("code") == "not_permitted")


def waiting() -> tuple[Rig, str]:
    bench = Rig()
    bench.prompt("runs")
    return bench, bench.prompt("waits", key=KEY)


def retried() -> tuple[Rig, str]:
    bench = Rig(Retrying)
    bench.auto_commit = True
    ref = bench.prompt("a", key=KEY)
    bench.fail()
    return bench, ref


@pytest.mark.parametrize("place", ["waiting", "open", "held back", "running", "tried again"])
def test_a_cancel_needs_the_key_wherever_the_request_is(place: str) -> None:
    if place == "waiting":
        bench, ref = waiting()
    elif place == "open":
        bench, ref = deferring(Desk, key=KEY)
    elif place == "held back":
        bench, _ = deferring(Exclusive)
        ref = bench.prompt("b", key=KEY)
    elif place == "running":
        bench = Rig()
        ref = bench.prompt("a", key=KEY)
    else:
        bench, ref = retried()
    tree = place in ("running", "tried again")
    assert digest_for(bench.core, ref) == KEY and digest_for(bench.core, "999") is None
    for number, key in enumerate((None, OTHER)):
        assert refused(cancel(bench, ref, key, f"no{number}", tree=tree)), place
        assert ref not in bench.outcomes
    assert cancel(bench, ref, KEY, "yes", tree=tree) == {"cancelled": True}
    assert bench.code(ref) == "cancelled"
    resolved = [effect for effect in bench.performed.values() if isinstance(effect, Resolve) and effect.outcome.ref == ref]
    assert [effect.key for effect in resolved] == [KEY], "the stored outcome bears it"


def test_a_takeover_keeps_the_key_of_an_open_request_and_of_an_answer_that_is_not_stored() -> None:
    bench, ref = deferring(Desk, key=KEY)
    assert decode_record(bench.journal[-1][1]).v == 2, "a build that would lose it reads no such record"
    bench.kill()
    assert digest_for(bench.core, ref) == KEY
    bench.auto_done = False
    bench.event(["reply", ref, "done"])
    bench.kill()
    assert digest_for(bench.core, ref) == KEY
    bench.do_effects()


def test_a_repetition_bears_its_own_key_and_naming_it_needs_both() -> None:
    bench = Rig()
    bench.prompt("runs")
    first = bench.prompt("a", key=KEY, msg_id="coder.k")
    again = bench.prompt("a", key=OTHER, msg_id="coder.k", repeats=first)
    assert refused(cancel(bench, again, OTHER, "c")), "it means what it repeats"
    bench.drain()
    echoes = [effect for effect in bench.performed.values() if isinstance(effect, Echo)]
    assert [(effect.of, effect.key) for effect in echoes] == [(first, OTHER)]


def test_while_an_older_build_runs_no_record_has_a_key() -> None:
    bench = Rig(agent())
    bench.core.writes = FIRST
    bench.prompt("runs")
    ref = bench.prompt("waits", key=KEY)
    assert refused(cancel(bench, ref, None, "c")), "what waits is in the mail, with its key"
    bench.drain()
    assert {decode_record(body).v for _, body in bench.journal} == {FIRST}
