"""What is measured of turns, of news that were dropped, and of the loop (the list of all metrics: `instruments`). No-ops without
an SDK."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import metrics

from agentmesh import semconv
from agentmesh_node.telemetry.instruments import Instruments, own

log = logging.getLogger("agentmesh.node")

SAY_S = 60.0
"""How often, at most, a log line says that news were dropped."""
WAITED_S = 0.01
"""A message that lay for less than this in its mailbox did not wait."""
LAG_PERIOD_S = 0.5
MOST_CODES = 100
"""Most error codes of a kind that are told apart: a class of errors of users' own may have any. The others are `_OTHER`."""
OTHER = "_OTHER"
MOST_NAMED = 1000
"""Most agents that are told apart by name, where that is asked for; further ones count for their kinds alone."""

TOKENS = {
    "output_tokens": semconv.OUTPUT_TOKENS_COUNTER,
    "cache_read_input_tokens": semconv.CACHE_READ_TOKENS_COUNTER,
    "cache_write_input_tokens": semconv.CACHE_WRITE_TOKENS_COUNTER,
}


class KindMetrics:
    """The metrics of the agents of one kind; of one agent, where names are asked for."""

    def __init__(self, instruments: Instruments, labels: Mapping[str, str]) -> None:
        self.on = instruments.on
        """Whether anybody collects them."""
        self.labels = dict(labels)
        self._turn = instruments.histogram(semconv.TURN_DURATION)
        self._wait = instruments.histogram(semconv.QUEUE_WAIT)
        self._takeover = instruments.histogram(semconv.TAKEOVER_DURATION)
        self._by_code: dict[str | None, dict[str, str]] = {}
        self.activations = instruments.tally(semconv.ACTIVATIONS_COUNTER, self.labels)
        self.journal_bytes = instruments.tally(semconv.JOURNAL_BYTES_COUNTER, self.labels)

    def turn(self, seconds: float, code: str | None) -> None:
        """A turn has ended, with an answer or with an error of this code, after so long."""
        labels = self._by_code.get(code)
        if labels is None:
            if code is not None and len(self._by_code) > MOST_CODES:
                code = OTHER
            failed = {semconv.ERROR_TYPE: code} if code is not None else {}
            invoked = {semconv.OPERATION: semconv.OPERATION_INVOKE_AGENT}
            labels = self._by_code[code] = {**invoked, **self.labels, **failed}
        self._turn.record(seconds, labels)

    def waited(self, seconds: float) -> None:
        """A turn has begun whose message was stored so long ago."""
        if seconds >= WAITED_S:
            self._wait.record(seconds, self.labels)

    def taken_over(self, seconds: float) -> None:
        """An agent of another process goes on here, so long after it was placed here."""
        self._takeover.record(max(0.0, seconds), self.labels)


class TurnMetrics:
    """The counters of one process."""

    def __init__(self, meter: metrics.Meter | None = None, *, names: bool = False) -> None:
        """
        Args:
            meter: by default the process's.
            names: label them with the agents' names, too.
        """
        self.instruments = own() if meter is None else Instruments(meter)
        self._names = names
        self._kinds: dict[tuple[str, str], KindMetrics] = {}
        counter = self.instruments.counter
        self._input = counter(semconv.INPUT_TOKENS_COUNTER)
        self._tokens = {name: counter(metric) for name, metric in TOKENS.items()}
        self._cost = counter(semconv.COST_COUNTER)
        self._tools = counter(semconv.TOOL_CALLS_COUNTER)

    def of(self, kind: str, agent: str) -> KindMetrics:
        """The metrics of this agent's turns."""
        key = (kind, self._shown(kind, agent))
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = KindMetrics(self.instruments, self._labels(*key))
        return found

    def _shown(self, kind: str, agent: str) -> str:
        """The name that the agent's metrics bear; "" for none."""
        return agent if self._names and (len(self._kinds) < MOST_NAMED or (kind, agent) in self._kinds) else ""

    def spent(self, kind: str, made: Mapping[str, Any], agent: str = "") -> None:
        """Count the spending of a run of a turn (`agentmesh_node.turns.budget_meter.BudgetMeter.made`)."""
        whose = self._labels(kind, self._shown(kind, agent))
        model = {semconv.OPERATION: semconv.OPERATION_CHAT, semconv.REQUEST_MODEL: made.get("model", ""), **whose}
        read = sum(made.get(name, 0) for name in ("input_tokens", "cache_read_input_tokens", "cache_write_input_tokens"))
        if read:
            self._input.add(read, model)
        for name, counter in self._tokens.items():
            if made.get(name):
                counter.add(made[name], model)
        if made.get("usd"):
            self._cost.add(made["usd"], model)
        if made.get("tool_calls"):
            self._tools.add(made["tool_calls"], whose)

    def _labels(self, kind: str, agent: str) -> dict[str, str]:
        return {semconv.KIND: kind, **({semconv.AGENT_NAME: agent} if agent else {})}


def model_call(provider: str, model: str, seconds: float, error: str | None) -> None:
    """A call to a model that the mesh made itself has ended after so long, with an answer or with an error."""
    failed = {semconv.ERROR_TYPE: error} if error is not None else {}
    called = {semconv.OPERATION: semconv.OPERATION_CHAT, semconv.PROVIDER: provider, semconv.REQUEST_MODEL: model}
    own().histogram(semconv.MODEL_CALL_DURATION).record(seconds, {**called, **failed})


class DroppedNews:
    """Counts the live events and facts of one node that could not be sent, and says so once a minute at most."""

    def __init__(self, node: str, monotonic: Callable[[], float], meter: metrics.Meter | None = None) -> None:
        self._counter = (own() if meter is None else Instruments(meter)).counter(semconv.DROPPED_COUNTER)
        self._labels = {semconv.NODE: node}
        self._monotonic = monotonic
        self._total = self._said = 0
        self._said_at: float | None = None

    def seen(self, total: int) -> None:
        """So many have been dropped since the process began."""
        if total > self._total:
            self._counter.add(total - self._total, self._labels)
            self._total = total
        now = self._monotonic()
        if total > self._said and (self._said_at is None or now - self._said_at >= SAY_S):
            log.warning("live events and facts could not be sent and were dropped", extra={"count": total - self._said})
            self._said, self._said_at = total, now


class LoopLag:
    """Measures how much later than asked the running loop comes round. `begin`, then `close`."""

    def __init__(self, instruments: Instruments | None = None) -> None:
        self._lag = (instruments or own()).histogram(semconv.LOOP_LAG)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Measure from now on."""
        due = self._loop.time() + LAG_PERIOD_S
        self._timer = self._loop.call_at(due, self._came_round, due)

    def _came_round(self, due: float) -> None:
        self._lag.record(max(0.0, self._loop.time() - due))
        self.begin()

    def close(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
