"""What this build stores and sends beyond the build before, and which way each goes (docs/compatibility.md). Pure.

Two builds run beside each other while a mesh is upgraded, and an agent may go from the newer to the older one and back. What
the older one does not know must not be lost on that way. `ADDED` is the list of all that was added since version 1, and the
only place where a direction is declared:

    ignored   the older build passes over it and drops it where it writes anew; its absence means what it meant before
    kept      the older build passes it on as it is, without knowing it
    refused   in a record: the record bears `version`, which the older build does not read; its agent waits for a newer node

To add a field to something that is stored or sent:

1. Add it to its struct, with a default that means what its absence meant, and a row here.
2. If it is `refused`, write it only where `Core.writes` (in `agentmesh.turn`) is at least its version; code outside an owner
   asks `Services.formats.writes` in its place. Where it is less, do as the build before does.
3. Add the row to the table in docs/compatibility.md. `tests/compat/test_additions.py` compares structs, rows and page.

Nobody sets a record's version by hand: `records.encode_record` finds it from what the record holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, structs
from msgspec.inspect import CollectionType, DictType, StructType, Type, UnionType, VarTupleType, type_info

type Direction = Literal["ignored", "kept", "refused"]

FIRST = 1
SECOND = 2
"""The second version of records: it has all that `ADDED` refuses to the first build."""
RECORD_VERSION = SECOND
"""The newest version of records that this build reads."""


class Addition(NamedTuple):
    """One thing that is stored or sent and that the build before does not know."""

    what: str
    """`Struct.field`; `Struct`, where a new one stands in a union (an effect); `kind:NAME`, a kind of record; `status:NAME`, a
    status of a spec; `header NAME`. No test finds by itself: `label NAME`, `key NAME` of the registry, `op NAME` of a request."""
    old: Direction
    """What the build before does with it."""
    version: int = FIRST
    """`refused`: the version of a record that holds it."""


ADDED: tuple[Addition, ...] = (
    Addition("NodeLease.reads", "ignored"),
    Addition("SupervisorLease.reads", "ignored"),
    Addition("NodeLease.facts", "ignored"),
    Addition("label mesh.reads-2", "kept"),
    Addition("Spec.ran", "ignored"),
    Addition("Status.waiting", "ignored"),
    Addition("Status.since", "ignored"),
    Addition("Status.sender", "ignored"),
    Addition("Status.tool", "ignored"),
    Addition("Ledger.spec", "ignored"),
    Addition("Change.spec", "ignored"),
    Addition("Ledger.history_limit", "ignored"),
    Addition("Change.history_limit", "ignored"),
    Addition("Outcome.msg_id", "ignored"),
    Addition("Outcome.stored", "ignored"),
    Addition("Caller.msg_id", "ignored"),
    Addition("Caller.stored", "ignored"),
    Addition("Echo.msg_id", "ignored"),
    Addition("Echo.stored", "ignored"),
    Addition("header Mesh-Timeout", "ignored"),
    Addition("NodeStats.time", "ignored"),
    Addition("NodeStats.server_time", "ignored"),
    Addition("NodeStats.dropped", "ignored"),
    Addition("kind:set", "refused", SECOND),
    Addition("Ledger.overrides", "refused", SECOND),
    Addition("Change.overrides", "refused", SECOND),
    Addition("Ledger.sets", "refused", SECOND),
    Addition("Change.sets", "refused", SECOND),
    Addition("Spec.backend_options", "ignored"),
    Addition("Spec.sets", "ignored"),
    Addition("Spec.answer_schema", "ignored"),
    Addition("Status.configuration", "ignored"),
    Addition("ControlRequest.set", "ignored"),
    Addition("ControlRequest.expect", "ignored"),
    Addition("op set", "ignored"),
    Addition("header Mesh-End-By", "ignored"),
    Addition("header Mesh-Root", "ignored"),
    Addition("SendMail.end_by", "ignored"),
    Addition("SendMail.root", "ignored"),
    Addition("SendMail.request", "ignored"),
    Addition("Caller.origin", "ignored"),
    Addition("Caller.end_by", "ignored"),
    Addition("Caller.root", "ignored"),
    Addition("Ledger.delegated", "ignored"),
    Addition("Change.delegated", "ignored"),
    Addition("ControlRequest.tree", "ignored"),
    Addition("ControlRequest.sender", "ignored"),
    Addition("ControlRequest.origin", "ignored"),
    Addition("op open", "ignored"),
    Addition("Record.placed", "ignored"),
    Addition("Deferred.since", "ignored"),
    Addition("Deferred.until", "ignored"),
    Addition("Awaited.since", "ignored"),
    Addition("Awaited.deadline", "ignored"),
    Addition("Notice.closed", "ignored"),
    Addition("Status.open", "ignored"),
    Addition("Status.open_more", "ignored"),
    Addition("Status.callback", "ignored"),
    Addition("ControlRequest.text", "ignored"),
    Addition("op reply", "ignored"),
    Addition("Outcome.tools", "ignored"),
    Addition("TurnInfo.tools", "ignored"),
    Addition("TurnInfo.note", "ignored"),
    Addition("Record.open", "ignored"),
    Addition("Ledger.kept", "refused", SECOND),
    Addition("Change.kept", "refused", SECOND),
    Addition("TurnInfo.trace", "ignored"),
    Addition("TurnInfo.derived", "ignored"),
    Addition("Record.attempt", "ignored"),
    Addition("Record.handled", "ignored"),
    Addition("Step.began", "ignored"),
    Addition("Step.ended", "ignored"),
    Addition("Step.generation", "ignored"),
    Addition("Step.boot", "ignored"),
    Addition("Step.attempt", "ignored"),
    Addition("Step.inner", "ignored"),
    Addition("Queued.links", "ignored"),
    Addition("Turning.traced", "ignored"),
    Addition("Turning.moves", "ignored"),
    Addition("Notice.trace", "ignored"),
    Addition("Bury.trace", "ignored"),
    Addition("Wait.generation", "ignored"),
    Addition("Wait.boot", "ignored"),
    Addition("Wait.attempt", "ignored"),
    Addition("SetTimer.trace", "ignored"),
    Addition("Ledger.causes", "ignored"),
    Addition("Change.causes", "ignored"),
    Addition("NodeLease.waiting", "ignored"),
    Addition("NodeLease.by_operation", "ignored"),
    Addition("header Mesh-Relayed", "ignored"),
    Addition("header Mesh-Key", "ignored"),
    Addition("header Mesh-Key-Digest", "ignored"),
    Addition("Caller.key", "refused", SECOND),
    Addition("Resolve.key", "refused", SECOND),
    Addition("Echo.key", "refused", SECOND),
    Addition("header Mesh-Chain", "ignored"),
    Addition("SendMail.chain", "ignored"),
    Addition("TurnInfo.chain", "ignored"),
    Addition("Caller.chain", "refused", SECOND),
    Addition("Spec.move_to", "ignored"),
    Addition("op move", "ignored"),
    Addition("ControlRequest.node", "ignored"),
    Addition("ControlRequest.any_turn", "ignored"),
    Addition("NodeLease.code", "ignored"),
    Addition("Spec.turn_code", "ignored"),
    Addition("Turning.code", "ignored"),
    Addition("TurnInfo.code", "ignored"),
)


# --- labels -----------------------------------------------------------------------------------------------------------
OWN_LABEL = "mesh."
"""How labels of the mesh's own begin."""
_READS = OWN_LABEL + "reads-"
_YES = "yes"


