"""The run of an owner's turn: its prompt task, its watchdog, its live events and its steps."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from agentmesh.records import Resolve
from agentmesh.turn.step_values import StepTaken, WaitOver
from agentmesh.turn.values import Input, RunTurn, Watchdog
from agentmesh_node.owner.cycle_probes import CycleProber
from agentmesh_node.services import Services
from agentmesh_node.turns.live_events import TurnEventStream
from agentmesh_node.turns.turn_steps import TurnSteps

if TYPE_CHECKING:
    from agentmesh_node.owner.owner import Owner
    from agentmesh_node.turns.runner import Runner


class TurnRun:
    """What runs beside the owner's inputs, so that it can be killed. One turn at a time."""

    def __init__(self, owner: Owner, services: Services) -> None:
        self._owner = owner
        self._s = services
        self._watchdog: asyncio.TimerHandle | None = None
        self._live: TurnEventStream | None = None
        self.steps: TurnSteps | None = None
        """The running, or the last, turn's."""

    @functools.cached_property
    def prober(self) -> CycleProber:
        """Made when it is needed: most agents never wait in mid-turn."""
        return CycleProber(self._owner, self._s)

    @property
    def _runner(self) -> Runner:
        runner = self._owner.runner
        assert runner is not None
        return runner

    def start(self, command: RunTurn) -> None:
        """Start the prompt task. Its end is fed to the owner; a quick one has ended when this returns."""
        owner, number = self._owner, command.number
        self._live = TurnEventStream.open(self._s, owner.name, command, owner.claim.generation)
        self.steps = TurnSteps(self._s, command, owner.feed, self._begin_to_wait)
        if self._runner.start_turn(command, self._ended, self._live.event if self._live else None, self.steps):
            self._watchdog = asyncio.get_running_loop().call_later(command.watchdog_s, self._late, number)

    def _late(self, number: int) -> None:
        self._owner.feed(Watchdog(number, self._runner.spent()))

    def _begin_to_wait(self) -> None:
        self.prober.arm()

    def _ended(self, item: Input) -> None:
        self._rest()
        self._owner.feed(item)

    async def kill(self) -> None:
        """End the prompt task; nothing of it runs on."""
        self._stop_watchdog()
        await self._runner.kill_turn()
        self._rest()

    def _rest(self) -> None:
        self._stop_watchdog()
        if self.steps is not None:
            self.steps.close()

    def _stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def step_taken(self, command: StepTaken) -> None:
        """The journal has a step, or refuses it."""
        assert self.steps is not None
        self.steps.step_taken(command)
        if self._live is not None:
            self._live.step = command.steps

    def wait_over(self, command: WaitOver) -> None:
        """A wait of the turn has its outcome."""
        assert self.steps is not None
        self.steps.wait_over(command)

    def tell_outcome(self, effect: Resolve) -> None:
        """End the live events of a request with its outcome."""
        TurnEventStream.close_with(self._s, self._owner.name, effect, self._owner.claim.generation, self._live)
