"""Callers that go on asking while servers die, and what must hold of every one of their asks afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence

import msgspec

from agentmesh.errors import MeshError, Unavailable
from agentmesh.wire import Outcome
from live.mesh import PATIENCE_S, LocalMesh, ProcessMesh
from support import eventually

PERIOD_S = 0.05
"""Between two asks of one caller: some hundred prompts an agent, not thousands."""
SLACK_S = 30.0
"""What a loaded machine may add to a caller's timeout before it counts as a hang."""


class Call(msgspec.Struct):
    """One ask: what its caller was told."""

    agent: str
    text: str
    ref: str | None = None
    """It was acknowledged."""
    outcome: Outcome | None = None
    error: MeshError | None = None


class Traffic:
    """One caller for each agent. A caller that gets something else than an outcome or a typed error, or nothing within its
    timeout, fails the test."""

    def __init__(self, mesh: LocalMesh | ProcessMesh, agents: Sequence[str], timeout: float) -> None:
        self.calls: list[Call] = []
        self.timeout = timeout
        self._mesh = mesh
        self._agents = agents
        self._numbers = itertools.count()
        self._going = True
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask."""
        self._tasks = [asyncio.create_task(self._caller(agent)) for agent in self._agents]

    async def end(self) -> None:
        """Let every caller's last ask come to its end."""
        self._going = False
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Leave at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answered(self, count: int, what: str) -> None:
        """Wait until every agent has answered so many asks that are sent from now on."""
        first = next(self._numbers)

        def enough() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            new = Counter(c.agent for c in self.calls if c.outcome and c.outcome.ok and int(c.text) > first)
            return all(new[agent] >= count for agent in self._agents)

        await eventually(enough, PATIENCE_S, f"{count} answers of each agent {what}")

    async def _caller(self, agent: str) -> None:
        while self._going:
            call = Call(agent, str(next(self._numbers)))

            def accepted(ref: str, call: Call = call) -> None:
                call.ref = ref

            self.calls.append(call)
            async with asyncio.timeout(self.timeout + SLACK_S):
                try:
                    call.outcome = await self._mesh.client.ask_outcome(
                        agent, call.text, timeout=self.timeout, on_accepted=accepted
                    )
                except MeshError as error:
                    call.error = error
            await asyncio.sleep(PERIOD_S)

    def errors(self) -> list[MeshError]:
        """What callers were told that got no answer."""
        return [call.error for call in self.calls if call.error is not None]

    async def audit(self) -> None:
        """Each acknowledged prompt has taken effect once and has one outcome, which is what its caller saw; and no prompt has
        taken effect twice."""
        for agent in self._agents:
            await self._audit(agent, [call for call in self.calls if call.agent == agent])

    async def _audit(self, agent: str, calls: Sequence[Call]) -> None:
        last = await self._mesh.client.ask(agent, "last", timeout=PATIENCE_S)  # behind all that was stored before
        assert last.text == "last"
        await eventually(lambda: self._complete(agent, calls), PATIENCE_S, f"the outcomes of {agent}")
        state = (await self._mesh.client.status(agent, content=True, timeout=PATIENCE_S)).agent_state
        effects = Counter(state["prompts"])
        assert max(effects.values()) == 1, f"{agent}: {effects.most_common(3)}"
        lost = [call.text for call in calls if call.ref is not None and effects[call.text] != 1]
        assert not lost, f"{agent}: acknowledged and without effect: {lost}"

    async def _complete(self, agent: str, calls: Sequence[Call]) -> bool:
        """Whether every acknowledged request has its outcome."""
        try:
            stored = await self._mesh.results(agent)
        except Unavailable:
            return False  # an election: look again
        refs = Counter(outcome.ref for outcome in stored)
        assert max(refs.values()) == 1, f"{agent}: two outcomes of one request: {refs.most_common(3)}"
        texts = {outcome.ref: outcome.text for outcome in stored}
        for call in calls:
            assert call.ref not in texts or texts[call.ref] == call.text
            assert call.outcome is None or (call.outcome.ok and call.outcome.text == call.text)
        return all(call.ref in texts for call in calls if call.ref is not None)