def node_labels(reads: int) -> dict[str, str]:
    """The labels by which a node says, to every build's planner, which records it reads."""
    return {f"{_READS}{version}": _YES for version in range(SECOND, reads + 1)}


def required(labels: Mapping[str, str]) -> int:
    """The version of records that a node must read to run an agent with these labels."""
    return max((int(n) for key in labels if key.startswith(_READS) and (n := key.removeprefix(_READS)).isdigit()), default=FIRST)


def requiring(labels: Mapping[str, str], version: int) -> dict[str, str]:
    """`labels` of an agent whose journal holds records of `version`, or is about to."""
    others = {key: value for key, value in labels.items() if not key.startswith(_READS)}
    return others | {f"{_READS}{version}": _YES} if version > FIRST else others


def relabelled(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The labels `new` of an agent that had `old`, with what the mesh itself had put there."""
    return {**users_labels(new), **{key: value for key, value in old.items() if key.startswith(OWN_LABEL)}}


def users_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """`labels` without those of the mesh's own."""
    return {key: value for key, value in labels.items() if not key.startswith(OWN_LABEL)}


# --- the version that a record needs --------------------------------------------------------------------------------
type Needed = Callable[[Any], int]
"""The least version that a reader must know to lose nothing of a value."""


def needed_by(root: Any, added: Iterable[Addition] = ADDED) -> Needed:
    """What finds the version that values of the type `root` need.

    It looks only where something was added: a value of which no part was costs one call, or none as a part of another.
    """
    rows = {row.what: row.version for row in added if row.old == "refused"}
    return _Compiler(rows).of(type_info(root)) or _first


def _first(value: Any) -> int:
    return FIRST


class _Compiler:
    """Makes a function of a type: it visits the parts of a value that can hold something added, and no others."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._looks: dict[type, tuple[Callable[[Any], Any], tuple[Any, ...]]] = {}
        """By class: what reads those of its fields that can hold something added, and their defaults. A value that has these
        needs no look at its parts, and no call: so it is with nearly all values of nearly all records."""

    def of(self, info: Type) -> Needed | None:
        """None: no part of such a value was added."""
        match info:
            case StructType():
                return self._struct(info)
            case UnionType(types=types):
                return self._one_of({_class_of(t): found for t in types if (found := self.of(t)) is not None})
            case DictType(value_type=inner):
                return self._most_of(self.of(inner), dict.values)
            case VarTupleType(item_type=inner) | CollectionType(item_type=inner):
                return self._most_of(self.of(inner), None)
            case _:
                return None

    def _struct(self, info: StructType) -> Needed | None:
        name = info.cls.__name__
        itself = self._rows.get(name, FIRST)
        defaults = {field.name: _default(field) for field in structs.fields(info.cls)}
        parts: list[tuple[str, int, Needed | None]] = []
        for field in info.fields:
            version = self._rows.get(f"{name}.{field.name}")
            find = self.of(field.type) if version is None else None
            if version is not None or find is not None:
                parts.append((field.name, version or FIRST, find))
        kinds = {row.removeprefix("kind:"): version for row, version in self._rows.items() if row.startswith("kind:")}
        kinds = kinds if name == "Record" else {}
        if not parts:
            return None if itself == FIRST and not kinds else lambda value: kinds.get(value.kind, itself) if kinds else itself
        names = [field for field, _, _ in parts]
        read = attrgetter(*names, names[0])  # it returns no tuple if it has only one name
        plain = tuple(defaults[field] for field in (*names, names[0]))
        checks = [(defaults[field], needs, find) for field, needs, find in parts]
        looks = self._looks
        if itself == FIRST and not kinds:
            looks[info.cls] = read, plain

        def needed(value: Any) -> int:
            version = kinds.get(value.kind, itself) if kinds else itself
            for part, (default, needs, find) in zip(read(value), checks, strict=False):
                if part is default:
                    continue
                if find is None:
                    if version < needs and part != default:
                        version = needs
                elif part is not None and part is not UNSET:
                    look = looks[kind] if (kind := type(part)) in looks else None
                    if (look is None or look[0](part) != look[1]) and (found := find(part)) > version:
                        version = found
            return version

        return needed

    def _one_of(self, by_class: Mapping[type, Needed]) -> Needed | None:
        if not by_class:
            return None

        def needed(value: Any) -> int:
            found = by_class.get(type(value))
            return FIRST if found is None else found(value)

        return needed

    def _most_of(self, find: Needed | None, parts: Callable[[Any], Iterable[Any]] | None) -> Needed | None:
        """Of a collection. `parts`: its members, if they are not what it iterates over."""
        if find is None:
            return None
        looks = self._looks

        def needed(value: Any) -> int:
            version = FIRST
            for part in value if parts is None else parts(value):
                look = looks[kind] if (kind := type(part)) in looks else None
                if (look is None or look[0](part) != look[1]) and (found := find(part)) > version:
                    version = found
            return version

        return needed


def _class_of(info: Type) -> type:
    if isinstance(info, StructType):
        return info.cls
    return dict if isinstance(info, DictType) else tuple if isinstance(info, VarTupleType) else list


def _default(field: structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
