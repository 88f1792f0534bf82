"""An owner's loop: a defect at a record's end leaves no agent busy for ever, effects after a stall meet the fence first, and what
ends with the owner ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agentmesh.callback_results import NONE
from agentmesh.errors import Fenced
from agentmesh.formats import RECORD_VERSION
from agentmesh.records import Change, Ledger, TurnInfo
from agentmesh.turn import new_core
from agentmesh.turn.values import (
    AnswerControl,
    Append,
    CancelCallback,
    Command,
    Committed,
    Config,
    Core,
    CutShort,
    Input,
    Interrupt,
    Perform,
    Rest,
    Retire,
    Returned,
    RunCallback,
    Start,
    Tick,
)
from agentmesh_node.formats import Formats
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.journal_writer import Ending, JournalWriter
from agentmesh_node.owner.loop import DEFECT, STOP_GRACE_S, Handlers, OwnerLoop
from agentmesh_node.run_queue import RunQueue
from node.reads import Reads
from sim.loop import SimLoop, run_sim
from support import run

COMMITTED = Committed(1, "id", 0.0)
RECORD = Append(kind="turn", change=Change(), turn=TurnInfo(ref="1", number=1, started=0.0, ended=0.0, node="n1", generation=1))


class AllRead(Formats):
    """All processes read the newest records."""

    def __init__(self) -> None:
        self.writes = RECORD_VERSION


class HeldRecords(JournalWriter):
    """Records that stay on their way until the test ends them with `appended`."""

    def __init__(self) -> None:
        self.late = False
        self.checks = 0
        self.appended: Callable[[Committed | Ending], None] = lambda end: None

    @property
    def stalled(self) -> bool:
        return self.late

    async def check_fence(self) -> None:
        self.checks += 1
        raise Fenced("another owner has appended")

    def append_soon(self, command: Append, core: Core, appended: Callable[[Committed | Ending], None]) -> bool:
        self.appended = appended
        return True


class Code:
    """User code whose callbacks take as long as the test wants."""

    turn_task = None

    def __init__(self) -> None:
        self.done = asyncio.Event()

    async def call(self, command: RunCallback) -> Input:
        await self.done.wait()
        return Returned(NONE)


class Rig:
    """A loop whose machine answers its inputs with `answers`, one after the other, and then with nothing."""

    def __init__(self, *answers: list[Command], code: Code | None = None) -> None:
        self.answers = list(answers)
        self.inputs: list[Input] = []
        self.ends: list[OwnershipLost | None] = []
        self.performed = 0
        self.noticed = 0
        self.records = HeldRecords()
        self.loop = OwnerLoop(
            "a",
            writer=self.records,
            work=RunQueue(Reads()).share("a"),
            now=lambda: 0.0,
            user_code=code,
            formats=AllRead(),
            machine=self._advance,
        )

    def begin(self, answer: Callable[[AnswerControl], None] = lambda command: None) -> OwnerLoop:
        core = new_core(Config(name="a", kind="Doll"), Ledger(incarnation="life"))
        handlers: Handlers = {Perform: self._perform, AnswerControl: answer}
        self.loop.begin(core, handlers, kill_turn=self._kill, on_input=self._notice, on_end=self.ends.append)
        return self.loop

    def busy(self) -> bool:
        return self.loop.busy

    def _advance(self, core: Core, item: Input, now: float) -> tuple[Core, list[Command]]:
        self.inputs.append(item)
        return core, self.answers.pop(0) if self.answers else []

    def _perform(self, command: Perform) -> None:
        self.performed += 1

    def _notice(self) -> None:
        self.noticed += 1

    async def _kill(self) -> None:
        raise AssertionError("no turn runs")


def test_inputs_wait_for_the_beginning_and_for_the_one_before() -> None:
    async def main() -> None:
        bench = Rig([RECORD])
        bench.loop.feed(Start())
        assert bench.inputs == []  # what the agent is must be known first
        loop = bench.begin()
        loop.feed(Rest())
        loop.feed(Retire())
        await asyncio.sleep(0)
        assert bench.inputs == [Start()]  # in order; its record is on its way
        assert bench.busy()
        bench.records.appended(COMMITTED)
        await asyncio.sleep(0)
        assert bench.inputs == [Start(), COMMITTED, Rest(), Retire()]
        assert loop.idle
        assert bench.noticed == 1

    run(main())


def test_a_defect_at_a_records_end_ends_the_owner() -> None:
    async def defect() -> Committed:
        raise RuntimeError("a defect of the journal's writer")

    async def main() -> None:
        bench = Rig([RECORD])
        loop = bench.begin()
        loop.feed(Rest())
        await asyncio.sleep(0)
        assert bench.busy()
        assert bench.ends == []
        bench.records.appended(defect)
        assert not bench.busy()
        assert bench.ends == [DEFECT]

    run(main())


@pytest.mark.case(204)
@pytest.mark.parametrize("stalled", [False, True])
def test_effects_after_a_stall_meet_the_fence_first(stalled: bool) -> None:
    async def main() -> None:
        bench = Rig([RECORD], [Perform(())])
        loop = bench.begin()
        loop.feed(Rest())
        await asyncio.sleep(0)
        bench.records.appended(COMMITTED)
        bench.records.late = stalled  # behind the acknowledgement: another agent's code has held the loop
        await asyncio.sleep(0)
        assert bench.records.checks == stalled
        assert bench.performed == (not stalled)
        assert len(bench.ends) == stalled
        assert not bench.busy()

    run(main())


def test_while_it_stops_a_callback_may_not_take_longer_than_the_grace() -> None:
    async def main(clock: SimLoop) -> None:
        bench = Rig([RunCallback(hook="handle_event", args=())], code=Code())
        loop = bench.begin()
        loop.feed(Rest())
        loop.later(STOP_GRACE_S, loop.limit_callbacks)
        await asyncio.sleep(STOP_GRACE_S - 0.1)
        assert bench.inputs == [Rest()]
        await asyncio.sleep(0.2)
        assert bench.inputs == [Rest(), CutShort()]
        assert bench.ends == []
        await loop.close()

    run_sim(main)


@pytest.mark.case(440)
@pytest.mark.parametrize("after_s", [0.0, 2.0])
def test_inputs_are_handled_beside_a_callback_and_one_may_cancel_it(after_s: float) -> None:
    async def main(clock: SimLoop) -> None:
        bench = Rig([RunCallback(hook="handle_event", args=())], [], [CancelCallback(after_s)], code=Code())
        loop = bench.begin()
        loop.feed(Rest())
        await asyncio.sleep(1.0)
        assert not bench.busy() and loop.callback is not None
        loop.feed(Tick())
        loop.feed(Interrupt("i"))
        await asyncio.sleep(after_s - 0.1 if after_s else 0)
        assert bench.inputs == [Rest(), Tick(), Interrupt("i")]
        await asyncio.sleep(0.2)
        assert bench.inputs == [Rest(), Tick(), Interrupt("i"), CutShort()]
        assert loop.idle and bench.ends == []

    run_sim(main)


@pytest.mark.case(440)
def test_a_callback_that_does_not_let_itself_be_cancelled_is_heard_in_the_end() -> None:
    class Stubborn(Code):
        async def call(self, command: RunCallback) -> Input:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return Returned(NONE)

    async def main(clock: SimLoop) -> None:
        bench = Rig([RunCallback(hook="handle_event", args=())], [CancelCallback()], [CancelCallback()], code=Stubborn())
        loop = bench.begin()
        loop.feed(Rest())
        await asyncio.sleep(0.1)
        loop.feed(Interrupt("i"))
        await asyncio.sleep(2)
        assert bench.inputs == [Rest(), Interrupt("i"), Returned(NONE)]
        assert loop.idle and bench.ends == [], "what came later is no command to this callback"

    run_sim(main)


def test_a_callback_that_ends_without_a_wait_comes_before_what_waits() -> None:
    async def main() -> None:
        code = Code()
        code.done.set()
        bench = Rig([RunCallback(hook="handle_event", args=())], code=code)
        loop = bench.begin()
        loop.feed(Rest())
        loop.feed(Tick())
        await asyncio.sleep(0)
        assert bench.inputs == [Rest(), Returned(NONE), Tick()]
        assert loop.idle and loop.callback is None

    run(main())


@pytest.mark.case(443)
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_does_not_wait_for_a_record_but_for_what_came_before_it(before: bool) -> None:
    async def main() -> None:
        answered: list[AnswerControl] = []
        bench = Rig([RECORD], [AnswerControl("i", {"interrupted": False}), CancelCallback(0.5)])
        loop = bench.begin(answered.append)
        loop.feed(Rest())
        await asyncio.sleep(0)
        if before:
            loop.feed(Tick())
        loop.feed(Interrupt("i"))
        assert bench.inputs == [Rest()] if before else [Rest(), Interrupt("i")]
        assert len(answered) == (not before)
        bench.records.appended(COMMITTED)
        await asyncio.sleep(0)
        assert bench.inputs == ([Rest(), COMMITTED, Tick(), Interrupt("i")] if before else [Rest(), Interrupt("i"), COMMITTED])

    run(main())


def test_what_is_under_way_ends_with_the_owner() -> None:
    async def main(clock: SimLoop) -> None:
        bench = Rig([RunCallback(hook="handle_event", args=())], code=Code())
        loop = bench.begin()
        fired: list[int] = []
        loop.later(1.0, lambda: fired.append(1))
        loop.call_off(loop.later(1.0, lambda: fired.append(2)))
        loop.later(3.0, lambda: fired.append(3))
        loop.feed(Rest())
        await asyncio.sleep(2.0)
        assert fired == [1]
        task = loop.callback
        assert task is not None
        await loop.close()
        assert task.cancelled()
        loop.feed(Retire())
        await asyncio.sleep(2.0)
        assert fired == [1]
        assert bench.inputs == [Rest()]
        assert bench.ends == []

    run_sim(main)
