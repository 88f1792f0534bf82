"""Answers with tool calls that are known, cut off somewhere and ended by a gateway as if they were whole (case 400)."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from agentmesh_node.tools import Call
from fuzz.recordings import Recording, chat_calls, data_of, value_of


def forged(recording: Recording, random: Random) -> list[bytes]:
    """The recording, cut within or behind a piece of a call's input; then the ends of an answer that is whole."""
    frames = list(recording.frames)
    places = [at for at, frame in enumerate(frames) if _piece(value_of(frame)) is not None]
    at = random.choice(places)
    value = value_of(frames[at])
    before, _, behind = data_of(frames[at])
    piece = _other(_piece(value) or "", random)
    calls = chat_calls(value)
    if calls:
        calls[0]["function"]["arguments"] = piece
        ends = _chat_ends(random.choice(("tool_calls", "stop")))
    else:
        value["delta"]["partial_json"] = piece
        ends = _ends(value["index"], random.choice(("tool_use", "end_turn")))
    return [*frames[:at], before + json.dumps(value).encode() + behind, *ends]


def _piece(value: Any) -> str | None:
    """The piece of an input in an event, if it holds one that is not empty."""
    calls = chat_calls(value)
    delta = calls[0]["function"] if calls else value.get("delta") if isinstance(value, dict) else None
    piece = delta.get("arguments" if calls else "partial_json") if isinstance(delta, dict) else None
    return piece if isinstance(piece, str) and piece else None


def _other(piece: str, random: Random) -> str:
    """A piece that was cut off, or is followed by what is no JSON, or has half a character."""
    at = random.randrange(len(piece) + 1)
    return random.choice(
        (piece[:at], piece[:at], piece[:at] + random.choice(("\ud800", "}", "]", '"', ",", "\\u12", "NaN", "1e999")))
    )


def _ends(index: int, stop: str) -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "content_block_stop", "index": index},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    return [b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events]


def _chat_ends(stop: str) -> list[bytes]:
    chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": stop}]}
    return [b"data: %s\n\n" % json.dumps(chunk).encode(), b"data: [DONE]\n\n"]


def sent(frames: list[bytes]) -> dict[str, str]:
    """The text of each call's input, by the call's id, as it stands in the stream."""
    open_calls: dict[int, str] = {}
    found: dict[str, str] = {}
    for frame in frames:
        try:
            value = json.loads(data_of(frame)[1])
        except ValueError:
            continue
        if not isinstance(value, dict):
            continue
        for call in chat_calls(value):
            id = open_calls.setdefault(call["index"], call.get("id") or "")
            found[id] = found.get(id, "") + (call["function"].get("arguments") or "")
        block = value.get("content_block") or {}
        if block.get("type") == "tool_use":
            open_calls[value["index"]] = block["id"]
            found[block["id"]] = ""
        elif (value.get("delta") or {}).get("type") == "input_json_delta" and value["index"] in open_calls:
            found[open_calls[value["index"]]] += value["delta"]["partial_json"]
    return found


def wrong(recording: Recording, frames: list[bytes], calls: tuple[Call, ...]) -> str | None:
    """What is wrong with the calls that would be made, or None."""
    texts = sent(frames)
    for call in calls:
        if call.unfit is not None:
            continue
        text = texts.get(call.id, "")
        if call.input != (_whole(text) if text.strip() else {}):
            return f"{call.name} is called with {call.input!r}, and {text!r} was sent"
        known = recording.calls.get(call.id)
        if text.strip() and known is not None and known[1] != call.input and text in json.dumps(known[1]):
            return f"{call.name} is called with {call.input!r}, a part of {known[1]!r}"
    return None


def _whole(text: str) -> Any:
    """The value of a text, by a parser that is strict in its own way; a value that nothing equals if it is none."""
    try:
        text.encode()
        value = json.loads(text, parse_constant=lambda name: float("nan"))
        return value if isinstance(value, dict) and "nan" not in str(value) and "inf" not in str(value) else object()
    except ValueError:
        return object()
