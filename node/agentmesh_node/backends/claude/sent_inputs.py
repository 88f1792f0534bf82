"""The inputs of tool calls as the model sent them: Claude Code itself repairs JSON that was cut off (case 401). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh_node.backends.claude.options import PREFIX
from agentmesh_node.tools import Call


class SentInputs:
    """Follows the partial messages of one run. They come ahead of the calls that they hold."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], tuple[Call, list[str]]] = {}
        """Calls whose input is still coming, by the conversation (a subagent has one of its own) and the block's index."""
        self._unfit: dict[str, Call] = {}
        self.answers = 0
        """How many answers of the model have begun."""

    def observe(self, message: Mapping[str, Any]) -> None:
        """Take a message of Claude Code."""
        event = message.get("event")
        if message.get("type") != "stream_event" or not isinstance(event, Mapping):
            return
        place = (str(message.get("parent_tool_use_id")), _index(event))
        block, delta = event.get("content_block"), event.get("delta")
        self.answers += event.get("type") == "message_start"
        match event.get("type"):
            case "message_start" | "message_stop":
                self._end(place[0])
            case "content_block_start" if isinstance(block, Mapping) and block.get("type") == "tool_use":
                name = str(block.get("name")).removeprefix(PREFIX)
                self._open[place] = (Call(str(block.get("id")), name, block.get("input")), [])
            case "content_block_delta" if place in self._open and isinstance(delta, Mapping):
                self._open[place][1].append(str(delta.get("partial_json", "")))
            case "content_block_stop" if place in self._open:
                self._whole(*self._open.pop(place))

    def _whole(self, call: Call, pieces: list[str]) -> None:
        text = "".join(pieces)
        sent = Call.sent(call.id, call.name, text) if text.strip() else call
        if sent.unfit is not None:
            self._unfit[call.id] = sent

    def _end(self, conversation: str) -> None:
        """Calls of an answer whose end never came."""
        for place in [place for place in self._open if place[0] == conversation]:
            call, pieces = self._open.pop(place)
            self._unfit[call.id] = Call(call.id, call.name, "".join(pieces), "its end did not arrive")

    def call(self, id: str, name: str, input: Any) -> Call:
        """The call that Claude Code makes, or one that cannot be made because its input had not arrived whole."""
        for open_call, pieces in list(self._open.values()):
            if open_call.id == id:  # Claude Code need not wait for the end of the block
                self._whole(open_call, pieces)
        unfit = self._unfit.get(id)
        return Call(id, name, input).checked() if unfit is None else Call(id, name, unfit.input, unfit.unfit)


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else -1
