"""Traces leave the process only when an endpoint is named, and then with the mesh's resource and W3C context."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh import semconv
from fakes.otlp import OtlpReceiver

TURN = """
import sys
from opentelemetry import propagate, trace
from agentmesh import semconv
from agentmesh_node.telemetry import otel
started = otel.setup("node", "n1")
tracer = trace.get_tracer(semconv.SCOPE)
cause = propagate.extract({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "tenant=a"})
with tracer.start_as_current_span(semconv.invoke_agent("coder"), context=cause, attributes={semconv.AGENT_NAME: "coder"}) as span:
    headers = {}
    propagate.inject(headers, trace.set_span_in_context(span, cause))
started.shutdown()
print(headers["traceparent"], headers["baggage"], "opentelemetry.sdk" in sys.modules)
"""


def run_turn(**environ: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", TURN], capture_output=True, text=True, timeout=60, check=False, env={**clean, **environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.processes
def test_without_an_endpoint_context_flows_and_the_sdk_stays_out() -> None:
    traceparent, baggage, sdk = run_turn(OTEL_PROPAGATORS="none")
    assert traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (baggage, sdk) == ("tenant=a", "False")


@pytest.mark.processes
def test_with_an_endpoint_spans_arrive_whole() -> None:
    with OtlpReceiver() as receiver:
        traceparent, _, sdk = run_turn(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        span = receiver.wait_for("invoke_agent coder")
    assert sdk == "True"
    assert (span.service, span.instance, span.kind) == ("mesh-node", "n1", "INTERNAL")
    assert (span.trace_id, span.parent) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert span.attributes[semconv.AGENT_NAME] == "coder"
    assert traceparent == f"00-{span.trace_id}-{span.span_id}-01"


def test_names_of_conventions_are_spelled_in_one_module() -> None:
    sources = Path(semconv.__file__).parents[3]
    elsewhere = [
        str(path.relative_to(sources))
        for folder in ("mesh", "node", "client")
        for path in (sources / folder).rglob("*.py")
        if path.name != "semconv.py" and any(head in path.read_text() for head in ('"gen_ai.', '"messaging.'))
    ]
    assert elsewhere == []
