"""An answer of the Messages API, put together from the frames of its stream. Pure, and strict: what does not fit is no answer.

The SDK's accumulator is not used. It closes JSON that was cut off (a call of 5,000 becomes one of 5), and meets frames out of
order, or with members missing, with whatever exception that happens to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh.backend import Event
from agentmesh.strict_json import NotJson, checked
from agentmesh.unicode import well_formed
from agentmesh_node.backends.anthropic.failures import API, failure, told, unreadable
from agentmesh_node.backends.api.frames import DONE, Frame
from agentmesh_node.backends.api.values import JsonObject, Members, event_in, number, word
from agentmesh_node.tools import Call
from agentmesh_node.tools.call_inputs import input_of
from agentmesh_node.tools.loop_steps import ModelAnswer

CUT = frozenset({"max_tokens", "length"})
"""Stop reasons of an answer that was cut off at its limit."""
DECLINED = frozenset({"refusal", "content_filter"})
NOT_JSON = "INVALID_JSON"
"""The name under which the API's documentation has an input that is no JSON sent back to the model."""
_members = Members(API)
_INPUTS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
"""Blocks whose input comes in pieces of JSON."""
_COUNTS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_input_tokens",
    "cache_creation_input_tokens": "cache_write_input_tokens",
}


class AnswerReader:
    """Reads one stream."""

    api = API

    def __init__(self, most_tokens: int) -> None:
        """
        Args:
            most_tokens: the limit of the answer, as it was asked for. Some gateways do not say that it was reached.
        """
        self._most_tokens = most_tokens
        self._begun = False
        self._blocks: dict[int, _Block] = {}
        self._model = ""
        self._stop: str | None = None
        self._category: Any = None
        self._usage: JsonObject = {}
        self.frames = 0
        """How many frames of an answer were taken."""
        self.done = False
        """Whether the last frame has come."""

    def feed(self, frame: Frame, secrets: tuple[str, ...] = ()) -> Event | None:
        """Take a frame. Returns the text or the thinking in it.

        Raises:
            BackendError: it does not fit what came before, or is an error of the API.
        """
        if frame.data.strip() == DONE:
            return None
        data = event_in(frame, API, secrets)
        return self._event(word(data.get("type")) or frame.event, data, secrets)

    def whole(self, message: JsonObject) -> list[Event] | None:
        """Take an answer that came in one piece; None if it is none.

        Raises:
            BackendError: a part of it cannot be read.
        """
        blocks = message.get("content")
        if not isinstance(blocks, list):
            return None
        frames: list[JsonObject] = [{"type": "message_start", "message": {**message, "content": []}}]
        for index, block in enumerate(blocks):
            frames.append({"type": "content_block_start", "index": index, "content_block": block})
            frames.append({"type": "content_block_stop", "index": index})
        frames.append({"type": "message_delta", "delta": message, "usage": message.get("usage")})
        frames.append({"type": "message_stop"})
        return [event for frame in frames if (event := self._event(frame["type"], frame, ())) is not None]

    def _event(self, kind: str, data: JsonObject, secrets: tuple[str, ...]) -> Event | None:
        if kind == "error" or (kind not in _KNOWN and "error" in data):
            raise told(data, secrets)
        if kind not in _KNOWN:
            return None  # pings, and what the API may add
        if kind == "message_start":
            self._start(data)
        elif not self._begun:
            raise unreadable(f"a {kind} comes before its beginning")
        elif self.done:
            raise unreadable(f"a {kind} comes behind its end")
        elif kind == "message_delta":
            self._delta(data)
        elif kind == "message_stop":
            self.done = True
        self.frames += 1
        return self._block(kind, data) if kind.startswith("content_block") else None

    def _start(self, data: JsonObject) -> None:
        if self._begun:
            raise unreadable("it begins twice")
        message = _members.object(data, "message")
        self._begun = True
        self._model = word(message.get("model")) or ""
        self._count(message.get("usage"))

    def _delta(self, data: JsonObject) -> None:
        delta = _members.object(data, "delta")
        if delta.get("stop_reason") is not None:
            self._stop = word(delta["stop_reason"])
            if self._stop is None:
                raise unreadable("its stop reason is no text")
        details = delta.get("stop_details")
        self._category = details.get("category") if isinstance(details, Mapping) else None
        self._count(data.get("usage"))

    def _count(self, usage: Any) -> None:
        if isinstance(usage, Mapping):
            self._usage.update({name: value for name, value in usage.items() if value is not None})

    def _block(self, kind: str, data: JsonObject) -> Event | None:
        index = data.get("index")
        if not isinstance(index, int) or isinstance(index, bool):
            raise unreadable(f"a {kind} does not say which block it belongs to")
        block = self._blocks.get(index)
        if kind == "content_block_start":
            if block is not None:
                raise unreadable("a block begins twice")
            block = self._blocks[index] = _Block(_members.object(data, "content_block"))
            if block.kind == "fallback":
                self._model = word(_members.object(block.start, "to").get("model")) or self._model
            return block.opening()
        if block is None:
            raise unreadable("a block goes on that has not begun")
        if block.closed:
            raise unreadable("a block goes on behind its end")
        if kind == "content_block_stop":
            block.closed = True
            return None
        return block.grow(_members.object(data, "delta"))

    # --- the end ------------------------------------------------------------------------------------------------------
    def answer(self) -> ModelAnswer:
        """The answer, once nothing more comes.

        Raises:
            BackendError: it ended in a way that makes it useless: `refused`, `too_long`, `max_tokens`, `stream_broken`.
        """
        if not self._begun:
            raise failure("server_error", "the API's answer is empty")
        blocks = list(self._blocks.values())
        calls = tuple(block.call() for block in blocks if block.kind == "tool_use")
        text = "".join(block.text for block in blocks if block.kind == "text")
        stop = self._usable(calls, text, blocks)
        # Models give empty answers and blank texts, but the API refuses both in a history: they would fail every further turn.
        kept, compacted = _compacted([block for block in blocks if block.kind != "text" or block.text.strip()])
        content = [block.content() for block in kept]
        return ModelAnswer(
            message={"role": "assistant", "content": content} if content else None,
            text="".join(block.text for block in kept if block.kind == "text"),
            thinking="".join(block.text for block in kept if block.kind == "thinking"),
            calls=calls,
            stop=stop,
            model=self._model,
            usage=usage_of(self._usage),
            goes_on=stop in ("pause_turn", "compaction"),
            compacted=compacted,
        )

    def _usable(self, calls: tuple[Call, ...], text: str, blocks: list[_Block]) -> str:
        """The stop reason of an answer that can be used."""
        stop = self._stop
        at_limit = number(self._usage.get("output_tokens")) >= self._most_tokens
        if stop is None:
            raise failure("stream_broken", "the API's answer ended too early")
        if stop in DECLINED:
            raise failure("refused", "the model refuses to answer this", category=word(self._category))
        if stop == "model_context_window_exceeded":
            raise failure("too_long", "the model's context is full")
        broken = any(call.unfit is not None for call in calls)
        if (stop in CUT and calls) or (at_limit and broken):
            raise failure("max_tokens", "the answer was cut off in the middle of a tool call", text=well_formed(text) or None)
        if stop in CUT and not blocks:
            raise failure("max_tokens", "the answer was cut off before its first word")
        return "max_tokens" if stop in CUT or (at_limit and stop == "end_turn") else stop


