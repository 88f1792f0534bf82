"""The tools that ran in a turn: counts, what steps tell of them, and notes that keep their bound."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from agentmesh.tool_runs import MAX_NOTE, OTHERS, ToolRun, counted, is_without_messages, merged, note_of, runs_in, shown


def raws(*steps: Any) -> list[Raw]:
    return [Raw(msgspec.json.encode(step)) for step in steps]


def test_runs_are_counted_by_tool_and_end() -> None:
    runs = [ToolRun("pay", "ok"), ToolRun("pay"), ToolRun("pay", "ok"), ToolRun("look", "timeout")]
    assert counted(runs) == {"pay": {"ok": 2, "interrupted": 1}, "look": {"timeout": 1}}
    assert shown(counted(runs)) == "pay 2 ok, 1 interrupted; look 1 timeout"
    many = counted(ToolRun(f"t{n}", "ok") for n in range(200))
    assert len(many) == 65 and many[OTHERS] == {"ok": 136}


LOOP = (
    {"step": "answer", "message": [], "calls": [{"id": "1", "name": "pay", "input": {"to": "ann"}}, {"id": "2", "name": "look"}]},
    {"step": "intent", "id": "1", "key": "k"},
    {"step": "result", "result": {"id": "1", "name": "pay", "ok": False, "text": "no", "error": "raised"}},
)
CLAUDE = (
    {"step": "session", "session": "s"},
    {"step": "intent", "id": "1", "key": "k", "name": "pay", "input": {"to": "ann"}},
    {"step": "result", "result": {"id": "1", "name": "pay", "ok": False, "text": "no", "error": "raised"}},
    {"step": "result", "result": {"id": "2", "name": "look", "ok": True, "text": "seen"}},
)
CODEX = (
    {"step": "intent", "call": {"id": "1", "name": "pay", "input": {"to": "ann"}}, "key": "k"},
    {
        "step": "ran",
        "call": {"id": "1", "name": "pay"},
        "result": {"id": "1", "name": "pay", "ok": False, "text": "no", "error": "raised"},
    },
    {"step": "saved", "events": [{"kind": "tool_use", "data": {"id": "2", "name": "shell", "input": "ls"}}, {"kind": "usage"}]},
)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (LOOP, ["pay raised", "look interrupted"]),
        (CLAUDE, ["pay raised", "look ok"]),
        (CODEX, ["pay raised", "shell interrupted"]),
    ],
    ids=["anthropic", "claude", "codex"],
)
def test_steps_tell_of_runs_in_each_backends_form(steps: tuple[Any, ...], told: list[str]) -> None:
    found = runs_in(raws(*steps))
    assert [f"{run.name} {run.end}" for run in found] == told
    assert found[0].arguments == '{"to":"ann"}'
    assert is_without_messages(raws(steps[0])[0]) is (steps is not LOOP)


def test_steps_of_another_form_tell_of_none() -> None:
    odd = raws(
        None,
        7,
        "text",
        [],
        {"step": "result"},
        {"step": "result", "result": 3},
        {"step": "saved", "events": [1]},
        {"step": "answer"},
    )
    assert runs_in(odd) == ()
    assert not is_without_messages(odd[2])


def test_what_events_told_is_completed_by_the_steps() -> None:
    told = (ToolRun("pay", id="1"), ToolRun("Bash", "ok", id="b"))
    assert [(run.name, run.end) for run in merged(told, raws(*LOOP))] == [
        ("pay", "raised"), ("Bash", "ok"), ("look", "interrupted"),
    ]  # fmt: skip


def test_a_note_names_each_call_with_its_arguments_and_its_end() -> None:
    runs = [ToolRun("pay", "ok", '{"to":"ann"}', "paid\n 5"), ToolRun("pay", arguments='{"to":"bob"}')]
    note = note_of(3, "pay\nall", "too_long", runs)
    assert note is not None
    assert note.splitlines()[1:] == [
        '- pay({"to":"ann"}): ok: paid 5',
        '- pay({"to":"bob"}): interrupted; it may have been done]',
    ]
    assert "turn 3" in note and "'pay all'" in note and "(too_long)" in note
    assert note_of(3, "p", "interrupted", []) is None


@given(
    st.lists(
        st.builds(
            ToolRun, st.text(max_size=128), st.text(min_size=1, max_size=128), st.text(max_size=300), st.text(max_size=300)
        ),
        min_size=1,
        max_size=300,
    ),
    st.text(max_size=2000),
)
def test_no_note_exceeds_its_bound(runs: list[ToolRun], prompt: str) -> None:
    note = note_of(1, prompt, "refused", runs)
    assert note is not None and len(note.encode()) <= MAX_NOTE
