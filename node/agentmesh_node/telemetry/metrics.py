"""Metrics of what turns spend (the GenAI conventions' counters, and the mesh's own for money), and of news that were dropped.
No-ops without an SDK."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import metrics

from agentmesh import semconv

log = logging.getLogger("agentmesh.node")

SAY_S = 60.0
"""How often, at most, a log line says that news were dropped."""

TOKENS = {
    "output_tokens": semconv.OUTPUT_TOKENS_COUNTER,
    "cache_read_input_tokens": semconv.CACHE_READ_TOKENS_COUNTER,
    "cache_write_input_tokens": semconv.CACHE_WRITE_TOKENS_COUNTER,
}


class TurnMetrics:
    """The counters of one process."""

    def __init__(self, meter: metrics.Meter | None = None) -> None:
        meter = meter or metrics.get_meter(semconv.SCOPE)
        self._input = meter.create_counter(semconv.INPUT_TOKENS_COUNTER, "{token}", "Input tokens, the cached ones included.")
        self._tokens = {name: meter.create_counter(counter, "{token}") for name, counter in TOKENS.items()}
        self._cost = meter.create_counter(semconv.COST_COUNTER, "{USD}", "What turns have cost.")
        self._tools = meter.create_counter(semconv.TOOL_CALLS_COUNTER, "{call}", "Tool runs of turns.")

    def spent(self, kind: str, made: Mapping[str, Any]) -> None:
        """Count the spending of a run of a turn (`agentmesh_node.turns.budget_meter.BudgetMeter.made`)."""
        model = {semconv.OPERATION: semconv.OPERATION_CHAT, semconv.REQUEST_MODEL: made.get("model", ""), semconv.KIND: kind}
        read = sum(made.get(name, 0) for name in ("input_tokens", "cache_read_input_tokens", "cache_write_input_tokens"))
        if read:
            self._input.add(read, model)
        for name, counter in self._tokens.items():
            if made.get(name):
                counter.add(made[name], model)
        if made.get("usd"):
            self._cost.add(made["usd"], model)
        if made.get("tool_calls"):
            self._tools.add(made["tool_calls"], {semconv.KIND: kind})


class DroppedNews:
    """Counts the live events and facts of one node that could not be sent, and says so once a minute at most."""

    def __init__(self, node: str, monotonic: Callable[[], float], meter: metrics.Meter | None = None) -> None:
        meter = meter or metrics.get_meter(semconv.SCOPE)
        self._counter = meter.create_counter(semconv.DROPPED_COUNTER, "{message}", "Live events and facts that were not sent.")
        self._node = node
        self._monotonic = monotonic
        self._total = self._said = 0
        self._said_at: float | None = None

    def seen(self, total: int) -> None:
        """So many have been dropped since the process began."""
        if total > self._total:
            self._counter.add(total - self._total, {semconv.NODE: self._node})
            self._total = total
        now = self._monotonic()
        if total > self._said and (self._said_at is None or now - self._said_at >= SAY_S):
            log.warning("live events and facts could not be sent and were dropped", extra={"count": total - self._said})
            self._said, self._said_at = total, now
