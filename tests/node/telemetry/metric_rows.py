"""The table of metrics as docs/observability.md has it, made from the list in the code."""

from __future__ import annotations

from agentmesh_node.telemetry.instruments import METRICS, Metric

SUFFIXES = {"s": "_seconds", "By": "_bytes"}


def prometheus_name(metric: Metric) -> str:
    """The name of its family in Prometheus' text; that of a counter's sample ends in `_total`."""
    name = metric.name.replace(".", "_") + SUFFIXES.get(metric.unit, "")
    return name + "_total" if metric.instrument == "counter" else name


def rows() -> list[str]:
    """The table's rows."""
    return [
        f"| `{m.name}` | `{prometheus_name(m)}` | {m.instrument} | `{m.unit}` | "
        f"{', '.join(f'`{label}`' for label in m.labels)} | {', '.join(m.roles)} | {m.meaning} |"
        for m in METRICS
    ]


if __name__ == "__main__":
    print("\n".join(rows()))
