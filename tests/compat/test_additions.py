"""Whatever a build stores or sends beyond the first one is declared, with what the build before does with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from msgspec import Raw, structs
from msgspec.inspect import type_info

from agentmesh.edge.registry import Entry, decode_spec
from agentmesh.formats import ADDED
from agentmesh.records import Caller, Change, Deferred, Ledger, Record
from agentmesh.registry_values import encode_spec
from compat.forms import forms, visit
from compat.two_builds.test_two_builds import dropped

FIRST = json.loads(Path(__file__).with_name("first.json").read_text())
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
ROW = re.compile(r"^\| `(?P<what>[^`]+)` \| (?P<old>\w+) \| (?P<version>\d*) ?\|", re.MULTILINE)
FOUND = ("kind:", "status:", "header ")
"""Rows of what `forms` finds beside structs and their fields."""
SAID = ("label ", "key ", "op ")
"""Rows of what stands in no type."""


def added() -> set[str]:
    """What this build has and the first had not. A new struct that is a part of another's new field goes without a row."""
    now = forms()
    assert all(set(fields) <= set(now[name]) for name, fields in FIRST.items()), "nothing that is stored or sent goes away"
    names = {"kind": "kind:", "status": "status:", "header": "header "}
    return {names.get(name, name + ".") + field for name, fields in FIRST.items() for field in set(now[name]) - set(fields)}


def test_every_addition_has_its_row() -> None:
    declared = {row.what for row in ADDED if not row.what.startswith(SAID)}
    new_structs = {what for what in declared if "." not in what and not what.startswith(FOUND)}
    assert new_structs <= set(forms()) - set(FIRST)
    assert declared - new_structs == added(), "agentmesh.formats.ADDED says how to add something"


def test_the_page_lists_every_row() -> None:
    rows = {(m["what"], m["old"], m["version"] or "1") for m in ROW.finditer(PAGE.read_text())}
    assert rows == {(row.what, row.old, str(row.version)) for row in ADDED}


def test_only_what_stands_in_records_is_refused() -> None:
    stored: dict[str, list[str]] = {}
    visit(type_info(Record), stored)
    refused = {row.what for row in ADDED if row.old == "refused" and not row.what.startswith("kind:")}
    assert {what.partition(".")[0] for what in refused} <= set(stored), "only records bear a version"


def test_a_spec_that_is_written_anew_keeps_what_this_build_does_not_know() -> None:
    stored = b'{"kind":"A","incarnation":"i","fresh":[1,null],"labels":{},"status":"wanted"}'
    entry = Entry("agents.a", stored, 1)
    changed = encode_spec(structs.replace(decode_spec(entry), status="running"), stored)
    assert json.loads(changed)["fresh"] == [1, None]
    assert decode_spec(Entry("agents.a", changed, 2)).status == "running"
    assert encode_spec(decode_spec(entry)) == encode_spec(decode_spec(entry), b'{"kind":"A","incarnation":"i"}')


def test_the_judge_sees_what_a_snapshot_drops() -> None:
    """As the build before would write it: the journal has said something that its snapshot does not know."""
    who: dict[str, Any] = {"at": 1.0, "incarnation": "i", "epoch": 1, "generation": 1, "boot": "b"}
    first = Record(kind="turn", id="1", node="n1", change=Change(turn=1, minted=3), **who)
    short = Record(
        kind="turn", id="2", node="o1", snapshot=Ledger(incarnation="i", generation=1, node="n1", boot="b", turn=1), **who
    )
    assert any("drops ['minted']" in line for line in dropped({"a": [(1, first), (2, short)]}))
    spec = structs.replace(first, change=Change(turn=1, spec=Raw(b"{}")))
    assert not [line for line in dropped({"a": [(1, spec), (2, short)]}) if "drops" in line], "the older build may"
    own = structs.replace(short, node="n2")
    assert any("drops ['spec']" in line for line in dropped({"a": [(1, spec), (2, own)]})), "this one may not"
    newer = structs.replace(first, v=2)
    behind = Record(kind="turn", id="3", node="o1", **who)
    assert any("behind one of version 2" in line for line in dropped({"a": [(1, newer), (2, behind)]}))


def test_the_judge_lets_the_older_build_drop_what_is_declared_inside_of_a_ledger() -> None:
    who: dict[str, Any] = {"at": 1.0, "incarnation": "i", "epoch": 1, "generation": 1, "boot": "b"}
    caller = Caller(ref="7", msg_id="a.x", stored="2026-01-01T00:00:00Z")
    first = Record(kind="turn", id="1", node="n1", change=Change(deferred={"7": Deferred(caller=caller, turn=1)}), **who)
    whole = Ledger(incarnation="i", generation=1, node="n1", boot="b", deferred={"7": Deferred(caller=Caller(ref="7"), turn=1)})
    other = structs.replace(whole, deferred={"7": Deferred(caller=Caller(ref="8"), turn=1)})
    for node, snapshot, drops in (("o1", whole, False), ("o1", other, True), ("n2", whole, True)):
        behind = Record(kind="turn", id="2", node=node, snapshot=snapshot, **who)
        assert any("drops ['deferred']" in line for line in dropped({"a": [(1, first), (2, behind)]})) == drops
