"""Each line that is logged in a turn bears the ids of its trace and span, by users' code and by the node's (case 514)."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentmesh.edge.publish import store
from agentmesh.errors import MeshError
from agentmesh.subjects import Subjects
from fakes.messages import Answer, FakeMessages, Item, Tool
from fakes.otlp import OtlpReceiver
from live import loggers
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CONTEXT = f"00-{TRACE}-00f067aa0ba902b7-01"
OURS = {"a turn crashed", "callback raised", "callback misbehaved", "callback blocked the loop", "a tool raised"}
"""What the node says of a turn."""
THEIRS = {
    "in a script", "in pre_turn", "in handle_stream_event", "in handle_response", "in handle_error", "in post_turn",
    "in handle_event", "in an async tool", "in a plain tool", "in a task", "in a thread",
}  # fmt: skip


def lines(log: str) -> list[dict[str, Any]]:
    """The lines of a node's log that were logged in a turn."""
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in found if line["logger"] == "mine" or line["event"] in OURS]


async def work(mesh: ProcessMesh) -> None:
    """Turns that log, of callers with and without a context."""
    await mesh.client.start_agent("a", kind="Logger", timeout=PATIENCE_S)
    await mesh.client.start_agent("m", kind="Caller", timeout=PATIENCE_S)
    for prompt in ("hello", "chain", "block", "crash", "misbehave", "raise"):
        with contextlib.suppress(MeshError):
            await mesh.client.ask("a", prompt, timeout=PATIENCE_S)
        if prompt == "misbehave":
            await mesh.client.resume("a")
    await mesh.client.start_agent("b", kind="Logger", timeout=PATIENCE_S)
    await mesh.client.notify("b", {"an": "event"})
    await mesh.client.ask("m", "go", timeout=PATIENCE_S)
    await store(mesh.transport, mesh.subjects.inbox("b"), b"with a context", headers={"traceparent": CONTEXT})


@pytest.mark.case(514)
@pytest.mark.processes
@pytest.mark.parametrize(("facts", "exported"), [("attempts", False), ("attempts", True), ("off", True)])
def test_each_line_of_a_turn_bears_its_trace_and_span(
    facts: str, exported: bool, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main(fake: FakeMessages, collector: OtlpReceiver) -> None:
        env = {"ANTHROPIC_BASE_URL": fake.url, "ANTHROPIC_API_KEY": "sk-test", "MESH_LOG": "json", "MESH_TRACE_FACTS": facts}
        env |= {**collector.environ, "OTEL_BSP_SCHEDULE_DELAY": "20"} if exported else {}
        async with process_mesh(server, subjects, tmp_path, env=env) as mesh:
            node = await mesh.start("node", "n1", "--agents", loggers.__file__)
            await work(mesh)
            await eventually(
                lambda: (
                    {line["event"] for line in lines(node.log)} == OURS | THEIRS
                    and any(line.get("trace_id") == TRACE and line["event"] == "in post_turn" for line in lines(node.log))
                ),
                PATIENCE_S,
                "all of it is logged",
            )
            seen = lines(node.log)
            for line in seen:
                assert re.fullmatch("[0-9a-f]{32}", line.get("trace_id", "")), line
                assert re.fullmatch("[0-9a-f]{16}", line.get("span_id", "")), line
            assert len({line["trace_id"] for line in seen}) > 5, "each request has a trace of its own"
            if exported:
                spans = {(line["trace_id"], line["span_id"]) for line in seen}
                await eventually(
                    lambda: spans <= {(span.trace_id, span.span_id) for span in collector.spans},
                    PATIENCE_S,
                    "each is a span that is exported",
                )

    script: list[Item] = [
        Answer(tools=(Tool("ask_around", {"number": 1}), Tool("look_up", {"number": 1}))),
        Answer(tools=(Tool("ask_around", {"number": 2}),)),
        Answer(text="done"),
    ]
    with FakeMessages(script) as fake, OtlpReceiver() as collector:
        run(main(fake, collector), 110)
