"""Records that earlier versions wrote are read for ever.

`v<N>/` holds journal records as version N wrote them, byte for byte: one of each kind, one of each effect, and a full
snapshot. These files are never changed and never made anew; what is added (agentmesh.formats) adds files to the directory of
the version that it needs: a kind of record, an effect, a snapshot that uses a new field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agentmesh import ledger as book
from agentmesh.formats import RECORD_VERSION
from agentmesh.records import Change, Effect, Ledger, RecordKind, decode_record, encode_record

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("v*/*.json"))


def bodies(pattern: str) -> list[bytes]:
    found = [path.read_bytes() for path in HERE.glob(pattern)]
    assert found
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_record_of_an_earlier_version_is_read_whole(path: Path) -> None:
    body = path.read_bytes()
    record = decode_record(body)
    before, after = msgspec.json.decode(body), msgspec.json.decode(encode_record(record))
    assert before.pop("v") == int(path.parent.name[1:]) == after.pop("v") <= RECORD_VERSION
    assert after == before, "something that the journal said is not understood any more"
    assert isinstance(book.apply(None, record, 90), Ledger)


def test_there_is_one_of_each_kind_of_record_and_effect() -> None:
    kinds = {decode_record(body).kind for body in bodies("v*/record-*.json")}
    assert kinds == set(get_args(RecordKind.__value__))
    effects: set[Any] = {type(e) for body in bodies("v*/effect-*.json") for e in decode_record(body).effects}
    assert effects == set(get_args(Effect.__value__))


def test_the_snapshots_use_every_field() -> None:
    records = [decode_record(body) for body in bodies("v*/record-snapshot*.json")]
    used: set[str] = set()
    told: set[str] = set()
    for record in records:
        assert record.snapshot is not None
        bare = Ledger(incarnation=record.incarnation)
        used |= {f for f in Ledger.__struct_fields__ if getattr(record.snapshot, f) != getattr(bare, f)}
        told |= {f for f in Change.__struct_fields__ if getattr(record.change, f) is not msgspec.UNSET}
    assert set(Ledger.__struct_fields__) - used == {"incarnation", "epoch"}
    assert told == set(Change.__struct_fields__)


def test_the_snapshot_and_its_change_mean_what_they_meant() -> None:
    record = decode_record((HERE / "v1" / "record-snapshot.json").read_bytes())
    ledger = book.apply(None, record, 90)
    assert (ledger.turn, ledger.halted, ledger.next, ledger.failed) == (10, False, None, None)
    assert bytes(ledger.state) == b'{"notes":["a","b"],"n":2}'
    assert ledger.positions == {"inbox": 17, "due": 3} and ledger.taken == {}
    assert ledger.origins == {"boss/peer-inbox": "1.72.1"}
    assert list(ledger.effects) == ["1.88.0"] and list(ledger.deferred) == ["17"]
    assert [turn.number for turn in ledger.history] == [9]


def test_a_step_means_what_it_meant() -> None:
    record = decode_record((HERE / "v1" / "record-step-taken.json").read_bytes())
    ledger = book.apply(None, record, 90)
    assert ledger.turning is not None and ledger.turning.key == "peer-inbox:41"
    assert [bytes(step.value) for step in ledger.steps.values()] == [b'{"call":"tool-1","result":[1,{"a":null}]}', b"null"]
    open_, ended = ledger.waits["toolu_1"], ledger.waits["toolu_2"]
    assert (open_.origin, open_.outcome) == ("1.90.0", None), "a wait is known by the origin of its request"
    assert ended.outcome is not None and ended.outcome.error is not None and ended.outcome.error.code == "cycle"
    over = book.apply(ledger, decode_record((HERE / "v1" / "record-snapshot-steps.json").read_bytes()), 91)
    assert (over.turning, over.steps, over.waits) == (None, {}, {})
