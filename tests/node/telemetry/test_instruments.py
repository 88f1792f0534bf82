"""The list of metrics: the page has it, instruments are made from it, and Prometheus' own parsers read what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, MetricsData, NumberDataPoint
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from agentmesh import semconv
from agentmesh_node.telemetry.instruments import BY_NAME, METRICS, Instruments, own
from agentmesh_node.telemetry.metrics import MOST_CODES, MOST_NAMED, OTHER, WAITED_S, LoopLag, TurnMetrics
from agentmesh_node.telemetry.prometheus import Exposition
from node.telemetry.metric_rows import prometheus_name, rows
from support import eventually, run

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "observability.md").read_text()

type Points = list[NumberDataPoint | HistogramDataPoint]


def points(reader: InMemoryMetricReader) -> dict[str, Points]:
    """What was measured, by metric."""
    data = reader.get_metrics_data()
    found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
    return {metric.name: list(metric.data.data_points) for metric in found}  # type: ignore[arg-type]


@pytest.mark.case(512)
def test_the_page_has_the_list() -> None:
    """`python tests/node/telemetry/metric_rows.py` prints the table."""
    section = PAGE.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `.*$", section, re.M) == rows()


@pytest.mark.case(512)
def test_each_name_is_one_of_the_vocabulary_and_stands_once() -> None:
    vocabulary = {value for value in vars(semconv).values() if isinstance(value, str)}
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert {metric.name, *metric.labels} <= vocabulary
        assert bool(metric.buckets) == (metric.instrument == "histogram")
        assert semconv.AGENT_NAME not in metric.labels


@pytest.mark.case(512)
@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "application/openmetrics-text; version=1.0.0", "*/*"])
def test_the_official_parsers_read_what_is_exposed(accept: str) -> None:
    exposed = Exposition()
    provider = MeterProvider([exposed.reader])
    instruments = Instruments(provider.get_meter("test"))
    for metric in METRICS:
        labels = dict.fromkeys(metric.labels, 'a "b"\n\\ ü')
        if metric.instrument == "histogram":
            instruments.histogram(metric.name).record(1.0, labels)
        elif metric.instrument == "counter":
            instruments.tally(metric.name, labels).value += 3
        else:
            instruments.observed(metric.name, lambda labels=labels: [(2.0, labels)])  # type: ignore[misc]
    content_type, body = exposed.text(accept)
    is_open = content_type.startswith("application/openmetrics-text")
    assert is_open == ("openmetrics" in accept)
    read = openmetrics_parser if is_open else parser
    families = {family.name: family for family in read.text_string_to_metric_families(body.decode())}
    for metric in METRICS:
        family = families[prometheus_name(metric).removesuffix("_total")]
        assert family.type == metric.instrument
        spelled = frozenset(label.replace(".", "_") for label in metric.labels)
        assert {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples} == {spelled}
    assert "process_resident_memory_bytes" in families
    provider.shutdown()


def test_scrapes_at_once_each_get_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exposed = Exposition()
    provider = MeterProvider([exposed.reader])
    Instruments(provider.get_meter("test")).tally(semconv.ACTIVATIONS_COUNTER, {semconv.KIND: "Coder"}).value += 1
    both, add = threading.Barrier(2), exposed.reader._collector.add_metrics_data

    def collected(data: MetricsData) -> None:
        add(data)
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for its turn
            both.wait(0.2)

    monkeypatch.setattr(exposed.reader._collector, "add_metrics_data", collected)
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(lambda _: exposed.text("")[1], range(2)))
    assert [page.count(b'mesh_agent_activations_total{mesh_agent_kind="Coder"} 1.0') for page in pages] == [1, 1]
    provider.shutdown()


def test_sets_of_labels_are_bounded() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    named = TurnMetrics(provider.get_meter("test"), names=True)
    for number in range(MOST_NAMED + 5):
        named.of("Coder", f"a{number}").activations.value += 1
    assert len(points(reader)[semconv.ACTIVATIONS_COUNTER]) == MOST_NAMED + 1
    one = named.of("Coder", "a0")
    for number in range(MOST_CODES + 5):
        one.turn(0.1, f"code_{number}")
        one.turn(0.1, None)
    codes = {(point.attributes or {}).get(semconv.ERROR_TYPE) for point in points(reader)[semconv.TURN_DURATION]}
    assert len(codes) <= MOST_CODES + 2
    assert {None, "code_0", OTHER} <= codes
    provider.shutdown()


def test_a_meter_that_nobody_collects_from_is_off() -> None:
    assert not own().on or type(own()._meter).__module__.startswith("opentelemetry.sdk")


# --- what is counted ----------------------------------------------------------------------------------------------------
def test_turns_are_counted_by_kind_and_code_and_by_name_where_asked() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    for names, agents in ((False, ("a", "b")), (True, ("c",))):
        turns = TurnMetrics(provider.get_meter("test"), names=names)
        for agent in agents:
            assert turns.of("Coder", agent) is turns.of("Coder", agent)
            turns.of("Coder", agent).turn(0.5, None)
            turns.of("Coder", agent).turn(0.5, "timeout")
        turns.of("Coder", agents[0]).journal_bytes.value += 100
    found = points(reader)
    counted = {
        tuple(sorted((point.attributes or {}).items())): point.count
        for point in found[semconv.TURN_DURATION]
        if isinstance(point, HistogramDataPoint)
    }
    common = [("gen_ai.operation.name", "invoke_agent"), ("mesh.agent.kind", "Coder")]
    named = ("gen_ai.agent.name", "c")
    error = ("error.type", "timeout")
    assert counted == {
        tuple(common): 2, (error, *common): 2, (named, *common): 1, (error, named, *common): 1,
    }  # fmt: skip
    provider.shutdown()


def test_what_did_not_wait_is_not_recorded_as_a_wait() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    coder = TurnMetrics(provider.get_meter("test")).of("Coder", "a")
    for seconds in (-1.0, 0.0, WAITED_S / 2, WAITED_S, 3.0):
        coder.waited(seconds)
    (point,) = points(reader)[semconv.QUEUE_WAIT]
    assert isinstance(point, HistogramDataPoint)
    assert (point.count, point.sum) == (2, WAITED_S + 3.0)
    provider.shutdown()


def test_a_gauge_that_is_no_longer_observed_is_gone() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instruments = Instruments(provider.get_meter("test"))
    first = instruments.observed(semconv.WAITING_GAUGE, lambda: [(1.0, {})])
    first()
    instruments.observed(semconv.WAITING_GAUGE, lambda: [(2.0, {})])
    (point,) = points(reader)[semconv.WAITING_GAUGE]
    assert isinstance(point, NumberDataPoint)
    assert point.value == 2.0
    provider.shutdown()


def test_the_loops_lag_is_measured() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    async def main() -> None:
        lag = LoopLag(Instruments(provider.get_meter("test")))
        lag.begin()
        await eventually(lambda: points(reader).get(semconv.LOOP_LAG), what="a measurement")
        lag.close()
        await asyncio.sleep(0)

    run(main())
    provider.shutdown()
