"""The inputs of calls as the partial messages of Claude Code show them."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh_node.backends.claude.sent_inputs import SentInputs


def events(*pieces: str, id: str = "c1", stop: bool = True, within: str | None = None) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": id, "name": "mcp__agent__pay", "input": {}}
    found: list[dict[str, Any]] = [{"type": "content_block_start", "index": 0, "content_block": block}]
    deltas = ({"type": "input_json_delta", "partial_json": part} for part in pieces)
    found += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    found += [{"type": "content_block_stop", "index": 0}] if stop else []
    found.append({"type": "message_stop"})
    return [{"type": "stream_event", "event": event, "parent_tool_use_id": within} for event in found]


def observed(*messages: Any) -> SentInputs:
    sent = SentInputs()
    for message in messages:
        sent.observe(message)
    return sent


@pytest.mark.case(401)
@pytest.mark.parametrize("pieces", [('{"amount": 5',), ('{"amount":', ' "\ud800"}'), ("pay",), ('{"a":1,', '"a":2}')])
def test_a_call_whose_input_was_repaired_is_not_made(pieces: tuple[str, ...]) -> None:
    call = observed(*events(*pieces)).call("c1", "pay", {"amount": 5})
    assert call.unfit is not None
    assert call.refusal() is not None
    assert (call.id, call.name, call.input) == ("c1", "pay", "".join(pieces))


def test_a_call_whose_input_came_whole_is_made_as_claude_code_says() -> None:
    for pieces in (('{"amount":', " 5}"), ()):
        call = observed(*events(*pieces)).call("c1", "pay", {"amount": 5})
        assert (call.input, call.unfit) == ({"amount": 5}, None)


def test_a_block_that_did_not_end_is_not_whole() -> None:
    assert observed(*events('{"amount": 5}', stop=False)).call("c1", "pay", {"amount": 5}).unfit == "its end did not arrive"


def test_a_call_that_is_made_ahead_of_the_end_of_its_block_is_looked_at_too() -> None:
    sent = observed(*events('{"amount": 5')[:2])
    assert sent.call("c1", "pay", {"amount": 5}).unfit is not None
    assert observed(*events('{"amount": 5}')[:2]).call("c1", "pay", {"amount": 5}).unfit is None


def test_subagents_are_kept_apart() -> None:
    sent = observed(*events('{"amount": 5', within="t")[:2], *events('{"amount": 5}', id="c2"), *events("", within="t")[-2:])
    assert sent.call("c1", "pay", {}).unfit is not None
    assert sent.call("c2", "pay", {}).unfit is None


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "stream_event"},
        {"type": "stream_event", "event": {"type": "content_block_start", "index": [], "content_block": 5}},
    ],
)
def test_what_is_of_another_form_is_passed_over(message: dict[str, Any]) -> None:
    assert observed(message).call("c1", "pay", {"amount": 5}).unfit is None
