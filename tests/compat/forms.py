"""What a build stores and sends, as names: fields of structs, kinds, statuses, headers.

`python tests/compat/forms.py` prints it as JSON; `first.json` is that of the first build, and never changes.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from msgspec.inspect import StructType, Type, multi_type_info

from agentmesh import control_values, registry_values, wire
from agentmesh.edge import journal
from agentmesh.records import Record, RecordKind

ROOTS = (
    Record,
    wire.Outcome,
    wire.PromptBody,
    registry_values.Spec,
    registry_values.NodeLease,
    registry_values.SupervisorLease,
    registry_values.Placement,
    control_values.ControlRequest,
    control_values.Status,
    control_values.NodeStats,
)
"""What is stored or sent as JSON."""


def forms() -> dict[str, list[str]]:
    """By the name of a struct its fields; beside them the kinds of records, the statuses of specs, and the headers."""
    found: dict[str, list[str]] = {}
    for info in multi_type_info(ROOTS):
        visit(info, found)
    found["kind"] = list(get_args(RecordKind.__value__))
    found["status"] = list(get_args(registry_values.AgentStatus.__value__))
    found["header"] = sorted({name for module in (wire, journal) for name in vars(module).values() if _is_header(name)})
    return found


def visit(info: Any, found: dict[str, list[str]]) -> None:
    """Put into `found` the fields of every struct that is a part of `info`, a type as `msgspec.inspect` tells it."""
    if isinstance(info, StructType):
        if info.cls.__name__ in found:
            return
        found[info.cls.__name__] = [field.name for field in info.fields]
        for field in info.fields:
            visit(field.type, found)
    elif isinstance(info, Type):
        for name in info.__struct_fields__:
            part = getattr(info, name)
            for inner in part if isinstance(part, tuple) else (part,):
                visit(inner, found)


def _is_header(value: object) -> bool:
    return isinstance(value, str) and value.startswith("Mesh-")


if __name__ == "__main__":
    print(json.dumps(forms(), indent=1))
