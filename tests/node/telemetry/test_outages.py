"""OTLP endpoints that are down, slow, mute or refuse: one line for each outage, and nothing waits for them (case 510)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar, cast

import pytest
from grpc import StatusCode
from opentelemetry.sdk.trace.export import SpanExportResult

from agentmesh_node.telemetry import otel, outages
from agentmesh_node.telemetry.outages import FULL, QUIET_S, Outages, reason_of
from fakes.otlp import OtlpReceiver
from support import free_ports

HANGS_S = 120
"""When a thing that takes a part of a second on an idle machine counts as hanging."""
THREADS = ("Otel", "end of telemetry", "sender of spans")


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Variables that make failures quick, outages of this test alone, and a log that has everything."""
    # Shorter than the SDK's first wait before it tries again: a second try would be left what remains, however little.
    for name, value in {"TIMEOUT": "0.75", "ENDPOINT": "", "PROTOCOL": ""}.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setattr(otel, "_shared", [])
    outages._overflow.clear()
    before = set(threading.enumerate())
    with caplog.at_level(logging.INFO):
        yield
    # What goes on in threads would draw from the process's dice in the middle of other tests.
    while Sender.made:
        Sender.made.pop().abandon()
    until(
        lambda: not any(t.name.startswith(THREADS) for t in set(threading.enumerate()) - before),
        "the threads of this test end",
    )


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says, of the SDK's lines too: but for the one of a reader whose first interval, which is short here, ends
    before its provider is made."""
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("urllib3")]
    return [line for line in lines if not line.startswith("Cannot call collect on a MetricReader until")]


def until(reached: Any, what: str) -> None:
    deadline = time.monotonic() + HANGS_S
    while not reached():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.01)


class Sender:
    """Makes spans and measurements until it is closed."""

    made: ClassVar[list[Sender]] = []

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endpoint: str, protocol: str = "http/protobuf") -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        self._provider, self._queue = otel._provider("node", "n1", protocol, "kind")
        self._reader = otel._periodic(protocol)
        self._meters = otel._meters("node", "n1", [self._reader])
        self.telemetry = otel.Telemetry(self._provider, self._meters)
        self._tracer = self._provider.get_tracer("test")
        self._counter = self._meters.get_meter("test").create_counter("test.counter")
        self._over = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._send, daemon=True, name="sender of spans")
        self.made.append(self)

    def _send(self) -> None:
        while not self._over.wait(0.005):
            self.one()

    @property
    def queued(self) -> int:
        """Spans that wait for an export."""
        return len(self._queue._batch_processor._queue)

    def one(self) -> None:
        """Make one span and one measurement."""
        self._tracer.start_span("one").end()
        self._counter.add(1)

    def begin(self) -> None:
        self._thread.start()

    def patient(self) -> None:
        """Let each export take its time from now on: a busy machine is no outage."""
        for exporter in (cast("Any", self._queue.span_exporter)._inner, cast("Any", self._reader)._exporter):
            timed = exporter._client if hasattr(exporter._client, "_timeout") else exporter  # over HTTP its client has it
            timed._timeout = HANGS_S

    def close(self, within_s: float = HANGS_S) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._closed = True
        self.telemetry.shutdown(within_s)

    def abandon(self) -> None:
        """End it, however far its test has come: its exporters try no more."""
        self._queue.span_exporter.shutdown()
        cast("Any", self._reader)._exporter.shutdown()
        if not self._closed:
            self.close()


def receiver_of(protocol: str) -> OtlpReceiver:
    return OtlpReceiver(grpc=protocol == "grpc")


PROTOCOLS = pytest.mark.parametrize("protocol", otel.PROTOCOLS)


@pytest.mark.case(510)
@PROTOCOLS
def test_spans_and_metrics_arrive(protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(HANGS_S))
    with receiver_of(protocol) as receiver:
        sender = Sender(monkeypatch, receiver.endpoint, protocol)
        sender.one()
        sender.close()
        assert [span.name for span in receiver.spans] == ["one"]
        assert {point.name for point in receiver.points} == {"test.counter"}
    assert told(caplog) == []


@pytest.mark.case(510)
def test_an_endpoint_that_is_down_is_told_once_and_once_more_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    sender = Sender(monkeypatch, f"http://127.0.0.1:{port}")
    sender.begin()
    until(lambda: otel._outages()._open.keys() == {(s, f"127.0.0.1:{port}") for s in ("spans", "metrics")}, "both fail")
    assert told(caplog) == ["telemetry cannot be exported: [Errno 111] Connection refused"]
    sender.patient()
    with OtlpReceiver(port=port):
        until(lambda: not otel._outages()._open, "the outage is over")
        sender.close()
    assert told(caplog)[1:] == ["telemetry is exported again"]
    assert next(r for r in caplog.records if r.levelno == logging.INFO).__dict__["spans_lost"] > 0


@pytest.mark.case(510)
@PROTOCOLS
def test_one_that_refuses_is_told_once(protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with receiver_of(protocol) as receiver:
        receiver.refuse()
        sender = Sender(monkeypatch, receiver.endpoint, protocol)
        sender.begin()
        until(lambda: receiver.requests >= 12 and len(otel._outages()._open) == 2, "it is asked again and again")
        reason = "UNAVAILABLE: refused as told" if protocol == "grpc" else "503 Service Unavailable"
        assert told(caplog) == [f"telemetry cannot be exported: {reason}"]
        sender.patient()
        receiver.heal()
        until(lambda: not otel._outages()._open, "the outage is over")
        sender.close()
    assert told(caplog)[1:] == ["telemetry is exported again"]


@pytest.mark.case(510)
@PROTOCOLS
def test_one_that_never_answers_does_not_hold_up_the_end(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(HANGS_S))
    with receiver_of(protocol) as receiver:
        receiver.hang()
        sender = Sender(monkeypatch, receiver.endpoint, protocol)
        sender.begin()
        until(lambda: receiver.requests >= 2, "both wait for an answer")
        sender.close(otel.SHUTDOWN_S)
        assert otel.SHUTDOWN_S < 2.0
        assert told(caplog) == ["the last spans and metrics were left: their endpoint does not take them in time"]


@pytest.mark.case(510)
def test_one_that_never_answers_is_told_when_the_time_out_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with OtlpReceiver() as receiver:
        receiver.hang()
        sender = Sender(monkeypatch, receiver.endpoint)
        sender.begin()
        until(lambda: len(otel._outages()._open) == 2, "both fail")
        sender.close(otel.SHUTDOWN_S)
    assert told(caplog) == ["telemetry cannot be exported: it does not answer in time"]


@pytest.mark.case(510)
def test_one_that_is_too_slow_for_what_comes_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(HANGS_S))
    now = [0.0]
    monkeypatch.setattr(otel, "_shared", [Outages(lambda: now[0])])
    with OtlpReceiver() as receiver:
        sender = Sender(monkeypatch, receiver.endpoint)
        for burst in range(1, 4):
            before = len(receiver.spans)
            receiver.hold()
            sender.one()
            until(lambda: len(receiver.spans) > before, f"an export is held while burst {burst} comes")  # noqa: B023
            for _ in range(40):
                sender.one()
            receiver.heal()
            until(lambda: not sender.queued and otel._outages()._open, f"burst {burst} is exported, as far as it was kept")
        assert len(receiver.spans) < 120
        assert told(caplog) == [f"telemetry cannot be exported: {FULL}"]
        now[0] = QUIET_S
        sender.one()
        until(lambda: not otel._outages()._open, "it keeps up again")
        sender.close()
    assert told(caplog)[1:] == ["telemetry is exported again"]


@pytest.mark.case(510)
def test_metrics_that_leave_meanwhile_do_not_hide_that_spans_were_dropped() -> None:
    class Exporter(outages.Watched):
        def __init__(self, signal: str) -> None:
            self.outages, self.signal, self.endpoint = found, signal, "a:1"

    class Takes:
        def export(self, batch: Any) -> Any:
            return SpanExportResult.SUCCESS

    found = Outages(lambda: 0.0)
    made = type("Made", (Exporter, Takes), {})
    outages._kept.filter(line("Queue full, dropping %s.", "Span"))
    made("metrics").export([])
    assert not found.lasts
    made("spans").export([])
    assert found.lasts


@pytest.mark.case(510)
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "is none of http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "mend the OTEL_ variables"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "mend the OTEL_ variables"),
    ],
)
def test_variables_that_cannot_be_meant_end_no_process(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv(variable, value)
    started = otel.setup("node", "n1")
    assert (started.provider, started.meters) == (None, None)
    ours = [record.getMessage() for record in caplog.records if record.name == "agentmesh.telemetry"]
    assert len(ours) == 2
    assert all(says in line for line in ours)


@pytest.mark.case(510)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_is_not_installed_is_named(protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(signal: str, protocol: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'grpc'")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setattr(otel, "_exporter", missing)
    otel.setup("node", "n1")
    extra = "otlp-grpc" if protocol == "grpc" else "otlp"
    assert [line.partition("; ")[2] for line in told(caplog)] == [f"pip install 'agentmesh[{extra}]'"] * 2


def test_none_as_exporter_is_no_exporter(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    started = otel.setup("node", "n1", there)
    assert (started.provider, started.meters, told(caplog)) == (None, None, [])


# --- the book of outages ------------------------------------------------------------------------------------------------
@pytest.mark.case(510)
def test_another_reason_or_another_endpoint_is_another_outage(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    found = Outages(lambda: now[0])
    found.failed("metrics", "a:1", "Not Found")  # it takes no metrics
    for _ in range(3):
        found.failed("spans", "a:1", "[Errno 111] Connection refused", 2)
        found.failed("metrics", "a:1", "[Errno 111] Connection refused")
        found.failed("spans", "b:1", "Not Found", 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    now[0] = 1.0
    found.succeeded("spans", "a:1")
    found.succeeded("spans", "a:1")
    found.failed("spans", "a:1", "[Errno 111] Connection refused", 1, began=0.5)  # it began in the outage
    assert [(r.levelname, r.__dict__["endpoint"], r.__dict__["spans_lost"]) for r in caplog.records[3:]] == [("INFO", "a:1", 6)]


def line(text: str, *args: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "args": args})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "it was refused"),
        ([line("Failed to export %s batch code: %s, reason: %s", "spans", 404, "Not Found")], None),
        ([line("Transient error %s ...", OSError("x: [Errno 111] Refused')"))], "[Errno 111] Refused"),
        ([line("Transient error %s ...", OSError("Read timed out."))], "it does not answer in time"),
        ([line("Failed %s", OSError("no adapters for 'htp://me:secret@host/v1/traces'"))], "no adapters for 'htp://host/v1/traces'"),
        ([line("Failed: %s, %s", StatusCode.DEADLINE_EXCEEDED, "too late")], "DEADLINE_EXCEEDED: too late"),
    ],
)  # fmt: skip
def test_the_reason(said: list[logging.LogRecord], reason: str | None) -> None:
    assert reason_of(said) == (reason if reason is not None else said[0].getMessage())