_KNOWN = frozenset(
    {
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    }
)


class _Block:
    """One block of an answer."""

    def __init__(self, start: JsonObject) -> None:
        kind = word(start.get("type"))
        if kind is None:
            raise unreadable("a block has no type")
        try:
            self.start = checked(well_formed(start))
        except (NotJson, RecursionError) as error:
            raise unreadable(f"a block cannot be kept ({error})") from None
        self.kind = kind
        self.closed = False
        self._pieces: list[str] = []
        """Text, thinking or JSON, as it came."""
        self._more: JsonObject = {}
        """Other members that came later."""
        if kind in ("text", "thinking"):
            self._pieces.append(_members.text(start, kind) if start.get(kind) is not None else "")
        elif kind == "tool_use" and not (word(start.get("id")) and word(start.get("name"))):
            raise unreadable("a tool call has no id or no name")

    @property
    def text(self) -> str:
        """What came in pieces."""
        return "".join(self._pieces)

    def opening(self) -> Event | None:
        """The text with which it begins."""
        return Event(self.kind, {"text": self.text}) if self.kind in ("text", "thinking") and self.text else None  # type: ignore[arg-type]

    def grow(self, delta: JsonObject) -> Event | None:
        """Add a delta. Deltas of a kind that is not known are passed over."""
        kind = delta.get("type")
        match kind, self.kind:
            case "text_delta", "text":
                return self._piece("text", _members.text(delta, "text"))
            case "thinking_delta", "thinking":
                return self._piece("thinking", _members.text(delta, "thinking"))
            case "input_json_delta", _ if self.kind in _INPUTS:
                self._pieces.append(_members.text(delta, "partial_json"))
            case "signature_delta", "thinking":
                self._more["signature"] = _members.text(delta, "signature")
            case "citations_delta", "text":
                first = self.start.get("citations")
                found = self._more.setdefault("citations", list(first) if isinstance(first, list) else [])
                found.append(self._kept(delta, "citation"))
            case "compaction_delta", "compaction":
                for name in ("content", "encrypted_content"):
                    if name in delta:
                        self._more[name] = None if delta[name] is None else _members.text(delta, name)
            case "text_delta" | "thinking_delta" | "input_json_delta" | "signature_delta" | "compaction_delta", _:
                raise unreadable(f"a {kind} comes in a block of the type {self.kind}")
        return None

    def _piece(self, kind: Any, text: str) -> Event | None:
        self._pieces.append(text)
        return Event(kind, {"text": text}) if text else None

    def _kept(self, delta: JsonObject, name: str) -> Any:
        try:
            return checked(well_formed(delta.get(name)))
        except (NotJson, RecursionError) as error:
            raise unreadable(f"a {name} cannot be kept ({error})") from None

    def call(self) -> Call:
        """The call that a `tool_use` asks for."""
        made = Call(self.start["id"], self.start["name"])
        if not self.closed:
            return Call(made.id, made.name, self.text, "its end did not arrive")
        if self.text.strip():
            return Call.sent(made.id, made.name, self.text)
        given = self.start.get("input")
        if given is None:
            given = {}
        return Call(made.id, made.name, given, None if isinstance(given, dict) else "it is no object")

    def content(self) -> JsonObject:
        """The block as the history keeps it."""
        if self.kind in _INPUTS:
            return {**self.start, **self._more, "input": self._input()}
        if self.kind in ("text", "thinking"):
            return {**self.start, **self._more, self.kind: self.text}
        return {**self.start, **self._more}

    def _input(self) -> JsonObject:
        if not self.text.strip():
            given = self.start.get("input")
            return given if isinstance(given, dict) else {}
        try:
            return input_of(self.text)
        except NotJson:
            return {NOT_JSON: self.text}


def _compacted(blocks: list[_Block]) -> tuple[list[_Block], bool]:
    """The blocks from the newest summary on (the API drops the blocks before it itself), and whether there is a summary."""
    summaries = [i for i, block in enumerate(blocks) if block.kind == "compaction" and block.content().get("content") is not None]
    return (blocks[summaries[-1] :], True) if summaries else (blocks, False)


def usage_of(counted: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of one call. Where the API lists iterations (a compaction is one of its own) they are added up."""
    listed = counted.get("iterations")
    parts = [part for part in listed if isinstance(part, Mapping)] if isinstance(listed, list) else []
    found = dict.fromkeys(_COUNTS.values(), 0)
    for part in parts or (counted,):
        for name, ours in _COUNTS.items():
            found[ours] += number(part.get(name))
    return found
