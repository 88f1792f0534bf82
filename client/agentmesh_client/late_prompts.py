"""Prompts that arrive after the end of the life that they were meant for (docs/architecture.md#the-end-of-a-life).

A stop answers all prompts that are in the lanes at that time. The leading supervisor finds a prompt that is stored after that
within a minute. A client that waits for its outcome need not wait so long: it asks a node for a sweep as soon as the spec shows
that the life is over. It listens to the spec anyway, so this costs an ask nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentmesh.control_values import ControlRequest
from agentmesh.edge.registry import Registry
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import UNANSWERED, Transport
from agentmesh.errors import MeshError, NotPermitted
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects
from agentmesh.wire import encode

FIRST_S = 0.1
"""Wait for the stop's own answers: with them most asks need no sweep."""
AGAIN_S = 1.0
TRIES = 5
"""How often a sweep is asked for; after that the leading supervisor finds what is left."""
REQUEST_S = 1.0
log = logging.getLogger("agentmesh.client")


class LatePrompts:
    """Asks nodes for sweeps. `waiting(agent, life)` says whether an ask of that life is pending; `look()` has stored outcomes
    looked up at once."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        *,
        waiting: Callable[[str, str], bool],
        look: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._registry = registry
        self._waiting = waiting
        self._look = look
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def seen(self, agent: str, spec: Spec) -> None:
        """Note a spec. Only `stopped` needs a sweep: a stopping agent still has an owner, and the owner of a next life answers
        prompts that were meant for the one before."""
        if spec.status == "stopped":
            self.ended(agent, spec.incarnation)

    def ended(self, agent: str, life: str) -> None:
        """That life is over: if asks of it are pending, have its late prompts swept."""
        key = (agent, life)
        if key in self._tasks or not self._waiting(agent, life):
            return
        task = asyncio.get_running_loop().create_task(self._have_swept(agent, life), name=f"sweep {agent}")
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self) -> None:
        """Ask for no more sweeps."""
        await cancel_and_wait(*self._tasks.values())

    async def _have_swept(self, agent: str, life: str) -> None:
        pause = FIRST_S
        for _ in range(TRIES):
            self._look()
            await asyncio.sleep(pause)
            if not self._waiting(agent, life):
                return
            await self._ask(agent)
            pause = AGAIN_S

    async def _ask(self, agent: str) -> None:
        """Ask one node, whichever answers, to sweep behind the agent's tombstone."""
        request = encode(ControlRequest(op="sweep", agents=(agent,)))
        try:
            nodes, _ = await self._registry.load("nodes.")
        except MeshError as error:
            log.debug("no node can be asked for a sweep now: %s", error)
            return
        for node in nodes:
            try:
                await self._transport.request(self._subjects.node(node.key.partition(".")[2]), request, timeout=REQUEST_S)
                return
            except (*UNANSWERED, NotPermitted):
                continue
