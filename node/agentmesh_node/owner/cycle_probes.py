"""Sends probes while a turn waits for other agents, and hands on other agents' probes (agentmesh.turn.wait_cycles).

Probes are core messages to the owner of the agent that is waited for. A lost probe is replaced: new ones are sent as long as the
wait lasts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec

from agentmesh import wire
from agentmesh.control_values import ControlRequest, Probe
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.turn.step_values import Circled
from agentmesh.turn.wait_cycles import begun, handed_on, holds, open_waits
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.services import Services

PROBE_PAUSES = ExponentialBackoff(0.1, 5.0)
"""The first pause is how long a wait lasts before its first probe: most are over by then. The longest is the pause between two
probes of a long wait: a circle that closes late is found with that delay."""
MEMORY = 1000
"""How many probes are remembered, so that each is handed on only once."""


class Sent(msgspec.Struct, frozen=True):
    """A probe of one of the agent's own waits. `again`: an earlier one has come back."""

    wait: str
    origin: str
    again: bool = False


class CycleProber:
    """Sends and hands on probes for one agent."""

    def __init__(self, loop: OwnerLoop, services: Services, waiting: Callable[[], bool]) -> None:
        """`waiting` returns whether the running turn waits for an agent."""
        self._loop = loop
        self._waiting = waiting
        self._s = services
        self._sent: OrderedDict[str, Sent] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._pauses: Iterator[float]  # from the first `arm` on
        self._next: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Begin to send probes: the running turn begins to wait for an agent."""
        self._pauses = iter(PROBE_PAUSES)
        now = asyncio.get_running_loop().time()
        if self._next is not None and self._next.when() > now + PROBE_PAUSES.first_s:
            self._loop.call_off(self._next)
            self._next = None
        if self._next is None:
            self._next = self._loop.later(PROBE_PAUSES.first_s, self._send_probes)

    def _send_probes(self) -> None:
        self._next = None
        core = self._loop.core
        if core is None or not self._waiting():
            return
        for name, wait in open_waits(core).items():  # empty while the journal cannot be written
            self._send(name, wait.origin, again=False)
        self._next = self._loop.later(next(self._pauses), self._send_probes)

    def _send(self, name: str, origin: str, *, again: bool) -> None:
        core = self._loop.core
        wait = open_waits(core).get(name) if core is not None else None
        if core is None or wait is None or wait.origin != origin:
            return
        token = self._s.token()
        _remember(self._sent, token, Sent(name, origin, again))
        self._post(wait.agent, begun(core, wait, token))

    def received(self, probe: Probe) -> None:
        """Handle a probe from another agent, which waits for this one."""
        core = self._loop.core
        if core is None or probe.id in self._seen:
            return
        if probe.root != self._loop.name:
            onward = handed_on(core, probe)
            if onward:
                _remember(self._seen, probe.id, None)
            for agent, next_probe in onward:
                self._post(agent, next_probe)
            return
        sent = self._sent.get(probe.id)
        if sent is None or not holds(core, probe.sender, probe.request):
            return
        del self._sent[probe.id]
        if sent.again:
            self._loop.feed(Circled(sent.wait, sent.origin))
        else:
            self._send(sent.wait, sent.origin, again=True)

    def _post(self, agent: str, probe: Probe) -> None:
        self._s.transport.post(self._s.subjects.control(agent), wire.encode(ControlRequest(op="probe", probe=probe)))


def _remember[T](memory: OrderedDict[str, T], key: str, value: T) -> None:
    memory[key] = value
    while len(memory) > MEMORY:
        memory.popitem(last=False)
