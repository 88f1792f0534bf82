"""What a record leaves out of a plain turn follows from it, wherever spans are told (the machine: mesh/turn/test_tracing.py)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh.errors import BadRequest
from agentmesh.ledger_entries import Derived, Traced, TurnBefore, TurnInfo
from agentmesh.records import Ledger, Record, decode_record, encode_record
from agentmesh.trace.context import attempt_span_id, is_sampled, process_span_id, trace_id_of
from agentmesh.trace.derived import boot_of, traced_of
from agentmesh.trace.facts import record_fact, spans_in
from agentmesh.trace.history import journal_spans
from agentmesh.trace.lost import attempts_ended, ended_in
from agentmesh.trace.told import spans_told

STORED = "2026-11-30T23:34:36.123456789Z"
TRACE = trace_id_of(None, "coder", "life", "12", STORED)
SPAN = attempt_span_id("coder.life.1.3.inbox:12", 5, "b", 0, 0)
PROCESS = process_span_id("coder", "life", "inbox", "12")


def plain(**fields: Any) -> TurnInfo:
    derived = Derived(key="inbox:12", stored=STORED, boot="b", **fields)
    return TurnInfo(number=3, ref="12", started=1.0, ended=2.0, node="n1", generation=5, derived=derived)


def record(info: TurnInfo, **fields: Any) -> Record:
    return Record(
        kind="turn", id="r", at=9.0, incarnation="life", epoch=1, generation=5, node="n1", boot="b", turn=info, **fields
    )


@pytest.mark.case(610)
def test_record_fact_and_snapshot_tell_the_same_spans_of_a_plain_turn() -> None:
    before = TurnBefore(number=2, ref="11", key="inbox:11", stored=STORED, generation=4, boot="a", crashes=1)
    info = plain(before=before)
    of_record = spans_told("coder", "Coder", None, decode_record(encode_record(record(info))), 7)
    assert [(span.op, span.trace, span.id, span.parent) for span in of_record] == [
        ("process", TRACE, PROCESS, ""),
        ("invoke_agent", TRACE, SPAN, PROCESS),
    ]
    last = attempt_span_id("coder.life.1.2.inbox:11", 4, "a", 1, 0)
    assert of_record[1].links == (f"{trace_id_of(None, 'coder', 'life', '11', STORED)}-{last}",)
    fact = record_fact("Coder", None, record(info), 7)
    assert fact is not None and spans_in("coder", "record", fact, "mesh") == of_record
    snapshot = Record(
        kind="rest", id="s", at=9.0, incarnation="life", epoch=1, generation=5, node="n1", boot="b",
        snapshot=Ledger(incarnation="life", history=(info,)),
    )  # fmt: skip
    assert journal_spans("coder", "Coder", [(8, snapshot)]) == of_record


@pytest.mark.case(610)
def test_what_a_journal_has_ended_is_known_without_its_ids() -> None:
    assert list(attempts_ended("coder", record(plain()))) == [SPAN]
    assert ended_in("coder", Ledger(incarnation="life", history=(plain(),)), ()) == {SPAN}
    assert boot_of(plain()) == "b"


@pytest.mark.case(610)
def test_ids_that_are_told_count() -> None:
    told = Traced(trace="1" * 32, span="2" * 16, boot="c")
    info = msgspec.structs.replace(plain(), trace=told)
    assert traced_of("coder", "life", info) == told and boot_of(info) == "c"
    bare = msgspec.structs.replace(plain(), derived=None)
    assert traced_of("coder", "life", bare) is None and boot_of(bare) is None
    half = traced_of("coder", "life", plain(ratio=0.5, began=1.5, epoch=2, crashes=1, links=("x",)))
    assert half is not None and half.sampled is is_sampled(TRACE, 0.5) and (half.began, half.links) == (1.5, ("x",))
    assert half.span == attempt_span_id("coder.life.2.3.inbox:12", 5, "b", 1, 0)


def test_a_strangers_fact_costs_nothing_but_itself() -> None:
    info = msgspec.structs.replace(plain(), derived=Derived(key="", stored="yesterday", boot=""))
    with pytest.raises(BadRequest):
        traced_of("coder", "life", info)
    fact = record_fact("Coder", None, record(info), 7)
    assert fact is not None
    with pytest.raises(msgspec.DecodeError, match="tells no spans"):
        spans_in("coder", "record", fact, "mesh")
