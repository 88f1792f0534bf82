"""What a simulated run leaves behind for the judge: the in-memory server has everything it ever stored or carried."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import msgspec

from agentmesh.edge.blobs import BLOB
from agentmesh.records import Record, decode_record
from agentmesh.subjects import Subjects
from agentmesh.wire import decode_outcome
from judge.evidence import Evidence, Operation, letter_of, outcome_of
from sim.server import Server
from sim.store import Stored

_bodies: WeakKeyDictionary[Server, dict[str, bytes]] = WeakKeyDictionary()
"""Bodies that were found in the blobs, by the blob's name."""


def gather(server: Server, subjects: Subjects, operations: Sequence[Operation]) -> Evidence:
    """The evidence of a run."""
    journals: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    head = len(subjects.journal(""))
    for message in server.streams[subjects.stream("journal")].history:
        body = body_of(server, subjects, message)
        journals[message.subject[head:]].append((message.seq, decode_record(body)))
    letters = []
    for message in server.streams[subjects.stream("mail")].history:
        parsed = subjects.parse_lane(message.subject)
        assert parsed is not None
        letters.append(letter_of(message.seq, *parsed, message.data, message.headers))
    return Evidence(
        operations,
        letters,
        dict(journals),
        [decode_outcome(m.data) for m in server.streams[subjects.stream("result")].history],
        [o for _, body in server.heard if (o := outcome_of(body)) is not None],
    )


def body_of(server: Server, subjects: Subjects, record: Stored) -> bytes:
    """The body of a stored record, although it may lie in the blobs, and may have been removed from there since."""
    name = record.headers.get(BLOB)
    if name is None:
        return record.data
    known = _bodies.setdefault(server, {})
    if name not in known:
        history = server.streams[subjects.blob_stream].history
        meta_subject = subjects.blob_meta(base64.urlsafe_b64encode(name.encode()).decode())
        meta = next(m for m in history if m.subject == meta_subject)
        chunks = subjects.blob_chunks(msgspec.json.decode(meta.data)["nuid"])
        known[name] = b"".join(m.data for m in history if m.subject == chunks)
    return known[name]
