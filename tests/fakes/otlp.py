"""An OTLP receiver on loopback, over HTTP or gRPC: what a collector would have got, and how one can fail.

    with OtlpReceiver() as receiver:
        ...                                # exporters send to receiver.endpoint, by receiver.environ
        receiver.until(lambda spans: len(spans) > 3)

It answers at once until it is told otherwise: `slow`, `hold`, `refuse` and `hang`, until `heal`.
"""

from __future__ import annotations

import gzip
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Protocol, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from fakes.http_server import CrowdServer
from fakes.otlp_values import Point, Received, points_in, spans_in

WORKERS = 16
"""Requests that the gRPC server answers at a time; one that hangs takes one of them."""

FORWARD_S = 30.0
"""How long another collector may take over what it is handed."""


class _Refused(Exception):
    """The receiver has been told to refuse, with this HTTP status."""


class OtlpReceiver:
    """Use as a context manager; stop the providers that export to it before it closes.

    Args:
        grpc: speak gRPC; else HTTP with protobuf.
        port: where it listens, over HTTP; by default on a free one.
        forward: endpoints of other collectors, which each request for spans is handed on to as it came (HTTP only).
    """

    def __init__(self, *, grpc: bool = False, port: int = 0, forward: Iterable[str] = ()) -> None:
        self.forward = tuple(forward)
        self.not_forwarded: list[str] = []
        """What went wrong with requests that were to be handed on."""
        self._lock = threading.Condition()
        self._spans: list[Received] = []
        self._points: list[Point] = []
        self._requests = 0
        self._status = 0
        self._delay_s: float | None = 0
        self._healed = threading.Event()
        self._server: _Server = _Grpc(self) if grpc else _Http(self, port)
        self._protocol = "grpc" if grpc else "http/protobuf"

    # --- where it is -------------------------------------------------------------------------------------------------
    @property
    def endpoint(self) -> str:
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables that have a process export to it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": self._protocol}

    # --- what it has got ---------------------------------------------------------------------------------------------
    @property
    def spans(self) -> list[Received]:
        """All spans so far, as often as they were sent."""
        with self._lock:
            return list(self._spans)

    @property
    def points(self) -> list[Point]:
        """All points of metrics so far."""
        with self._lock:
            return list(self._points)

    @property
    def requests(self) -> int:
        """How many requests have come, those too that it refused or left hanging."""
        with self._lock:
            return self._requests

    def twice(self) -> list[str]:
        """The names of spans that came more than once."""
        counted = Counter((span.trace_id, span.span_id, span.name) for span in self.spans)
        return sorted(name for (_, _, name), count in counted.items() if count > 1)

    def until(self, condition: Callable[[list[Received]], object], timeout: float = 10.0) -> list[Received]:
        """The spans, as soon as `condition(spans)` holds of them."""
        with self._lock:
            if not self._lock.wait_for(lambda: condition(self._spans), timeout):
                raise AssertionError(f"not within {timeout} s; there are {sorted(s.name for s in self._spans)}")
            return list(self._spans)

    def wait_for(self, name: str, timeout: float = 10.0) -> Received:
        """The first span of that name, as soon as it is there."""
        found = self.until(lambda spans: any(span.name == name for span in spans), timeout)
        return next(span for span in found if span.name == name)

    def wipe(self) -> None:
        """Forget all, as a collector whose data is lost."""
        with self._lock:
            self._spans.clear()
            self._points.clear()

    # --- how it fails ------------------------------------------------------------------------------------------------
    def refuse(self, status: int = 503) -> None:
        """Keep nothing, and answer with this HTTP status; over gRPC with UNAVAILABLE for 503, else INVALID_ARGUMENT."""
        with self._lock:
            self._status = status

    def slow(self, seconds: float) -> None:
        """Keep what comes, and answer so much later."""
        with self._lock:
            self._delay_s = seconds

    def hold(self) -> None:
        """Keep what comes, and answer when it is healed."""
        self.slow(threading.TIMEOUT_MAX)

    def hang(self) -> None:
        """Take requests and neither keep nor answer them."""
        with self._lock:
            self._delay_s = None

    def heal(self) -> None:
        """Answer at once again; what hangs is refused."""
        with self._lock:
            self._status, self._delay_s = 0, 0
            released, self._healed = self._healed, threading.Event()
        released.set()

    # --- for its servers ---------------------------------------------------------------------------------------------
    def take(self, *, spans: Iterable[Received] = (), points: Iterable[Point] = ()) -> None:
        """One request has come. Returns when it is to be answered; raises `_Refused` if it is to be refused."""
        with self._lock:
            self._requests += 1
            status, delay_s, healed = self._status, self._delay_s, self._healed
            if not status and delay_s is not None:
                self._spans.extend(spans)
                self._points.extend(points)
            self._lock.notify_all()
        if delay_s is None:
            healed.wait()
            raise _Refused(503)
        if delay_s:
            healed.wait(delay_s)
        if status:
            raise _Refused(status)

    def hand_on(self, path: str, body: bytes) -> None:
        """Send a request's body to the other collectors."""
        for collector in self.forward:
            request = urllib.request.Request(collector + path, body, {"content-type": "application/x-protobuf"})
            try:
                with urllib.request.urlopen(request, timeout=FORWARD_S):
                    pass
            except OSError as error:
                self.not_forwarded.append(f"{collector}: {error}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.heal()
        self._server.stop()


class _Server(Protocol):
    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Http:
    def __init__(self, receiver: OtlpReceiver, port: int) -> None:
        self._server = CrowdServer(("127.0.0.1", port), type("Handler", (_Handler,), {"receiver": receiver}))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: OtlpReceiver

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path == "/v1/traces":
                self.receiver.hand_on(self.path, body)
            self._answer(200, self._taken(body))
        except _Refused as refused:
            self._answer(refused.args[0], b"")

    def _taken(self, body: bytes) -> bytes:
        if self.path == "/v1/traces":
            self.receiver.take(spans=spans_in(ExportTraceServiceRequest.FromString(body)))
            return bytes(ExportTraceServiceResponse().SerializeToString())
        if self.path == "/v1/metrics":
            self.receiver.take(points=points_in(ExportMetricsServiceRequest.FromString(body)))
        return bytes(ExportMetricsServiceResponse().SerializeToString())

    def _answer(self, status: int, reply: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
        except ConnectionError:
            self.close_connection = True  # the exporter did not wait so long, or its process has ended

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what they need to say."""


class _Grpc:
    def __init__(self, receiver: OtlpReceiver) -> None:
        import grpc  # heavy, and few tests speak it
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces

        def answered(reply: Any, context: Any, take: Callable[[], None]) -> Any:
            try:
                take()
            except _Refused as refused:
                code = grpc.StatusCode.UNAVAILABLE if refused.args[0] == 503 else grpc.StatusCode.INVALID_ARGUMENT
                context.abort(code, "refused as told")
            return reply

        class Traces(traces.TraceServiceServicer):  # type: ignore[misc,unused-ignore]
            def Export(self, request: Any, context: Any) -> Any:
                return answered(ExportTraceServiceResponse(), context, lambda: receiver.take(spans=spans_in(request)))

        class Metrics(metrics.MetricsServiceServicer):  # type: ignore[misc,unused-ignore]
            def Export(self, request: Any, context: Any) -> Any:
                return answered(ExportMetricsServiceResponse(), context, lambda: receiver.take(points=points_in(request)))

        self._server = grpc.server(ThreadPoolExecutor(WORKERS))
        traces.add_TraceServiceServicer_to_server(Traces(), self._server)  # type: ignore[no-untyped-call,unused-ignore]
        metrics.add_MetricsServiceServicer_to_server(Metrics(), self._server)  # type: ignore[no-untyped-call,unused-ignore]
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait(5)
