"""Many sleeping agents at once: copies of one that was started, and went to rest, as every agent is.

To start ten thousand one by one would take longer than all that is measured with them. What a resting agent leaves behind is
its spec, its placement and its journal; these are read, and written again under other names, placed on the node that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import StoredMessage, get_last, read_all
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.records import decode_record, encode_record
from agentmesh.subjects import Subjects, placement_key, spec_key
from bench.stage import Stage
from support import eventually

WAIT_S = 60.0
CHUNK = 500
"""Messages between two waits for the server, which drops what it has no room to queue."""


class Pattern(msgspec.Struct, frozen=True):
    """What one resting agent has left."""

    spec: bytes
    placement: bytes
    journal: list[tuple[str, bytes]]
    """Record ids and bodies."""


async def pattern(stage: Stage) -> Pattern:
    """Start an agent, and wait until it rests."""
    mesh = await stage.mesh()
    info = await mesh.start_agent("pattern", kind="Echo")
    subjects, t = mesh.subjects, mesh.transport
    journal: list[StoredMessage] = []

    async def rests() -> bool:
        journal[:] = await read_all(t, subjects.stream("journal"), subjects.journal("pattern"))
        return bool(journal) and decode_record(journal[-1].data).kind == "rest"

    await eventually(rests, WAIT_S, "the rest of an idle agent")
    registry = Registry(t, subjects)
    spec = await registry.get(spec_key("pattern"))
    placement = await registry.get(placement_key(info.node or "", "pattern"))
    await mesh.stop("pattern")
    assert spec is not None and spec.value is not None
    assert placement is not None and placement.value is not None
    return Pattern(spec.value, placement.value, [(message.headers[RECORD], _aged(message.data)) for message in journal])


def _aged(body: bytes) -> bytes:
    """A record as of the oldest generation there can be: in another registry the placements' revisions begin anew."""
    record = decode_record(body)
    snapshot = record.snapshot and msgspec.structs.replace(record.snapshot, generation=1)
    return encode_record(msgspec.structs.replace(record, generation=1, snapshot=snapshot))


async def put(t: Transport, subjects: Subjects, like: Pattern, node: str, names: Sequence[str]) -> None:
    """Write the agents `names`, at rest and placed on `node`, which must not run yet.

    Raises:
        AssertionError: the server did not store all of it.
    """
    journal, registry = subjects.stream("journal"), subjects.stream("registry")

    async def stored() -> int:
        return sum([(await stream_state(t, stream)).last_seq for stream in (journal, registry)])

    wanted = await stored() + (len(like.journal) + 2) * len(names)
    for number, (subject, body, headers) in enumerate(_messages(subjects, like, node, names), 1):
        await t.publish(subject, body, headers=headers)
        if number % CHUNK == 0:
            await stored()

    async def complete() -> bool:
        # More than these may be stored: nodes that run already renew their leases. Each stream stores in order, so the last one
        # of each shows that the server has come to the end.
        ends = (journal, subjects.journal(names[-1])), (registry, subjects.registry_key(placement_key(node, names[-1])))
        return await stored() >= wanted and all([await get_last(t, *end) is not None for end in ends])

    await eventually(complete, WAIT_S, f"the storage of {len(names)} agents")


def _messages(
    subjects: Subjects, like: Pattern, node: str, names: Iterable[str]
) -> Iterable[tuple[str, bytes, dict[str, str] | None]]:
    for name in names:
        for record_id, body in like.journal:
            yield subjects.journal(name), body, {RECORD: record_id}
        yield subjects.registry_key(spec_key(name)), like.spec, None
        yield subjects.registry_key(placement_key(node, name)), like.placement, None
