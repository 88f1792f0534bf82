"""The run of an owner's turn: its prompt task, its watchdog, its live events and its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentmesh.records import Inner, Resolve
from agentmesh.tool_runs import ToolRun
from agentmesh.turn.step_values import StepTaken, WaitOver
from agentmesh.turn.values import HandOn, Input, RunTurn, TurnAttempt, Watchdog
from agentmesh_node.services import Services
from agentmesh_node.turns.boundary import Boundary
from agentmesh_node.turns.live_events import TurnEventStream
from agentmesh_node.turns.runner import Runner
from agentmesh_node.turns.turn_steps import TurnSteps


class TurnRun:
    """The running turn. It runs beside the owner's inputs, so that it can be killed. One turn at a time."""

    def __init__(
        self,
        services: Services,
        name: str,
        generation: int,
        *,
        feed: Callable[[Input], None],
        runner: Runner | None,
        begin_to_wait: Callable[[], None],
        on_lasting: Callable[[TurnAttempt], None] = lambda attempt: None,
    ) -> None:
        """
        Args:
            name: the agent's name.
            generation: the owner's generation.
            feed: takes inputs for the turn machine.
            runner: None if the node does not serve the agent's kind: then no turn begins.
            begin_to_wait: called when a turn begins to wait for an agent.
            on_lasting: called when a turn's prompt task does not end at once, where turns are traced.
        """
        self._s = services
        self._name = name
        self._generation = generation
        self._feed = feed
        self._runner = runner
        self._begin_to_wait = begin_to_wait
        self._on_lasting = on_lasting
        self._watchdog: asyncio.TimerHandle | None = None
        self._events: TurnEventStream | None = None
        self._number: int | None = None
        self.steps: TurnSteps | None = None
        """The steps of the running turn, or of the last one."""
        self._calls: Boundary | None = None
        self._leaving = False

    @property
    def waiting(self) -> bool:
        """Whether the running turn waits for an agent."""
        return self.steps is not None and self.steps.waiting

    def waits_for_halted(self, wait: str) -> bool:
        """Whether this wait lasts while the agent that was asked is halted."""
        return self.steps is not None and self.steps.waits_for_halted(wait)

    def tool(self) -> str | None:
        """The tool that the newest turn waits for: of several the one that was called last."""
        return self._runner.tool() if self._runner is not None else None

    @property
    def number(self) -> int | None:
        """The newest turn's number; None if there was none."""
        return self._number

    def spent(self) -> dict[str, Any] | None:
        """The newest turn's spending so far, as its outcome has it; None if it is nothing."""
        return self._runner.spent() if self._runner is not None else None

    def ran(self) -> tuple[ToolRun, ...]:
        """The tools that ran in the newest turn so far."""
        return self._runner.tools() if self._runner is not None else ()

    def inner(self) -> tuple[Inner, ...]:
        """The calls of the newest turn so far that no step has, where turns are traced."""
        return self._runner.inner() if self._runner is not None else ()

    def start(self, command: RunTurn) -> None:
        """Start the prompt task. Its end is fed to the machine; a quick task has ended when this returns."""
        assert self._runner is not None
        self._number = command.number
        self._events = TurnEventStream.open(self._s, self._name, command, self._generation)
        self.steps = TurnSteps(self._s, command, self._feed, self._begin_to_wait)
        self._calls = Boundary(self._reached, command.number, self._leaving)
        on_event = self._events.event if self._events else None
        if self._runner.start_turn(command, self._ended, on_event, self.steps, self._calls):
            self._watchdog = asyncio.get_running_loop().call_later(command.watchdog_s, self._on_watchdog, command.number)
            if command.attempt is not None:
                self._on_lasting(command.attempt)

    def leave(self) -> None:
        """The agent is about to be handed over: a turn that says which calls are open goes on elsewhere behind them."""
        self._leaving = True
        if self._calls is not None:
            self._calls.leave()

    @property
    def movable(self) -> bool:
        """Whether the running turn, or the last one, tells of its calls: then it may go on elsewhere."""
        return self._calls is not None and self._calls.told

    def tell_handed_on(self) -> None:
        """Tell the turn's reader, once, that it goes on elsewhere, and that nothing of it is void."""
        events, self._events = self._events, None
        if events is not None:
            events.send({"type": "handover"}, though_full=True)

    def _reached(self, number: int) -> None:
        self._feed(HandOn(number))

    def _on_watchdog(self, number: int) -> None:
        self._feed(Watchdog(number, self.spent(), self.ran(), self.inner()))

    def _ended(self, item: Input) -> None:
        self._run_over()
        self._feed(item)

    async def kill(self) -> None:
        """End the prompt task, and everything that it has started."""
        self._stop_watchdog()
        if self._runner is not None:
            await self._runner.kill_turn()
        self._run_over()

    def _run_over(self) -> None:
        self._stop_watchdog()
        if self._calls is not None:
            self._calls.closed = True
        if self.steps is not None:
            self.steps.close()

    def _stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def step_taken(self, command: StepTaken) -> None:
        """Pass on that a step is committed, or refused."""
        assert self.steps is not None
        self.steps.step_taken(command)
        if self._events is not None:
            self._events.step = command.steps

    def wait_over(self, command: WaitOver) -> None:
        """Pass on that a wait has its outcome."""
        assert self.steps is not None
        self.steps.wait_over(command)

    def end_live_events(self, effect: Resolve) -> None:
        """End the live events of a request with its outcome."""
        TurnEventStream.close_with(self._s, self._name, effect, self._generation, self._events)
