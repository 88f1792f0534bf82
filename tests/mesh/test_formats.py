"""Which version a record needs, found from what it holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from agentmesh.formats import ADDED, FIRST, SECOND, Addition, needed_by
from agentmesh.records import Record, decode_record, encode_record, is_rest


class Leaf(msgspec.Struct, frozen=True, tag="leaf"):
    old: int = 0
    new: str | None = None


class Other(msgspec.Struct, frozen=True, tag="other"):
    name: str = ""


class Fresh(msgspec.Struct, frozen=True, tag="fresh"):
    name: str = ""


class Tree(msgspec.Struct, frozen=True):
    plain: dict[str, int] = {}
    leaf: Leaf | None = None
    leaves: tuple[Leaf | Other | Fresh, ...] = ()
    named: dict[str, Leaf | None] | UnsetType = UNSET
    change: int | UnsetType = UNSET


ROWS = (
    Addition("Leaf.new", "refused", SECOND),
    Addition("Fresh", "refused", 3),
    Addition("Tree.change", "refused", 4),
    Addition("Other.name", "ignored"),
)


@pytest.mark.parametrize(
    ("tree", "version"),
    [
        (Tree(), FIRST),
        (Tree(plain={"a": 1}, leaf=Leaf(old=2), leaves=(Other("x"), Leaf()), named={"a": None}), FIRST),
        (Tree(leaf=Leaf(new="x")), SECOND),
        (Tree(leaves=(Other(), Leaf(new=""))), SECOND),
        (Tree(named={"a": None, "b": Leaf(new="x")}), SECOND),
        (Tree(leaf=Leaf(new="x"), leaves=(Fresh(),)), 3),
        (Tree(change=0), 4),
    ],
)
def test_the_version_is_that_of_the_newest_part(tree: Tree, version: int) -> None:
    assert needed_by(Tree, ROWS)(tree) == version


def test_a_kind_of_record_can_be_new() -> None:
    needed = needed_by(Record, (Addition("kind:rest", "refused", SECOND),))
    assert (needed(record("turn")), needed(record("rest"))) == (FIRST, SECOND)


def test_where_nothing_was_added_nothing_is_looked_at() -> None:
    assert needed_by(Tree, ())(object()) == FIRST


def record(kind: Any, **fields: Any) -> Record:
    return Record(kind=kind, id="r", at=1.0, incarnation="l", epoch=1, generation=1, node="n", boot="b", **fields)


@pytest.mark.parametrize("kind", ["rest", "turn", "tombstone"])
def test_a_record_of_the_second_version_is_passed_over_by_what_the_first_build_looks_for(kind: str) -> None:
    body = encode_record(record(kind, v=SECOND))
    assert b'"kind":"rest"' not in body, "it would decode it, and not the records of other agents behind it"
    assert b'"blob"' in body[:32], "it would decode it, and not look at other stopped agents"
    assert decode_record(body) == record(kind, v=SECOND)
    assert is_rest(body) == (kind == "rest")


def test_a_record_of_the_first_version_is_what_it_was() -> None:
    body = encode_record(record("rest"))
    assert body.startswith(b'{"v":1,"kind":"rest",') and is_rest(body)


def test_a_newer_record_is_refused_with_advice_also_if_its_form_is_another() -> None:
    body = encode_record(record("turn")).replace(b'"v":1', b'"v":9').replace(b'"turn"', b'"dream"')
    with pytest.raises(ValueError, match=r"version 9.*upgrade"):
        decode_record(body)


def test_every_row_says_one_thing() -> None:
    assert len({row.what for row in ADDED}) == len(ADDED)
    assert all((row.old == "refused") == (row.version > FIRST) for row in ADDED)
