"""All metrics of the mesh's processes: one list, from which the instruments are made, and with which a test compares the page
(docs/observability.md#metrics) and what is really exported.

A counter that work adds to often is a `Tally`, a plain number that is read when metrics are collected. Each set of labels is made
once and kept, so that a turn costs the record of one histogram and a few additions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from opentelemetry import metrics

from agentmesh import semconv

type LabelSet = Mapping[str, str]
type Read = Callable[[], Iterable[tuple[float, LabelSet]]]
"""Gives values with their labels; called in the thread that collects."""


class Metric(NamedTuple):
    """One metric."""

    name: str
    instrument: Literal["counter", "histogram", "gauge"]
    unit: str
    """In UCUM, as OpenTelemetry has it."""
    meaning: str
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("node",)
    """The processes that have it: `node`, `supervisor`."""
    buckets: tuple[float, ...] = ()
    """Of a histogram: the upper bounds."""


def _doubling(first: float, count: int) -> tuple[float, ...]:
    return tuple(round(first * 2**power, 6) for power in range(count))


_MODEL = (semconv.OPERATION, semconv.REQUEST_MODEL, semconv.KIND)
_BOTH = ("node", "supervisor")
QUICK, LONG = _doubling(0.001, 16), _doubling(0.0125, 16)
"""Buckets: 1 ms to 33 s for what should be quick, and 12.5 ms to 410 s, the last ones those that the conventions advise for
agents."""

METRICS: tuple[Metric, ...] = (
    Metric(
        semconv.TURN_DURATION, "histogram", "s",
        "Turns that ended, and how long each took, tries and takeovers included; a failed one has its error's code.",
        (semconv.OPERATION, semconv.KIND, semconv.ERROR_TYPE), buckets=LONG,
    ),
    Metric(
        semconv.QUEUE_WAIT, "histogram", "s",
        "How long a message lay in the mailbox until its turn began, of those that waited for 10 ms and more.",
        (semconv.KIND,), buckets=LONG,
    ),
    Metric(semconv.MAILBOX_DEPTH, "gauge", "{message}", "Prompts that wait for their turns.", (semconv.KIND,)),
    Metric(
        semconv.MODEL_CALL_DURATION, "histogram", "s",
        "Calls to models that the mesh makes itself (not those of programs that it runs, as `claude` and `codex`).",
        (semconv.OPERATION, semconv.PROVIDER, semconv.REQUEST_MODEL, semconv.ERROR_TYPE), buckets=LONG,
    ),
    Metric(semconv.INPUT_TOKENS_COUNTER, "counter", "{token}", "Input tokens, the cached ones included.", _MODEL),
    Metric(semconv.OUTPUT_TOKENS_COUNTER, "counter", "{token}", "Output tokens.", _MODEL),
    Metric(semconv.CACHE_READ_TOKENS_COUNTER, "counter", "{token}", "Input tokens that were read from a cache.", _MODEL),
    Metric(semconv.CACHE_WRITE_TOKENS_COUNTER, "counter", "{token}", "Input tokens that were written to a cache.", _MODEL),
    Metric(semconv.COST_COUNTER, "counter", "{USD}", "What turns have cost, each agent's own.", _MODEL),
    Metric(semconv.TOOL_CALLS_COUNTER, "counter", "{call}", "Tool runs of turns.", (semconv.KIND,)),
    Metric(semconv.AGENTS_GAUGE, "gauge", "{agent}", "Agents on this node: placed, of these awake, of these running.",
           (semconv.AGENT_STATE,)),
    Metric(
        semconv.ACTIVATIONS_COUNTER, "counter", "{activation}",
        "Agents that were loaded: at their start, from sleep, or taken over.", (semconv.KIND,),
    ),
    Metric(
        semconv.TAKEOVER_DURATION, "histogram", "s",
        "Agents taken over from another process, and the time from the placement here until each could go on.",
        (semconv.KIND,), buckets=QUICK,
    ),
    Metric(semconv.JOURNAL_BYTES_COUNTER, "counter", "By", "Bytes of records that were committed.", (semconv.KIND,)),
    Metric(semconv.LOOP_LAG, "histogram", "s", "How much later than asked the main loop comes round, measured twice a second.",
           roles=_BOTH, buckets=QUICK),
    Metric(semconv.DROPPED_COUNTER, "counter", "{message}", "Live events and facts that could not be sent.", (semconv.NODE,)),
    Metric(
        semconv.STORE_ERRORS_COUNTER, "counter", "{error}",
        "Requests to the store that were refused, or had no answer (`timeout`, `no_responders`, `disconnected`).",
        (semconv.ERROR_TYPE,), roles=_BOTH,
    ),
    Metric(
        semconv.ASKS_COUNTER, "counter", "{ask}",
        "Plain NATS requests for agents that this process took; one that it refused has its error's code.",
        (semconv.ERROR_TYPE,), roles=_BOTH,
    ),
    Metric(semconv.WAITING_GAUGE, "gauge", "{agent}", "Placements waiting: agents without a node, as the leader knows it.",
           roles=("supervisor",)),
    Metric(semconv.LEADING_GAUGE, "gauge", "1", "1 while this supervisor leads, else 0.", roles=("supervisor",)),
    Metric(
        semconv.LEADER_CHANGES_COUNTER, "counter", "{change}",
        "How often this supervisor has become the leader; their sum is how often the leader has changed.", roles=("supervisor",),
    ),
    Metric(semconv.DECISIONS_COUNTER, "counter", "{decision}", "What a supervisor decides: `placed`, `moved`, `waiting`, ...",
           (semconv.DECISION,), roles=("supervisor",)),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}


class Tally:
    """A count that is added to often: `tally.value += n`, on one thread."""

    __slots__ = ("labels", "value")

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.value: float = 0


class Instruments:
    """The instruments of one meter, each made at its first use."""

    def __init__(self, meter: metrics.Meter | None = None) -> None:
        """By default the process's; `telemetry.otel.setup` comes first."""
        provider = metrics.get_meter_provider()
        self.on = meter is not None or not type(provider).__module__.startswith("opentelemetry.metrics")
        """Whether somebody collects: the API's own providers do nothing."""
        self._meter = meter if meter is not None else metrics.get_meter(semconv.SCOPE)
        self._made: dict[str, Any] = {}
        self._tallies: dict[str, dict[tuple[tuple[str, str], ...], Tally]] = {}
        self._reads: dict[str, list[Read]] = {}

    def counter(self, name: str) -> metrics.Counter:
        """A counter for what is rare."""
        return self._once(name, self._meter.create_counter)  # type: ignore[no-any-return]

    def histogram(self, name: str) -> metrics.Histogram:
        bounds = BY_NAME[name].buckets
        make = functools.partial(self._meter.create_histogram, explicit_bucket_boundaries_advisory=bounds)
        return self._once(name, make)  # type: ignore[no-any-return]

    def tally(self, name: str, labels: LabelSet | None = None) -> Tally:
        """The count of a counter with these labels, from zero on."""
        if name not in self._tallies:
            self._tallies[name] = {}
            self.observed(name, lambda: [(t.value, t.labels) for t in list(self._tallies[name].values())])
        key = tuple(sorted((labels or {}).items()))
        return self._tallies[name].setdefault(key, Tally(dict(key)))

    def observed(self, name: str, read: Read) -> Callable[[], None]:
        """Have the values of a gauge or counter read when metrics are collected. Returns what ends that."""
        reads = self._reads.setdefault(name, [])
        reads.append(read)
        counted = BY_NAME[name].instrument == "counter"
        create: Any = self._meter.create_observable_counter if counted else self._meter.create_observable_gauge

        def observe(_: metrics.CallbackOptions) -> list[metrics.Observation]:
            return [metrics.Observation(value, labels) for each in list(reads) for value, labels in each()]

        self._once(name, lambda *about: create(about[0], [observe], *about[1:]))
        return functools.partial(reads.remove, read)

    def _once(self, name: str, create: Callable[..., Any]) -> Any:
        if name not in self._made:
            metric = BY_NAME[name]
            self._made[name] = create(metric.name, metric.unit, metric.meaning)
        return self._made[name]


@functools.cache
def own() -> Instruments:
    """Those of this process."""
    return Instruments()
