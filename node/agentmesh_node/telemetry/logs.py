"""The log of a hosting process (node or supervisor): one line per record on stderr, with fields.

Everything goes through the standard library's `logging`, so that records of other libraries have the same form: `key=value` on a
terminal, one JSON object per line otherwise.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TextIO

import structlog
from opentelemetry import trace

from agentmesh.errors import BadRequest

LOG_VARIABLE = "MESH_LOG"
"""`json` or `text`, in any case; by default text on a terminal, else JSON."""
LEVEL_VARIABLE = "MESH_LOG_LEVEL"
"""A level's name; `info` by default."""
SHAPES = ("text", "json")
LEVELS = tuple(name.lower() for name in logging.getLevelNamesMapping())
CHATTY = ("httpx2", "mcp")
"""Libraries that log each request at `info`: they are shown only at `debug`."""
HEARSAY = ("opentelemetry.baggage.propagation", "opentelemetry.trace.propagation.tracecontext")
"""Libraries that warn of a caller's headers and repeat them, so that strangers could fill the log with what they like. What they
cannot read of a trace context is left out; at `debug` the lines are shown."""


def configure(
    role: str, instance: str, *, stream: TextIO | None = None, environ: Mapping[str, str] | None = None
) -> logging.Handler:
    """Send the process's log to `stream` (stderr by default). Returns the handler; calling again replaces it.

    Every line bears `time` (UTC), `level`, `logger`, `event`, `role`, `instance` and, inside a recorded span, `trace_id` and
    `span_id`.

    Raises:
        BadRequest: a variable has a value that is none of its own.
    """
    environ = os.environ if environ is None else environ
    stream = sys.stderr if stream is None else stream
    shape = _chosen(environ, LOG_VARIABLE, SHAPES) or ("text" if stream.isatty() else "json")
    level = _chosen(environ, LEVEL_VARIABLE, LEVELS) or "info"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(role, instance, as_json=shape == "json"))
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "_mesh", False)]:
        root.removeHandler(old)
    handler._mesh = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(level.upper())
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.NOTSET if root.level <= logging.DEBUG else logging.WARNING)
    for hearsay in HEARSAY:
        logging.getLogger(hearsay).setLevel(logging.NOTSET if root.level <= logging.DEBUG else logging.ERROR)
    return handler


def _chosen(environ: Mapping[str, str], variable: str, values: Sequence[str]) -> str | None:
    given = environ.get(variable, "").strip().lower()
    if given and given not in values:
        raise BadRequest(f"{variable}: {given!r} is none of {', '.join(values)}")
    return given or None


def _formatter(role: str, instance: str, *, as_json: bool) -> structlog.stdlib.ProcessorFormatter:
    def identity(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.pop("message", None)  # left on the record by another handler's formatter: the same as `event`
        event["role"], event["instance"] = role, instance
        return event

    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        identity,
        _span,
    ]
    last: list[structlog.types.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        # Without local variables: they hold prompts, and options that may be secrets.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last += [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer(default=repr)]
    else:
        keys = ["time", "level", "event", "logger", "role", "instance"]
        last += [structlog.processors.format_exc_info, structlog.processors.LogfmtRenderer(key_order=keys, drop_missing=True)]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)


def _span(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event
