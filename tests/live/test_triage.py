"""The demo: `make demo` keeps its word, and its answers follow the log."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fakes.otlp import OtlpReceiver
from fakes.otlp_values import Received

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TRIAGE = ROOT / "examples" / "triage"
GATED_DEMO = TESTS / "live" / "gated_demo.py"

OTHER_LOG = """\
2026-11-21T10:00:00.000Z INFO  billing  nightly run started
2026-11-21T10:00:05.000Z ERROR billing  invoice 17 has no address
2026-11-21T10:00:06.000Z ERROR billing  invoice 18 has no address
2026-11-21T10:00:07.000Z INFO  shop     opened
"""


def demo(*arguments: str, program: Path = TRIAGE / "demo.py", **more: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_", "ANTHROPIC_"))} | more
    return subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, timeout=100, check=False, env=environ
    )


def until_plan(receiver: OtlpReceiver, running: Future[Any]) -> None:
    """Return once the receiver has the coordinator's first message, its turn and the one question that it asks, or the demo has
    ended without."""

    def there(spans: list[Received]) -> bool:
        turns = {span.span_id: span.parent for span in spans if span.name == "invoke_agent triage"}
        asked = {span.parent for span in spans if span.kind == "PRODUCER"}
        return running.done() or any(turn in asked and turns[turn] in {span.span_id for span in spans} for turn in turns)

    while not there(receiver.spans):
        threading.Event().wait(0.02)


@pytest.mark.slow
@pytest.mark.case(202)
@pytest.mark.case(200)
def test_the_coordinator_outlives_its_node_and_its_caller_gets_one_answer() -> None:
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"SIGKILL +n[12] dies, and with it .*triage", done.stdout)
    assert re.search(r"triage +goes on on n[12], \d\.\d\d s after the kill", done.stdout)
    assert "60 errors in 3 services" in done.stdout
    assert "Look at checkout first" in done.stdout
    assert len(re.findall(r"triage -> caller", done.stdout)) == 1
    graph = done.stdout[done.stdout.index("caller\n") :]
    assert re.search(r"└─ triage +on n\d then n\d", graph)
    assert len(re.findall(r"triage\.(checkout|search|auth) +on n", graph)) == 3
    request = done.stdout[done.stdout.index("mesh trace triage/") :]
    dead = re.search(r"SIGKILL +(n[12]) dies, and with it (.*)", done.stdout)
    assert dead is not None
    for reader in dead[2].split(", "):
        if reader != "triage":  # which waits for its readers meanwhile
            # Lost, unless it had just ended: the reader with the fewest lines is done two seconds after its start.
            first = rf"{re.escape(reader)} turn 1 attempt 1 on {dead[1]}"
            lost, well = rf"~~{first}~~  lost after", rf"(?<!~~){first}  (?!.*\n +{re.escape(reader)} turn 1 )"
            assert re.search(rf"{lost}|{well}", request), request
    assert len(re.findall(r"^    triage\.(checkout|search|auth) \d+ from triage", request, re.MULTILINE)) == 3


@pytest.mark.slow
def test_another_log_gives_another_answer_and_all_of_it_is_one_trace(tmp_path: Path) -> None:
    log = tmp_path / "other.log"
    log.write_text(OTHER_LOG)
    for gate in ("plan", "synthesis"):
        (tmp_path / gate).touch()
    with OtlpReceiver() as receiver, ThreadPoolExecutor(1) as aside:
        gates = {"TRIAGE_GATES": str(tmp_path), "PYTHONPATH": str(TESTS)}
        running = aside.submit(demo, str(log), program=GATED_DEMO, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **gates)
        # A killed process loses what it has not exported: first it exports all that the coordinator has done until then.
        until_plan(receiver, running)
        (tmp_path / "kill").touch()
        done = running.result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 errors in 1 service," in done.stdout
    assert "invoice 17 has no address" in done.stdout
    assert len({span.trace_id for span in receiver.spans}) == 1
    assert {span.service for span in receiver.spans} == {"mesh-client", "Triage", "Reader"}, "a service for each kind of agent"
    assert receiver.twice() == []
    known = {span.span_id: span for span in receiver.spans}
    assert [span.name for span in receiver.spans if span.parent not in known] == ["triage demo"], "no other parent is missing"
    edges = {(known[span.parent].service, span.service) for span in receiver.spans if span.parent in known}
    assert {edge for edge in edges if edge[0] != edge[1]} == {("mesh-client", "Triage"), ("Triage", "Reader")}
    assert {span.instance for span in receiver.spans} == {"demo", "n1", "n2"}
