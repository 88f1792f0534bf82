"""Records that earlier versions wrote are read for ever.

`v<N>/` holds journal records as version N wrote them, byte for byte: one of each kind, one of each effect, and a full
snapshot. These files are never changed and never made anew; a new version adds a directory, a new kind of record or effect
adds a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agentmesh import ledger as book
from agentmesh.records import RECORD_VERSION, Change, Effect, Ledger, RecordKind, decode_record, encode_record

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("v*/*.json"))


def bodies(pattern: str) -> dict[str, bytes]:
    found = {path.stem: path.read_bytes() for path in HERE.glob(pattern)}
    assert found
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_record_of_an_earlier_version_is_read_whole(path: Path) -> None:
    body = path.read_bytes()
    record = decode_record(body)
    before, after = msgspec.json.decode(body), msgspec.json.decode(encode_record(record))
    assert before.pop("v") == int(path.parent.name[1:]) <= after.pop("v") == RECORD_VERSION
    assert after == before, "something that the journal said is not understood any more"
    assert isinstance(book.apply(None, record, 90), Ledger)


def test_there_is_one_of_each_kind_of_record_and_effect() -> None:
    newest = f"v{RECORD_VERSION}"
    kinds = {decode_record(body).kind for body in bodies(f"{newest}/record-*.json").values()}
    assert kinds == set(get_args(RecordKind.__value__))
    effects: set[Any] = {type(e) for body in bodies(f"{newest}/effect-*.json").values() for e in decode_record(body).effects}
    assert effects == set(get_args(Effect.__value__))


def test_the_snapshot_uses_every_field() -> None:
    record = decode_record((HERE / f"v{RECORD_VERSION}" / "record-snapshot.json").read_bytes())
    assert record.snapshot is not None
    bare = Ledger(incarnation=record.incarnation)
    same = {f for f in Ledger.__struct_fields__ if getattr(record.snapshot, f) == getattr(bare, f)}
    assert same == {"incarnation", "epoch"}
    unset = {f for f in Change.__struct_fields__ if getattr(record.change, f) is msgspec.UNSET}
    assert unset == set()


def test_the_snapshot_and_its_change_mean_what_they_meant() -> None:
    record = decode_record((HERE / "v1" / "record-snapshot.json").read_bytes())
    ledger = book.apply(None, record, 90)
    assert (ledger.turn, ledger.halted, ledger.next, ledger.failed) == (10, False, None, None)
    assert bytes(ledger.state) == b'{"notes":["a","b"],"n":2}'
    assert ledger.positions == {"inbox": 17, "due": 3} and ledger.taken == {}
    assert ledger.origins == {"boss/peer-inbox": "1.72.1"}
    assert list(ledger.effects) == ["1.88.0"] and list(ledger.deferred) == ["17"]
    assert [turn.number for turn in ledger.history] == [9]
