"""Which prompt or event comes next, and which need no turn."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from agentmesh.agent import Idle
from agentmesh.records import Resolve
from agentmesh.turn import advance
from agentmesh.turn.next_input import NO_EVENT, choose, end_without_turn, next_event
from agentmesh.turn.values import Arrived, Emit
from agentmesh.wire import Mail, PromptBody
from mesh.turn.harness import Rig, agent


def waiting(*mails: Mail) -> Rig:
    """An idle agent for which these prompts and events have come, and which has not looked at them."""
    bench = Rig(agent(handle_event=lambda self, event, state: Idle(state)))
    bench.core.prompts = tuple(mail for mail in mails if mail.prompt is not None or mail.problem is not None)
    bench.core.events = tuple(mail for mail in mails if mail not in bench.core.prompts)
    return bench


def prompt(seq: int, **fields: object) -> Mail:
    return Mail(lane="inbox", seq=seq, prompt=PromptBody(prompt=f"p{seq}"), **fields)  # type: ignore[arg-type]


def test_prompts_are_chosen_in_the_order_of_the_stream_and_leave_what_waits() -> None:
    core = waiting(prompt(3), prompt(5)).core
    first, second = choose(core), choose(core)
    assert first is not None and second is not None
    assert [(one.ref, one.key, one.text) for one in (first, second)] == [("3", "inbox:3", "p3"), ("5", "inbox:5", "p5")]
    assert core.prompts == () and choose(core) is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, None),
        ({"deadline": 1000.0}, "expired"),
        ({"deadline": 1000.5}, None),
        ({"for_life": "another"}, "stopped"),
        ({"for_life": "life-1"}, None),
        ({"problem": "cut"}, "bad_request"),
    ],
)
def test_a_prompt_that_is_late_malformed_or_meant_for_another_life_needs_no_turn(
    fields: dict[str, object], code: str | None
) -> None:
    mail = prompt(3, **fields)
    core = waiting(mail).core
    core.now, core.prompts = 1000.0, ()
    assert end_without_turn(core, mail) is (code is not None)
    errors = [effect.outcome.error for effect in core.effects if isinstance(effect, Resolve)]
    assert [error.code for error in errors if error is not None] == ([] if code is None else [code])


def test_null_is_an_event_and_a_tick_of_a_timer_that_is_not_set_is_none() -> None:
    core = waiting(Mail(lane="notify", seq=3, event=None), Mail(lane="due", seq=4, schedule="mesh.timer.coder.t")).core
    assert next_event(core, handles=True) == (None, None)
    assert next_event(core, handles=True) == (NO_EVENT, None)
    assert core.events == () and (core.work.positions["notify"], core.work.positions["due"]) == (3, 4)


class Unseen:
    """Mail that waits, and that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"mail that waits was looked at ({name})")


@pytest.mark.case(701)
def test_one_more_prompt_costs_no_look_at_those_that_wait() -> None:
    bench = Rig()
    bench.prompt("runs")
    bench.prompt("waits")
    crowd: tuple[Any, ...] = tuple(Unseen() for _ in range(900))
    core = replace(bench.core, prompts=(*crowd, *bench.core.prompts))
    after, commands = advance(core, Arrived((prompt(8), prompt(9))), bench.now)
    assert after.prompts[:900] == crowd and [mail.seq for mail in after.prompts[900:]] == [2, 8, 9]
    depths = [c.fields["depth"] for c in commands if isinstance(c, Emit) and c.kind == "mailbox_queued"]
    assert depths == [902, 903]


@pytest.mark.case(701)
def test_prompts_that_come_out_of_order_or_again_are_filed_once_in_their_places() -> None:
    bench = Rig()
    bench.prompt("runs")
    bench.feed(Arrived((prompt(7), prompt(4), prompt(7))))
    bench.feed(Arrived((prompt(5), prompt(4), prompt(1), prompt(9), prompt(9))))
    assert [mail.seq for mail in bench.core.prompts] == [4, 5, 7, 9]
