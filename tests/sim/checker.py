"""What a simulated run leaves behind for the judge: the in-memory server has everything it ever stored or carried."""

from __future__ import annotations

import base64
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import msgspec

from agentmesh.edge.blobs import BLOB
from agentmesh.edge.journal_reader import RECORD
from agentmesh.records import Record, decode_record
from agentmesh.subjects import Subjects, node_key
from agentmesh.trace.facts import spans_in
from agentmesh.trace.spans import Began, ToldSpan, decode_began
from agentmesh.wire import Outcome, decode_outcome
from judge.evidence import Call, Evidence, Operation, Payment, TurnCall, letter_of, live_in, outcome_of
from sim.server import EPOCH, Server
from sim.store import Stored

_bodies: WeakKeyDictionary[Server, dict[str, bytes]] = WeakKeyDictionary()
"""Bodies that were found in the blobs, by the blob's name."""
_records: WeakKeyDictionary[Server, dict[Stored, Record]] = WeakKeyDictionary()


GARBLED = b"\xff"
"""How the body of a stranger's mail begins: no text, and no JSON."""
FORGED = "forged"
"""How the id of a record begins that bears the mesh's header, and that no program of these runs can read."""


def is_record(message: Stored) -> bool:
    """Whether a message of a journal is a record of this run's programs, and not a stranger's."""
    return not message.headers.get(RECORD, FORGED).startswith(FORGED)


def gather(
    server: Server,
    subjects: Subjects,
    operations: Sequence[Operation],
    *,
    calls: Sequence[Call] = (),
    decided: Sequence[Call] = (),
    payments: Sequence[Payment] = (),
    turn_calls: Sequence[TurnCall] = (),
    calm: float | None = None,
) -> Evidence:
    """The evidence of a run. What strangers have written is no part of it."""
    journals: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    owners: dict[str, list[tuple[float, str]]] = defaultdict(list)
    takers: dict[str, list[tuple[float, str]]] = defaultdict(list)
    recorded: dict[int, float] = {}
    head = len(subjects.journal(""))
    for message in filter(is_record, server.streams[subjects.stream("journal")].history):
        record = record_of(server, subjects, message)
        journals[message.subject[head:]].append((message.seq, record))
        recorded[message.seq] = message.at
        if record.kind == "activated":
            owners[message.subject[head:]].append((message.at, record.node))
            takers[message.subject[head:]].append((message.at, record.boot))
    letters = []
    for message in server.streams[subjects.stream("mail")].history:
        parsed = subjects.parse_lane(message.subject)
        assert parsed is not None
        if not message.data.startswith(GARBLED):
            letters.append(letter_of(message.seq, *parsed, message.data, message.headers, at=message.at))
    results = [(o, m.at) for m in server.streams[subjects.stream("result")].history if (o := _outcome(m.data)) is not None]
    begun, spans = _facts(server, subjects)
    return Evidence(
        operations,
        letters,
        dict(journals),
        [outcome for outcome, _ in results],
        [o for _, body in server.heard if (o := outcome_of(body)) is not None],
        calls,
        payments,
        turn_calls,
        [event for subject, body in server.heard if (event := live_in(subject, body)) is not None],
        recorded,
        decided=decided,
        stored={(outcome.agent, outcome.ref): at for outcome, at in results},
        epoch=EPOCH,
        owners=dict(owners),
        begun=[fact for fact, at in begun if not _is_too_late(server, subjects, fact, at, takers[fact.agent])],
        spans=spans,
        calm=calm,
    )


def _is_too_late(server: Server, subjects: Subjects, fact: Began, at: float, takers: Sequence[tuple[float, str]]) -> bool:
    """Whether nobody can tell of a begin fact: it was held up on its way until another process had taken the agent, which looked
    for such facts then, and its own process, which would have told of it, had died."""
    began = fact.started - EPOCH
    if not any(began <= taken <= at and boot != fact.boot for taken, boot in takers):
        return False
    key = subjects.registry_key(node_key(fact.node))
    leases = [m for m in server.streams[subjects.stream("registry")].history if m.subject == key and m.at > began and m.data]
    return any(f'"boot":"{fact.boot}"'.encode() not in lease.data for lease in leases)


def facts_in(server: Server, subjects: Subjects) -> tuple[list[Began], list[ToldSpan]]:
    """What the stream of facts got: attempts that began, and spans."""
    begun, spans = _facts(server, subjects)
    return [fact for fact, _ in begun], spans


def _facts(server: Server, subjects: Subjects) -> tuple[list[tuple[Began, float]], list[ToldSpan]]:
    """What the stream of facts got: attempts that began, each with when that was stored, and spans."""
    begun: list[tuple[Began, float]] = []
    spans: list[ToldSpan] = []
    for message in server.streams[subjects.stream("trace")].history:
        with contextlib.suppress(msgspec.DecodeError):  # a stranger's
            if message.subject.endswith(".began"):
                begun.append((decode_began(message.data), message.at))
            else:
                spans += spans_in(*subjects.parse_trace(message.subject), message.data, subjects.root)
    return begun, spans


def _outcome(body: bytes) -> Outcome | None:
    """The outcome in a stored result; None for what strangers write there, which has not its form."""
    try:
        return decode_outcome(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def record_of(server: Server, subjects: Subjects, message: Stored) -> Record:
    """The record in a stored message. It is read once, however often a run is looked at."""
    known = _records.setdefault(server, {})
    if message not in known:
        known[message] = decode_record(body_of(server, subjects, message))
    return known[message]


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
