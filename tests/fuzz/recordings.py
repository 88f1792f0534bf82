"""Recorded streams, as their servers sent them (`recordings/`, without headers and without anything of a person).

*.sse        a body of the Messages API: of Anthropic's form, of LiteLLM, of llama.cpp's server
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
    """The recordings that a reader is tried with: `messages`, `claude` or `codex`."""
    paths = sorted(PLACE.glob("*.sse") if prefix == "messages" else PLACE.glob(f"{prefix}-*.jsonl"))
    return tuple(Recording(path.stem, _frames(path)) for path in paths)


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
        block = value.get("content_block") or {}
        if block.get("type") == "tool_use":
            blocks[value["index"]] = (block["id"], block["name"], [])
        elif (value.get("delta") or {}).get("type") == "input_json_delta" and value["index"] in blocks:
            blocks[value["index"]][2].append(value["delta"]["partial_json"])
    found: dict[str, tuple[str, Any]] = {}
    for id, name, pieces in blocks.values():
        with contextlib.suppress(msgspec.DecodeError):  # a recording may be of an answer that was cut
            found[id] = (name, msgspec.json.decode("".join(pieces) or "{}"))
    return found
