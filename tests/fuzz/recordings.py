"""Recorded streams, as their servers sent them (`recordings/`, without headers and without anything of a person).

chat-*       a body of Chat Completions, of LiteLLM and llama.cpp's server
responses-*  a body of Responses, of the same
*.sse        (others) a body of the Messages API: of Anthropic's form, of LiteLLM, of llama.cpp's server
claude-*     what Claude Code wrote to its standard output in one run
codex-*      what Codex's app server wrote in one turn, from its beginning on
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

PLACE = Path(__file__).parent / "recordings"
_BLANK = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


class Recording(NamedTuple):
    """One recorded stream."""

    name: str
    frames: tuple[bytes, ...]
    """Its events or lines, each with its end."""

    @property
    def calls(self) -> dict[str, tuple[str, Any]]:
        """The tool calls in it, by their ids: name and input."""
        return _calls(self.frames)


@cache
def recordings(prefix: str) -> tuple[Recording, ...]:
    """The recordings that a reader is tried with: `messages`, `chat`, `responses`, `claude` or `codex`."""
    paths = [path for path in sorted(PLACE.iterdir()) if _reader_of(path) == prefix]
    return tuple(Recording(path.stem, _frames(path)) for path in paths)


def _reader_of(path: Path) -> str:
    own = path.stem.partition("-")[0]
    return own if path.suffix == ".jsonl" or own in ("chat", "responses") else "messages"


def _frames(path: Path) -> tuple[bytes, ...]:
    data = path.read_bytes()
    found = _BLANK.split(data) if path.suffix == ".sse" else data.splitlines(keepends=True)
    return tuple(frame for frame in found if frame.strip())


def data_of(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the JSON of a frame, the JSON, and what stands behind."""
    if frame.lstrip().startswith(b"{"):
        body = frame.rstrip(b"\r\n")
        return b"", body, frame[len(body) :]
    before, mark, rest = frame.partition(b"data:")
    body = rest.rstrip(b"\r\n")
    return before + mark, body, rest[len(body) :]


def value_of(frame: bytes) -> Any:
    """The JSON value of a frame; None if it has none."""
    try:
        return msgspec.json.decode(data_of(frame)[1])
    except msgspec.DecodeError:
        return None


def _calls(frames: tuple[bytes, ...]) -> dict[str, tuple[str, Any]]:
    """By another way than the reader's: each block's pieces are joined, and the whole is read."""
    blocks: dict[int, tuple[str, str, list[str]]] = {}
    for frame in frames:
        value = value_of(frame)
        if not isinstance(value, Mapping):
            continue
        for call in chat_calls(value):
            id, name = call.get("id"), call["function"].get("name")
            block = blocks.setdefault(call["index"], (id or "", name or "", []))
            block[2].append(call["function"].get("arguments") or "")
        opened = value.get("content_block") or {}
        if opened.get("type") == "tool_use":
            blocks[value["index"]] = (opened["id"], opened["name"], [])
        elif (value.get("delta") or {}).get("type") == "input_json_delta" and value["index"] in blocks:
            blocks[value["index"]][2].append(value["delta"]["partial_json"])
    found: dict[str, tuple[str, Any]] = {}
    for id, name, pieces in blocks.values():
        with contextlib.suppress(msgspec.DecodeError):  # a recording may be of an answer that was cut
            found[id] = (name, msgspec.json.decode("".join(pieces) or "{}"))
    return found


def chat_calls(value: Any) -> list[dict[str, Any]]:
    """The parts of tool calls in a chunk of Chat Completions."""
    choices = value.get("choices") if isinstance(value, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else {}
    found: list[dict[str, Any]] = (first.get("delta") or {}).get("tool_calls") or []
    return found
