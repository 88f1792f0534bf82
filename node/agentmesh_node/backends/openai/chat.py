"""An answer of Chat Completions, put together from the frames of its stream. Pure, and strict: what does not fit is no answer.

Servers differ in what they send: arguments in one chunk or many, calls without an index or an id, several names for what the
model reasoned, no usage. What they mean is taken where there is one way to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh.backend import Event
from agentmesh.strict_json import NotJson, checked
from agentmesh_node.backends.api.frames import DONE, Frame
from agentmesh_node.backends.api.values import JsonObject, Members, event_in, word
from agentmesh_node.backends.openai.endings import counted, ended
from agentmesh_node.backends.openai.failures import API, failure, hinted
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer

_REASONED = ("reasoning_content", "reasoning")
"""The names that servers give to what the model reasoned."""
_members = Members(API)


class ChatReader:
    """Reads one stream."""

    api = API

    def __init__(self, most_tokens: int | None) -> None:
        """`most_tokens`: the limit of the answer, as it was asked for."""
        self._most_tokens = most_tokens
        self._begun = False
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_OpenCall] = []
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
            self.done = True
            return None
        data = event_in(frame, API, secrets)
        if "error" in data and data["error"] is not None:
            raise hinted(API.told(data, secrets))
        if not isinstance(data.get("choices"), list):
            return None  # pings, and what servers add
        self.frames += 1
        return self._chunk(data)

    def whole(self, message: JsonObject) -> list[Event] | None:
        """Take an answer that came in one piece; None if it is none."""
        if not isinstance(message.get("choices"), list):
            return None
        event = self._chunk(message)
        return [] if event is None else [event]

    def _chunk(self, data: JsonObject) -> Event | None:
        self._begun = True
        self._model = word(data.get("model")) or self._model
        if data.get("usage"):
            self._usage = counted(data["usage"], "prompt_tokens", "completion_tokens")
        # Another index is another answer to the same prompt, which was not asked for.
        own = [choice for choice in data["choices"] if isinstance(choice, dict) and choice.get("index", 0) in (0, None)]
        if not own:
            return None
        choice = own[0]
        if choice.get("finish_reason") is not None:
            self._stop = word(choice["finish_reason"])
            if self._stop is None:
                raise API.unreadable("its finish reason is no text")
        delta = choice.get("delta", choice.get("message"))
        return self._delta(delta) if isinstance(delta, dict) else None

    def _delta(self, delta: JsonObject) -> Event | None:
        listed = delta.get("tool_calls")
        for place, part in enumerate(listed if isinstance(listed, list) else ()):
            if not isinstance(part, dict):
                raise API.unreadable("a tool call is no object")
            self._call(part, place)
        refusal = delta.get("refusal")
        if isinstance(refusal, str):
            self._refusal.append(refusal)
        for name in _REASONED:
            if isinstance(delta.get(name), str) and delta[name]:
                self._thinking.append(delta[name])
                # A frame of both is rare; what it reasoned is in the answer then, and its text is told.
                if not delta.get("content"):
                    return Event("thinking", {"text": delta[name]})
                break
        text = _content(delta.get("content"))
        if not text:
            return None
        self._text.append(text)
        return Event("text", {"text": text})

    def _call(self, part: JsonObject, place: int) -> None:
        index = part.get("index")
        if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
            raise API.unreadable("a tool call's index is no number")
        open_call = self._open(index, word(part.get("id")) or "", place)
        function = part.get("function")
        if function is None:
            return
        if not isinstance(function, dict):
            raise API.unreadable("a tool call's function is no object")
        open_call.grow(function)

    def _open(self, index: int | None, id: str, place: int) -> _OpenCall:
        """The call that a part belongs to. Without an index it is the one with its id; without either, the last one."""
        for known in self._calls:
            if (index is not None and known.index == index) or (index is None and id and known.id == id):
                if id and known.id and id != known.id:
                    continue  # some servers give each of several whole calls the index 0
                known.id = known.id or id
                return known
        if index is None and not id and self._calls and place == 0 and not self._calls[-1].whole:
            return self._calls[-1]
        made = _OpenCall(index, id)
        self._calls.append(made)
        return made

    def answer(self) -> ModelAnswer:
        """The answer, once nothing more comes.

        Raises:
            BackendError: it ended in a way that makes it useless: `refused`, `max_tokens`, `stream_broken`.
        """
        if not self._begun:
            raise failure("server_error", "the API's answer is empty")
        return ended(
            stop=self._stop,
            text="".join(self._text),
            thinking="".join(self._thinking),
            refusal="".join(self._refusal),
            calls=tuple(call.made(number) for number, call in enumerate(self._calls, 1)),
            model=self._model,
            usage=self._usage,
            most_tokens=self._most_tokens,
        )


class _OpenCall:
    """A tool call that is being sent."""

    def __init__(self, index: int | None, id: str) -> None:
        self.index = index
        self.id = id
        self._name = ""
        self._pieces: list[str] = []
        self._input: Mapping[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether its arguments came as an object."""
        return self._input is not None

    def grow(self, function: JsonObject) -> None:
        """Add a part."""
        name = word(function.get("name"))
        if name and not self._name:
            self._name = name
        given = function.get("arguments")
        if isinstance(given, dict):
            try:
                self._input = checked(given)
            except (NotJson, RecursionError) as error:
                raise API.unreadable(f"a tool call cannot be kept ({error})") from None
        elif given is not None:
            self._pieces.append(_members.text(function, "arguments"))

    def made(self, number: int) -> Call:
        """The call.

        Raises:
            BackendError: it names no tool.
        """
        if not self._name:
            raise API.unreadable("a tool call has no name")
        id, text = self.id or f"call_{number}", "".join(self._pieces)
        if self._input is not None and not text:
            return Call(id, self._name, dict(self._input))
        return Call.sent(id, self._name, text if text.strip() else "{}")


def _content(value: Any) -> str:
    """Text, or the texts among parts."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else ()
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
