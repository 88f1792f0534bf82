"""Many sleeping agents at once: copies of one that was started, and went to rest, as every agent is.

To start ten thousand one by one would take longer than all that is measured with them. What a resting agent leaves behind is
its spec, its placement and its journal; these are read, and written again under other names, placed on the node that is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from agentmesh.edge.jetstream import read_all, stream_state
from agentmesh.edge.journal import RECORD
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.records import decode_record, encode_record
from agentmesh.subjects import Subjects, placement_key, spec_key
from bench.stage import Stage

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
    async with asyncio.timeout(WAIT_S):
        while True:
            journal = await read_all(t, subjects.stream("journal"), subjects.journal("pattern"))
            if journal and decode_record(journal[-1].data).kind == "rest":
                break
            await asyncio.sleep(0.05)
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
        RuntimeError: the server did not store all of it.
    """
    journal, registry = subjects.stream("journal"), subjects.stream("registry")
    before = [(await stream_state(t, stream)).last_seq for stream in (journal, registry)]
    messages = _messages(subjects, like, node, names)
    count = 0
    for subject, body, headers in messages:
        await t.publish(subject, body, headers=headers)
        count += 1
        if count % CHUNK == 0:
            await asyncio.gather(stream_state(t, journal), stream_state(t, registry))
    wanted = (len(like.journal) * len(names), 2 * len(names))
    async with asyncio.timeout(WAIT_S):
        while [(await stream_state(t, s)).last_seq for s in (journal, registry)] != [b + w for b, w in zip(before, wanted, strict=True)]:
            await asyncio.sleep(0.05)


def _messages(
    subjects: Subjects, like: Pattern, node: str, names: Iterable[str]
) -> Iterable[tuple[str, bytes, dict[str, str] | None]]:
    for name in names:
        for record_id, body in like.journal:
            yield subjects.journal(name), body, {RECORD: record_id}
        yield subjects.registry_key(spec_key(name)), like.spec, None
        yield subjects.registry_key(placement_key(node, name)), like.placement, None
