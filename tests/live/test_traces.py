"""One conversation is one trace: from agent to agent, over processes, and over the death of one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmesh.edge.publish import store
from agentmesh.subjects import Subjects
from fakes.otlp import OtlpReceiver
from fakes.otlp_values import Received
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
CONTEXT = f"00-{TRACE}-{CALLER}-01"


def of(receiver: OtlpReceiver, agent: str) -> list[Received]:
    """The spans of an agent's turns."""
    return [span for span in receiver.spans if span.name == f"invoke_agent {agent}"]


async def tell(mesh: ProcessMesh, agent: str, prompt: str) -> str:
    stored = await store(mesh.transport, mesh.subjects.inbox(agent), prompt.encode(), headers={"traceparent": CONTEXT})
    return str(stored.seq)


@pytest.mark.case(202)
def test_one_trace_over_agents_processes_and_a_kill(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main(receiver: OtlpReceiver) -> None:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with process_mesh(server, subjects, tmp_path, "n1", "n2", env=env) as mesh:
            gates = [str(tmp_path / name) for name in ("first", "second")]
            await mesh.client.start_agent("boss", kind="Gatherer", options={"gates": gates}, timeout=PATIENCE_S)
            ref = await tell(mesh, "boss", "go")
            await mesh.saw("prompt_start", "boss.w0")
            await mesh.saw("prompt_start", "boss.w1")
            mails = 2  # a batch may end between the spans of a record
            await eventually(
                lambda: of(receiver, "boss") and sum(span.kind == "PRODUCER" for span in receiver.spans) >= mails,
                PATIENCE_S,
                "the coordinator's span, and those of its mail",
            )
            victim = await mesh.host_of("boss")
            await victim.kill()
            for gate in gates:
                await asyncio.to_thread(Path(gate).touch)

            async def answered() -> bool:
                return (await mesh.client.poll("boss", ref, timeout=PATIENCE_S)).done

            await eventually(answered, PATIENCE_S, "the answer")
            await eventually(lambda: of(receiver, "boss.w0") and of(receiver, "boss.w1"), PATIENCE_S, "the workers' spans")

        known = {span.span_id: span for span in receiver.spans}
        assert {span.trace_id for span in receiver.spans} == {TRACE}
        assert {span.instance for span in receiver.spans} == {"n1", "n2"}
        assert {span.service for span in receiver.spans} == {"Gatherer", "Recorder"}, "a service for each kind"
        (boss,) = of(receiver, "boss")
        assert (known[boss.parent].kind, known[boss.parent].parent, boss.linked) == ("CONSUMER", CALLER, ()), (
            "no parent is a link"
        )
        for worker in ("boss.w0", "boss.w1"):
            spans = of(receiver, worker)
            (message,) = {span.parent for span in spans}  # also where it ran a second time
            sent = known[known[message].parent]
            assert (sent.kind, sent.parent) == ("PRODUCER", boss.span_id)
            assert spans[-1].attributes["gen_ai.agent.name"] == worker

    with OtlpReceiver() as receiver:
        run(main(receiver), 110)
