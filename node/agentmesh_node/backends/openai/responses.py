"""An answer of Responses, put together from the frames of its stream. Pure, and strict: what does not fit is no answer.

An item counts as it is when it is done. Servers leave out `output_index`, `sequence_number`, or the items of the whole response:
none of these is relied on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh.backend import Event
from agentmesh.strict_json import NotJson, checked
from agentmesh.unicode import well_formed
from agentmesh_node.backends.api.frames import DONE, Frame
from agentmesh_node.backends.api.values import JsonObject, Members, event_in, word
from agentmesh_node.backends.openai.endings import counted, ended
from agentmesh_node.backends.openai.failures import API, failure, hinted
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer

_members = Members(API)
_TEXTS = {
    "response.output_text.delta": "text",
    "response.reasoning_summary_text.delta": "thinking",
    "response.reasoning_text.delta": "thinking",
}
_ENDS = frozenset({"response.completed", "response.incomplete"})


class ResponsesReader:
    """Reads one stream."""

    api = API

    def __init__(self, most_tokens: int | None) -> None:
        """`most_tokens`: the limit of the answer, as it was asked for."""
        self._most_tokens = most_tokens
        self._begun = False
        self._items: list[JsonObject] = []
        """Those that are done."""
        self._open: dict[str, JsonObject] = {}
        """Those that have begun and are not done, by their keys."""
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._refusal: list[str] = []
        self._told = ""
        """The text of the item that is being sent, as far as it was told."""
        self._stop: str | None = None
        self._model = ""
        self._usage: dict[str, int] = {}
        self.frames = 0
        """How many frames of an answer were taken."""
        self.done = False

    def feed(self, frame: Frame, secrets: tuple[str, ...] = ()) -> Event | None:
        """Take a frame. Returns the text or the thinking in it.

        Raises:
            BackendError: it does not fit what came before, or is an error of the API.
        """
        if frame.data.strip() == DONE:
            return None
        data = event_in(frame, API, secrets)
        kind = word(data.get("type")) or frame.event
        if kind in ("error", "response.failed") or (not kind.startswith("response.") and data.get("error")):
            raise _error(data, secrets)
        if not kind.startswith("response."):
            return None
        self._begun = True
        self.frames += 1
        return self._event(kind, data)

    def whole(self, message: JsonObject) -> list[Event] | None:
        """Take an answer that came in one piece; None if it is none."""
        if not isinstance(message.get("output"), list):
            return None
        if message.get("error"):
            raise _error({"response": message}, ())
        self._begun = True
        self._end("response.incomplete" if message.get("status") == "incomplete" else "response.completed", message)
        return [Event("text", {"text": text})] if (text := "".join(self._text)) else []

    def _event(self, kind: str, data: JsonObject) -> Event | None:
        if kind in _ENDS:
            text = len(self._text)
            self._end(kind, _members.object(data, "response"))
            late = "".join(self._text[text:])
            return Event("text", {"text": late}) if late else None
        if kind in _TEXTS:
            return self._piece(_TEXTS[kind], _members.text(data, "delta"))
        if kind == "response.refusal.delta":
            self._refusal.append(_members.text(data, "delta"))
        elif kind == "response.output_item.added":
            self._open[_key(data)] = _members.object(data, "item")
        elif kind == "response.output_item.done":
            return self._item_done(data)
        return None

    def _piece(self, kind: Any, text: str) -> Event | None:
        if kind == "thinking":
            self._thinking.append(text)
        else:
            self._told += text
        return Event(kind, {"text": text}) if text else None

    def _item_done(self, data: JsonObject) -> Event | None:
        item = _members.object(data, "item")
        self._open.pop(_key(data), None)
        return self._take(item)

    def _take(self, item: JsonObject) -> Event | None:
        """Take an item that is done. Returns its text, if that was not told before."""
        try:
            item = checked(well_formed(item))
        except (NotJson, RecursionError) as error:
            raise API.unreadable(f"an item cannot be kept ({error})") from None
        self._items.append(item)
        if item.get("type") != "message":
            return None
        text, told = _text_of(item, "output_text", "text"), self._told
        refused = _text_of(item, "refusal", "refusal")
        self._told = ""
        if refused and not self._refusal:
            self._refusal.append(refused)
        self._text.append(text or told)
        return Event("text", {"text": text}) if text and not told else None

    def _end(self, kind: str, response: JsonObject) -> None:
        self.done = True
        self._model = word(response.get("model")) or self._model
        self._usage = counted(response.get("usage"), "input_tokens", "output_tokens")
        self._stop = "stop"
        if kind == "response.incomplete":
            details = response.get("incomplete_details")
            self._stop = (word(details.get("reason")) if isinstance(details, Mapping) else None) or "incomplete"
        output = response.get("output")
        if not self._items and isinstance(output, list):
            self._open.clear()
            for item in output:
                if isinstance(item, dict):
                    self._take(item)

    def answer(self) -> ModelAnswer:
        """The answer, once nothing more comes.

        Raises:
            BackendError: it ended in a way that makes it useless: `refused`, `max_tokens`, `stream_broken`.
        """
        if not self._begun:
            raise failure("server_error", "the API's answer is empty")
        if self._stop == "incomplete":
            raise failure("stream_broken", "the API's answer is incomplete, and it does not say why")
        kept = [item for item in self._items if item.get("type") == "reasoning" and item.get("encrypted_content")]
        return ended(
            stop=self._stop,
            text="".join(self._text) + self._told,
            thinking="".join(self._thinking),
            refusal="".join(self._refusal),
            calls=self._calls(),
            items=[{name: value for name, value in item.items() if name != "status"} for item in kept],
            model=self._model,
            usage=self._usage,
            most_tokens=self._most_tokens,
        )

    def _calls(self) -> tuple[Call, ...]:
        found: list[Call] = []
        for done, items in ((True, self._items), (False, list(self._open.values()))):
            for item in items:
                if item.get("type") != "function_call":
                    continue
                name = word(item.get("name"))
                if not name:
                    raise API.unreadable("a tool call has no name")
                id = word(item.get("call_id")) or word(item.get("id")) or f"call_{len(found) + 1}"
                text = word(item.get("arguments")) or ""
                if not done:
                    found.append(Call(id, name, well_formed(text), "its end did not arrive"))
                else:
                    found.append(Call.sent(id, name, text if text.strip() else "{}"))
        return tuple(found)


def _key(data: JsonObject) -> str:
    """What an item is known by while it is sent."""
    item = data.get("item")
    own = item.get("id") or item.get("call_id") if isinstance(item, dict) else None
    return str(own if own is not None else data.get("output_index"))


def _text_of(item: JsonObject, kind: str, name: str) -> str:
    content = item.get("content")
    parts = content if isinstance(content, list) else ()
    return "".join(
        part[name] for part in parts if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get(name), str)
    )


def _error(data: JsonObject, secrets: tuple[str, ...]) -> Any:
    response = data.get("response")
    return hinted(API.told(response if isinstance(response, dict) and response.get("error") else data, secrets))
