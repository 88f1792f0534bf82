"""An owner's loop: a defect at a record's end leaves no agent busy for ever, and effects after a stall meet the fence first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from agentmesh.errors import Fenced
from agentmesh.turn.values import Append, Command, Committed, Core, Emit, Input, Perform, Phase, Rest
from agentmesh_node.owner import loop
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.journal_writer import Ending
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.owner.owner import Owner
from agentmesh_node.run_queue import RunQueue
from agentmesh_node.services import Services
from support import run

COMMITTED = Committed(1, "id", 0.0)


class Parts:
    """What a driver needs of its owner, its services and its appender."""

    name = "a"
    closed = False
    runner = None

    def __init__(self) -> None:
        self.rounds = RunQueue(cast("Any", self))
        self.reading = False
        self.stalled = False
        self.ends: list[OwnershipLost | None] = []
        self.done: list[str] = []
        self.appended: Callable[[Committed | Ending], None] = lambda end: None

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def now(self) -> float:
        return 0.0

    def stir(self) -> None:
        pass

    def end(self, lost: OwnershipLost | None) -> None:
        self.ends.append(lost)

    def append_soon(self, command: Append, core: Core, appended: Callable[[Committed | Ending], None]) -> bool:
        self.appended = appended
        return True

    async def check_fence(self) -> None:
        self.done.append("checked")
        raise Fenced("another owner has appended")


def driver(parts: Parts, monkeypatch: pytest.MonkeyPatch, *steps: list[Command]) -> OwnerLoop:
    """A driver whose machine answers its inputs with `steps`."""
    answers = iter(steps)
    core = cast("Core", type("Core", (), {"phase": Phase.IDLE})())

    def step(before: Core, item: Input, now: float) -> tuple[Core, list[Command]]:
        return before, next(answers)

    monkeypatch.setattr(loop, "advance", step)
    perform: dict[type, Any] = {Emit: lambda owner, command: None, Perform: lambda owner, command: parts.done.append("performed")}
    monkeypatch.setattr(loop, "JournalWriter", lambda services, agent, committed: parts)
    made = OwnerLoop(cast("Owner", parts), cast("Services", parts), perform)
    made.core = core
    return made


def append() -> Append:
    return Append(kind="turn", change=cast("Any", None))


def test_a_defect_at_a_records_end_ends_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        parts = Parts()
        made = driver(parts, monkeypatch, [append()])
        made.feed(Rest())
        await asyncio.sleep(0)
        assert vars(made)["busy"] and parts.ends == []

        def fail(command: Append) -> None:
            raise RuntimeError("a span processor")

        monkeypatch.setattr(made, "_end_span", fail)
        parts.appended(COMMITTED)
        assert not made.busy
        assert [end is not None and end.reason for end in parts.ends] == ["a defect"]

    run(main())


@pytest.mark.case(204)
@pytest.mark.parametrize("stalled", [False, True])
def test_effects_after_a_stall_meet_the_fence_first(monkeypatch: pytest.MonkeyPatch, stalled: bool) -> None:
    async def main() -> None:
        parts = Parts()
        made = driver(parts, monkeypatch, [append()], [Perform(())])
        made.feed(Rest())
        await asyncio.sleep(0)
        parts.appended(COMMITTED)
        parts.stalled = stalled  # behind the acknowledgement: another agent's code has held the loop
        await asyncio.sleep(0)
        assert parts.done == (["checked"] if stalled else ["performed"])
        assert len(parts.ends) == stalled
        assert not made.busy

    run(main())
