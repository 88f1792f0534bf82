"""What nodes and supervisors expose is what the list of metrics has: all of it, and nothing else of the mesh (case 513)."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from agentmesh import semconv
from agentmesh.errors import TurnError
from agentmesh.subjects import Subjects
from agentmesh_node.telemetry.instruments import METRICS
from fakes.messages import Answer, FakeMessages, Item, Refusal, Tool
from fakes.otlp import OtlpReceiver
from live import spenders
from live.mesh import AGENTS, PATIENCE_S, ProcessMesh, process_mesh
from node.telemetry.metric_rows import prometheus_name
from support import Server, eventually, free_ports, run

SPENDERS = Path(spenders.__file__)
OURS = ("mesh_", "gen_ai_")
ASKS = 60


def scraped(port: int, path: str = "/metrics") -> dict[str, Family]:
    """The mesh's families on a process's page, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as page:
        text = page.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text) if family.name.startswith(OURS)}


def total(families: dict[str, Family], metric: str, suffix: str, **labels: str) -> float:
    """The sum of a metric's samples that bear these labels."""
    (listed,) = [m for m in METRICS if m.name == metric]
    name = prometheus_name(listed).removesuffix("_total")
    samples = families[name].samples if name in families else []
    found: float = sum(
        s.value for s in samples if s.name.endswith(suffix) and all(s.labels.get(key) == value for key, value in labels.items())
    )
    return found


def expected(role: str) -> dict[str, set[str]]:
    """The families that a role's pages have together, each with its labels."""
    return {
        prometheus_name(metric).removesuffix("_total"): {label.replace(".", "_") for label in metric.labels}
        for metric in METRICS
        if role in metric.roles
    }


def found(*pages: dict[str, Family]) -> dict[str, set[str]]:
    """The families of some pages, each with the labels that any of its samples bears."""
    labels: dict[str, set[str]] = {}
    for page in pages:
        for name, family in page.items():
            bear = labels.setdefault(name, set())
            bear.update(label for sample in family.samples for label in sample.labels if label != "le")
    return labels


async def work(mesh: ProcessMesh) -> None:
    """Turns that answer, wait, fail, call a model and a tool, and spend."""
    for agent, kind in (("a", "Recorder"), ("f", "Failing"), ("s", "Helper")):
        await mesh.client.start_agent(agent, kind=kind, timeout=PATIENCE_S)
    await asyncio.gather(*(mesh.client.ask("a", f"{number}", timeout=PATIENCE_S) for number in range(ASKS)))
    with pytest.raises(TurnError):
        await mesh.client.ask("f", "refuse", timeout=PATIENCE_S)
    assert (await mesh.client.ask("s", "go", timeout=PATIENCE_S)).text == "done"
    with pytest.raises(TurnError):
        await mesh.client.ask("s", "too much", timeout=PATIENCE_S)


@pytest.mark.case(513)
@pytest.mark.processes
def test_what_is_exposed_and_exported_is_what_the_list_has(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main(fake: FakeMessages, collector: OtlpReceiver) -> None:
        supervisor, first, second = free_ports(3)
        env = {
            "ANTHROPIC_BASE_URL": fake.url,
            "ANTHROPIC_API_KEY": "sk-test",
            "MESH_PRICES": json.dumps({"fake-model": {"input": 1000, "output": 2000}}),
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.endpoint}/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        serves = ("--agents", f"{AGENTS},{SPENDERS}")

        def read(port: int, metric: str, suffix: str = "", **labels: str) -> float:
            return total(scraped(port), metric, suffix, **labels)

        async with process_mesh(server, subjects, tmp_path, env=env) as mesh:
            await mesh.start("supervisor", "s2", "--health-port", str(supervisor))
            await mesh.start("node", "n1", *serves, "--metrics-port", str(first))
            await work(mesh)

            async def asked() -> bool:
                await mesh.transport.request(subjects.ask("a"), b"plain", timeout=PATIENCE_S)
                await mesh.transport.request(subjects.ask("nobody"), b"plain", timeout=PATIENCE_S)
                pages = await asyncio.to_thread(lambda: [scraped(port) for port in (supervisor, first)])
                return all(
                    total(page, semconv.ASKS_COUNTER, "_total", error_type=code) for page in pages for code in ("", "not_found")
                )

            await eventually(asked, PATIENCE_S, "both processes have taken plain asks, and have refused some")
            await eventually(lambda: read(first, semconv.AGENTS_GAUGE, mesh_agent_state="awake") >= 3, PATIENCE_S, "the gauges")
            before = await asyncio.to_thread(scraped, first)
            assert total(before, semconv.TURN_DURATION, "_count", mesh_agent_kind="Recorder", error_type="") >= ASKS
            assert total(before, semconv.TURN_DURATION, "_count", error_type="backend_error") == 2
            assert total(before, semconv.QUEUE_WAIT, "_count", mesh_agent_kind="Recorder") > 0
            assert total(before, semconv.MODEL_CALL_DURATION, "_count", error_type="") == 2
            assert total(before, semconv.MODEL_CALL_DURATION, "_count", error_type="bad_request") == 1
            assert total(before, semconv.TOOL_CALLS_COUNTER, "_total") == 1
            assert total(before, semconv.ACTIVATIONS_COUNTER, "_total") == 3
            assert total(before, semconv.JOURNAL_BYTES_COUNTER, "_total", mesh_agent_kind="Recorder") > 100 * ASKS
            assert total(before, semconv.TAKEOVER_DURATION, "_count") == 0
            await mesh.start("node", "n2", *serves, "--health-port", str(second))
            await mesh.hosts["s1"].kill()
            await eventually(lambda: read(supervisor, semconv.LEADING_GAUGE) == 1, PATIENCE_S, "the other one leads")
            await mesh.hosts["n1"].kill()
            assert (await mesh.client.ask("a", "again", timeout=PATIENCE_S)).text == "again"
            await eventually(lambda: read(second, semconv.TAKEOVER_DURATION, "_count") >= 1, PATIENCE_S, "a takeover")
            await eventually(lambda: read(second, semconv.MAILBOX_DEPTH) == 0, PATIENCE_S, "the gauges")
            await eventually(lambda: read(second, semconv.LOOP_LAG, "_count") > 0, PATIENCE_S, "the lag")
            after, leader = await asyncio.to_thread(lambda: (scraped(second), scraped(supervisor)))
            assert found(before, after) == expected("node")
            assert found(leader) == expected("supervisor")
            assert total(leader, semconv.LEADER_CHANGES_COUNTER, "_total") == 1
            assert total(leader, semconv.DECISIONS_COUNTER, "_total", mesh_decision="moved") >= 1
            names = {metric.name for metric in METRICS}
            await eventually(lambda: {point.name for point in collector.points} == names, PATIENCE_S, "all by OTLP, too")

    script: list[Item] = [
        Answer(tools=(Tool("dig", {"number": 1}),), cache_read=3, cache_write=2),
        Answer(text="done", cache_read=3),
        Refusal(status=400, kind="invalid_request_error"),
    ]
    with FakeMessages(script) as fake, OtlpReceiver() as collector:
        run(main(fake, collector), 110)
