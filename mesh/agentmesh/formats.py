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
    Addition("ControlRequest.text", "ignored"),
    Addition("op reply", "ignored"),
    Addition("Outcome.tools", "ignored"),
    Addition("TurnInfo.tools", "ignored"),
    Addition("TurnInfo.note", "ignored"),
    Addition("Record.open", "ignored"),
    Addition("Ledger.kept", "refused", SECOND),
    Addition("Change.kept", "refused", SECOND),
    Addition("TurnInfo.trace", "ignored"),
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
    Addition("Notice.trace", "ignored"),
    Addition("Wait.generation", "ignored"),
    Addition("Wait.boot", "ignored"),
    Addition("Wait.attempt", "ignored"),
