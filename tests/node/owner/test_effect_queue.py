"""When an effect is given up, and when it is tried for ever (docs/architecture.md#giving-up-an-effect)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from agentmesh.edge.failures import Uncertain
from agentmesh.errors import MailboxFull, Unavailable, WrongDomain
from agentmesh.records import Echo, Effect, Open, Resolve, SendMail, SetTimer, StartAgent
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.owner import effect_queue
from agentmesh_node.owner.effect_handlers import EffectHandlers, Refused
from agentmesh_node.owner.effect_queue import UNKNOWN_AFTER_S, EffectQueue
from support import eventually, run

NOW = 1e9
NOT_FOUND = Refused(ErrorBody(code="not_found", message="no such agent"))
MAIL = SendMail(to="b", lane="peer-notify", event="hello")
ANSWER = SendMail(to="b", lane="peer-notify", outcome=Outcome(agent="a", ref="1", ok=True, text="yes"))
WITHDRAWAL = SendMail(to="b", lane="peer-answer", event={"withdraws": "1.5.0"})
OUTCOME = Resolve(outcome=Outcome(agent="a", ref="1", ok=True, text="yes"))


class Script:
    """Stands in for the handlers: attempts end in `ends` one by one, the last one for ever; None is success."""

    agent = "a"

    def __init__(self, *ends: Exception | None, delivered: bool = False, blind: int = 0) -> None:
        self._ends = list(ends)
        self._delivered = delivered
        self._blind = blind
        self.attempts = 0
        self.looks = 0

    def resolve_soon(self, effect: Resolve, resolved: Callable[[Exception | None], None]) -> bool:
        return False

    async def perform(self, origin: str, entry: Open) -> None:
        self.attempts += 1
        end = self._ends[0] if len(self._ends) == 1 else self._ends.pop(0)
        if end is not None:
            raise end

    async def was_delivered(self, origin: str, effect: SendMail) -> bool:
        self.looks += 1
        if self.looks <= self._blind:
            raise Unavailable("no leader")
        return self._delivered


class Case:
    """One effect in an effect queue."""

    def __init__(self, script: Script, effect: Effect, *, doubtful: bool, age_s: float, window_s: float) -> None:
        self.script = script
        self.done: list[str] = []
        self.gave_up: list[str] = []
        self._effects = EffectQueue(
            cast("EffectHandlers", script),
            self.done.extend,
            lambda origin, error: self.gave_up.append(error.code),
            now=lambda: NOW,
            window_s=window_s,
        )
        self.add("1.1.0", effect, doubtful=doubtful, age_s=age_s)

    def add(self, origin: str, effect: Effect, *, doubtful: bool = False, age_s: float = 0.0) -> None:
        self._effects.add([(origin, Open(effect, "nonce", NOW - age_s))], doubtful=doubtful)

    async def until(self, condition: Callable[[Case], bool]) -> None:
        try:
            await eventually(lambda: condition(self))
        finally:
            await self._effects.close()


def settle(
    script: Script,
    effect: Effect = MAIL,
    *,
    doubtful: bool = True,
    age_s: float = 0,
    window_s: float = 0.05,
    condition: Callable[[Case], bool] = lambda case: bool(case.done or case.gave_up),
) -> Case:
    """What became of an effect, once `condition` holds: by default once it is closed."""

    async def main() -> Case:
        case = Case(script, effect, doubtful=doubtful, age_s=age_s, window_s=window_s)
        await case.until(condition)
        return case

    return run(main())


def tried(times: int) -> Callable[[Case], bool]:
    return lambda case: case.script.attempts >= times


def test_a_refusal_of_what_was_surely_not_done_is_the_end_of_it() -> None:
    case = settle(Script(NOT_FOUND), doubtful=False, window_s=3600)
    assert (case.gave_up, case.script.attempts, case.script.looks) == (["not_found"], 1, 0)


def test_what_may_have_been_done_is_not_given_up_before_the_window_is_over() -> None:
    case = settle(Script(NOT_FOUND), window_s=3600, condition=tried(4))
    assert (case.gave_up, case.done) == ([], [])
    assert case.script.looks >= 3, "each refusal looks for it"


def test_what_may_have_been_done_is_given_up_when_refusals_have_lasted_the_window() -> None:
    case = settle(Script(NOT_FOUND))
    assert (case.gave_up, case.done) == (["not_found"], [])


def test_what_left_a_trace_is_done() -> None:
    case = settle(Script(NOT_FOUND, delivered=True), window_s=3600)
    assert (case.gave_up, case.done) == ([], ["1.1.0"])


def test_an_attempt_of_unknown_fate_makes_an_effect_doubtful() -> None:
    case = settle(Script(Uncertain("?"), NOT_FOUND), doubtful=False, window_s=3600, condition=tried(4))
    assert (case.gave_up, case.done) == ([], [])


def test_while_nobody_can_tell_whether_it_was_done_it_is_tried_again() -> None:
    case = settle(Script(NOT_FOUND, blind=3))
    assert case.gave_up == ["not_found"]
    assert case.script.looks > 3


def test_a_full_mailbox_is_tried_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effect_queue, "PATIENCE_S", 0.05)
    case = settle(Script(MailboxFull("full")), doubtful=False, window_s=3600)
    assert case.gave_up == ["mailbox_full"]
    assert case.script.attempts > 1


@pytest.mark.parametrize("effect", [ANSWER, OUTCOME, WITHDRAWAL], ids=["answer", "outcome", "withdrawal"])
@pytest.mark.parametrize("age_s", [0, 2 * UNKNOWN_AFTER_S], ids=["new", "old"])
def test_answers_outcomes_and_withdrawals_are_never_given_up(effect: Effect, age_s: float) -> None:
    case = settle(Script(MailboxFull("full")), effect, age_s=age_s, window_s=0, condition=tried(4))
    assert (case.gave_up, case.done) == ([], [])


@pytest.mark.parametrize("effect", [MAIL, StartAgent(name="b", kind="B")], ids=["mail", "start"])
def test_after_six_days_nobody_can_tell_whether_it_was_done(effect: Effect) -> None:
    case = settle(Script(None), effect, age_s=UNKNOWN_AFTER_S + 1)
    assert (case.gave_up, case.done, case.script.attempts) == (["unknown"], [], 0)


def test_after_six_days_its_own_process_still_knows_that_it_was_not_done() -> None:
    case = settle(Script(Unavailable("no leader"), None), doubtful=False, age_s=UNKNOWN_AFTER_S + 1)
    assert (case.gave_up, case.done) == ([], ["1.1.0"])


def test_an_old_timer_is_set_again() -> None:
    case = settle(Script(None), SetTimer(id="t", due=1.0, event=1), age_s=2 * UNKNOWN_AFTER_S)
    assert case.done == ["1.1.0"]


def test_closing_leaves_the_effect_open() -> None:
    async def main() -> None:
        case = Case(Script(Unavailable("no leader")), MAIL, doubtful=False, age_s=0, window_s=1)
        await case.until(tried(2))
        attempts = case.script.attempts
        await asyncio.sleep(0)
        assert (case.done, case.gave_up, case.script.attempts) == ([], [], attempts)

    run(main())


# --- outcomes, sent without a task --------------------------------------------------------------------------------------
class Teller(Script):
    """Effect handlers that tell an outcome soon: `end` ends it."""

    def __init__(self, *ends: Exception | None) -> None:
        super().__init__(*ends)
        self.resolved: list[Callable[[Exception | None], None]] = []

    def resolve_soon(self, effect: Resolve, resolved: Callable[[Exception | None], None]) -> bool:
        self.resolved.append(resolved)
        return True


def telling(script: Teller, *, doubtful: bool = False) -> Case:
    return Case(script, OUTCOME, doubtful=doubtful, age_s=0, window_s=3600)


def test_an_outcome_is_sent_without_a_task() -> None:
    async def main() -> None:
        case = telling(script := Teller(None))
        assert case.done == [] and script.attempts == 0
        script.resolved[0](None)
        assert case.done == ["1.1.0"] and script.attempts == 0
        await case.until(lambda case: True)

    run(main())


@pytest.mark.parametrize("error", [Uncertain("?"), Unavailable("no leader")])
def test_an_outcome_that_could_not_be_sent_is_tried_as_any_other_effect(error: Exception) -> None:
    async def main() -> None:
        case = telling(script := Teller(Unavailable("no leader"), None))
        script.resolved[0](error)
        await case.until(lambda case: case.done == ["1.1.0"])
        assert script.attempts == 2

    run(main())


def test_what_follows_an_outcome_on_its_target_waits_for_it() -> None:
    async def main() -> None:
        case = telling(script := Teller(None))
        case.add("1.2.0", Echo(ref="1", of="0"))
        await asyncio.sleep(0)
        assert script.attempts == 0
        script.resolved[0](None)
        await case.until(lambda case: case.done == ["1.1.0", "1.2.0"])

    run(main())


def test_an_outcome_that_a_former_owner_may_have_sent_is_not_sent_soon() -> None:
    async def main() -> None:
        case = telling(script := Teller(None), doubtful=True)
        await case.until(lambda case: case.done == ["1.1.0"])
        assert script.resolved == []

    run(main())


def test_an_end_that_comes_after_the_close_is_nobodys() -> None:
    async def main() -> None:
        case = telling(script := Teller(None))
        await case.until(lambda case: True)
        script.resolved[0](None)
        script.resolved[0](Unavailable("no leader"))
        assert (case.done, script.attempts) == ([], 0)

    run(main())


@pytest.mark.case(266)
def test_what_another_mesh_has_stored_is_not_sent_again_and_given_up_unless_it_arrived_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    astray = Script(WrongDomain("stored elsewhere"))
    case = settle(astray, doubtful=False)
    assert (case.done, case.gave_up, astray.attempts) == ([], ["wrong_domain"], 1)
    both = Script(WrongDomain("stored elsewhere"), delivered=True)
    case = settle(both, doubtful=False)
    assert (case.done, case.gave_up, both.attempts) == (["1.1.0"], [], 1)
    assert [record for record in caplog.records if "went astray" in record.getMessage()]


@pytest.mark.case(266)
def test_an_answer_that_another_mesh_has_stored_is_tried_further() -> None:
    script = Script(WrongDomain("stored elsewhere"), None)
    case = settle(script, ANSWER, doubtful=False)
    assert (case.done, script.attempts) == (["1.1.0"], 2)
