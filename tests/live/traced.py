"""Meshes of processes whose spans go to a receiver, with a node that is killed in the middle of a turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentmesh.edge.transport import Message
from agentmesh.subjects import Subjects
from agentmesh.trace.facts import spans_in
from agentmesh.trace.spans import Began, decode_began
from fakes.otlp import OtlpReceiver
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from live.span_tree import attempts
from support import Server, eventually

COORDINATOR = "triage"
QUESTION = "What went wrong?"
GATES = ("plan", "read", "synthesis")
AGENTS = str(Path(__file__).with_name("gated_triage.py"))
AT_ONCE_MS = 50
"""Spans are exported within that time."""
NOT_BEFORE_THE_END_MS = 3_600_000
"""Spans are exported when their process ends in order."""


class TracedMesh:
    """A mesh of processes, what it has published of attempts that began, and gates that its turns wait for."""

    def __init__(self, mesh: ProcessMesh, receiver: OtlpReceiver, gates: Path) -> None:
        self.mesh = mesh
        self._receiver = receiver
        self._gates = gates
        self.began: list[Began] = []
        """Of attempts that began, what was published so far."""
        self.told: set[str] = set()
        """The ids of spans that were."""

    async def listen(self) -> None:
        """Gather facts from now on."""
        await self.mesh.transport.subscribe(self.mesh.subjects.trace_all(), self._on_fact)
        await self.mesh.transport.flush()

    def _on_fact(self, message: Message) -> None:
        agent, what = self.mesh.subjects.parse_trace(message.subject)
        if what == "began":
            self.began.append(decode_began(message.data))
        else:
            self.told.update(span.id for span in spans_in(agent, what, message.data, self.mesh.subjects.root))

    async def began_by(self, agents: Sequence[str]) -> None:
        """Wait until each of these agents has begun an attempt, and the stream has that."""
        await eventually(lambda: set(agents) <= {fact.agent for fact in self.began}, PATIENCE_S, f"attempts of {agents}")

    def open(self, *gates: str) -> None:
        """Let the turns at these gates go on."""
        for gate in gates:
            (self._gates / gate).touch()

    async def ended(self, agent: str, *, sent: int = 0) -> None:
        """Wait until an attempt of the agent has been exported, with the message above it and the mail that it has sent: they may
        leave in two batches."""

        def whole() -> bool:
            spans = self._receiver.spans
            ids = {span.span_id for span in spans}
            found = [span for span in attempts(spans, agent) if span.parent in ids]
            return any(sum(span.parent == one.span_id and span.kind == "PRODUCER" for span in spans) == sent for one in found)

        await eventually(whole, PATIENCE_S, f"spans of {agent}")

    async def kill_host_of(self, agent: str) -> list[Began]:
        """SIGKILL the node of an agent, whose turns all wait at gates; the attempts there of which no end was exported."""
        victim = await self.mesh.host_of(agent)
        over = {span.span_id for span in self._receiver.spans}
        await victim.kill()
        return [fact for fact in self.began if fact.node == victim.id and fact.span not in over]

    async def told_of(self, attempts: Iterable[Began], *, exported: bool = True) -> None:
        """Wait until these attempts have been told of, to the receiver too unless `exported` is false."""
        wanted = {fact.span for fact in attempts}

        def told() -> bool:
            there = {span.span_id for span in self._receiver.spans} if exported else self.told
            return wanted <= there

        await eventually(told, PATIENCE_S, f"what became of {wanted}")

    async def end(self) -> None:
        """End all processes in order: they export what they still have."""
        nodes = [host for host in self.mesh.hosts.values() if host.running and host.id != "s1"]
        assert await asyncio.gather(*(host.terminate() for host in nodes)) == [0] * len(nodes)


@contextlib.asynccontextmanager
async def traced_mesh(
    server: Server,
    subjects: Subjects,
    logs: Path,
    receiver: OtlpReceiver,
    *nodes: str,
    agents: str = AGENTS,
    export_ms: int = AT_ONCE_MS,
    env: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
) -> AsyncIterator[TracedMesh]:
    """A supervisor and the nodes named, each a process, that export to `receiver` and publish all facts."""
    gates = logs / "gates"
    gates.mkdir()
    settings = {
        **receiver.environ,
        "OTEL_BSP_SCHEDULE_DELAY": str(export_ms),
        "MESH_TRACE_FACTS": "all",
        "TRIAGE_GATES": str(gates),
        **(env or {}),
    }
    async with process_mesh(server, subjects, logs, env=settings, modules=modules) as mesh:
        await asyncio.gather(*(mesh.start("node", own_id, "--agents", agents) for own_id in nodes))
        traced = TracedMesh(mesh, receiver, gates)
        await traced.listen()
        yield traced


async def start_triage(mesh: ProcessMesh, log: Path | None = None) -> None:
    """Start the coordinator of the example."""
    options: dict[str, Any] = {} if log is None else {"log": str(log)}
    await mesh.client.start_agent(COORDINATOR, kind="Triage", options=options, timeout=PATIENCE_S)
