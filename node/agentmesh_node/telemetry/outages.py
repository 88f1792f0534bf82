"""Exporters whose failures are told once: one line when an endpoint begins to fail, and one when it takes telemetry again.

The SDK's exporters log each failure, and each of their retries. Here those lines are dropped, and the first one's reason is kept
for the line of the outage. Spans and metrics of one process that fail for the same reason are one outage.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from agentmesh.edge.clock import SYSTEM

log = logging.getLogger("agentmesh.telemetry")

LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.sdk._shared_internal",
)
"""What the SDK's exporters, and the queue before them, log to."""
QUEUE_FULL = "Queue full"
"""How the queue's line begins: the endpoint takes spans more slowly than they come."""
FULL = "it takes them too slowly, and the queue is full"
QUIET_S = 30.0
"""How long the queue must not have been full until that is over: load comes in bursts."""


class Outages:
    """The endpoints that fail now, as the exporters of one process find them. For any thread."""

    def __init__(self, monotonic: Callable[[], float] = SYSTEM.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], _Outage] = {}
        """By signal and endpoint."""
        self._over: dict[str, float] = {}
        """When the newest outage of an endpoint was over."""

    @property
    def lasts(self) -> bool:
        """Whether there is one that has been told and is not over."""
        return bool(self._open)

    def began(self) -> float:
        """The moment in which an export begins, for `failed`."""
        return self._monotonic()

    def failed(self, signal: str, endpoint: str, reason: str, lost: int = 0, *, began: float = math.inf) -> None:
        """An export of `signal` to `endpoint` has failed, and `lost` items are gone. Told, unless it is part of an outage: one
        that lasts, or one that has ended since the export `began`."""
        with self._lock:
            outage = self._open.get((signal, endpoint))
            if outage is None and began <= self._over.get(endpoint, -math.inf):
                return
            if outage is None:
                others = (o for (_, where), o in self._open.items() if where == endpoint and o.reason == reason)
                outage = self._open[signal, endpoint] = next(others, None) or _Outage(reason)
            tell, outage.told = not outage.told, True
            outage.lost += lost
            outage.newest = self._monotonic()
        if tell:
            log.warning("telemetry cannot be exported: %s", reason, extra={"endpoint": endpoint, "signal": signal})

    def succeeded(self, signal: str, endpoint: str) -> None:
        """An export has succeeded: the outage that it was part of is over."""
        if not self._open:
            return
        with self._lock:
            outage = self._open.get((signal, endpoint))
            if outage is None or (outage.reason == FULL and self._monotonic() - outage.newest < QUIET_S):
                return
            for key in [key for key, other in self._open.items() if other is outage]:
                del self._open[key]
            self._over[endpoint] = self._monotonic()
        log.info("telemetry is exported again", extra={"endpoint": endpoint, "signal": signal, "spans_lost": outage.lost})


class _Outage:
    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.told = False
        self.lost = 0
        self.newest = 0.0
        """When an export failed last, on the monotonic clock."""


class _Said(threading.local):
    """What the SDK says in this thread while one of our exporters is at work; None: none is."""

    lines: list[logging.LogRecord] | None = None
    answer: Any = None
    """How the exporter's own HTTP client says that the export has ended: with an error, or with a status and its reason."""


_said = _Said()
_overflow = threading.Event()
"""The queue of spans has been full since the last export of spans began."""


class _Kept(logging.Filter):
    """Keeps the lines of our exporters from the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and record.msg.startswith(QUEUE_FULL):
            _overflow.set()
            return False
        if _said.lines is None:
            return True
        _said.lines.append(record)
        return False


_kept = _Kept()


def hush() -> None:
    """Have the failures of our exporters told by `Outages` alone."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _kept not in logger.filters:
            logger.filters.insert(0, _kept)  # before the SDK's own, which drops what repeats


class Watched:
    """Mixed into an exporter's class, before it: its exports never raise, and tell `outages` how they end."""

    outages: Outages
    signal: str
    endpoint: str

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export as the SDK's class does."""
        said: list[logging.LogRecord] = []
        _said.lines, _said.answer = said, None
        began, full = self.outages.began(), self.signal == "spans" and _overflow.is_set()
        if full:  # what exports metrics meanwhile must not take it for itself: it says nothing of their endpoint
            _overflow.clear()
        try:
            result = super().export(batch, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - it is what the outage's line says
            said.insert(0, logging.makeLogRecord({"msg": "%s", "args": (error,)}))
            result = self.failure()
        finally:
            _said.lines = None
        if result.name != "SUCCESS":
            lost = len(batch) if isinstance(batch, Sequence) else 0
            self.outages.failed(self.signal, self.endpoint, reason_of(said, _said.answer), lost, began=began)
        elif full:
            self.outages.failed(self.signal, self.endpoint, FULL)
        else:
            self.outages.succeeded(self.signal, self.endpoint)
        return result

    def failure(self) -> Any:
        """What an export returns that has failed."""
        raise NotImplementedError

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Shut down as the SDK's class does, silently."""
        _said.lines = []
        try:
            super().shutdown(*args, **kwargs)  # type: ignore[misc]
        finally:
            _said.lines = None


def watched(exporter: type[Any], signal: str, failure: Any, outages: Outages) -> Any:
    """An exporter of this class, configured by the environment, that tells `outages` how its exports end.

    Raises:
        Exception: the environment has what the class does not take.
    """
    made = type(f"Watched{exporter.__name__}", (Watched, exporter), {"failure": lambda self: failure})
    found = made()
    found.outages, found.signal, found.endpoint = outages, signal, _host(str(getattr(found, "_endpoint", "")))
    client: Any = getattr(found, "_client", None)
    if export := getattr(client, "export", None):  # over HTTP: it says more than the lines of the log

        def noting(data: bytes) -> Any:
            _said.answer = answer = export(data)
            return answer

        client.export = noting
    return found


def _host(endpoint: str) -> str:
    """The host and port of an endpoint, without what may be secret in it."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    return parts.netloc.rpartition("@")[2] or endpoint


MOST = 300
"""Most characters of a reason."""
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_ERRNO = re.compile(r"\[Errno -?\d+\] [^'\")]*")


def reason_of(said: list[logging.LogRecord], answer: Any = None) -> str:
    """Why an export has failed, in a few words that do not name the signal: by what the SDK has said of it, and by the answer of
    its HTTP client, if it has one."""
    arguments = said[0].args if said and isinstance(said[0].args, tuple) else ()
    error = getattr(answer, "error", None) or next((a for a in arguments if isinstance(a, Exception)), None)
    if error is not None:
        text = _CREDENTIALS.sub("//", str(error))
        if found := _ERRNO.search(text):
            return found[0]
        return "it does not answer in time" if "timed out" in text.lower() or "timeout" in text.lower() else text[:MOST]
    if getattr(answer, "status_code", None):
        return f"{answer.status_code} {answer.reason}"[:MOST]
    codes = [str(getattr(a, "name", "")) for a in arguments if isinstance(getattr(a, "value", None), tuple)]  # of gRPC
    if codes:
        return f"{codes[0]}: {arguments[-1]}"[:MOST]
    return said[0].getMessage()[:MOST] if said else "it was refused"
