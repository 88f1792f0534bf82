"""The steps of a tool loop, as the journal keeps them and as a later owner reads them (docs/architecture.md#steps).

One step for each model answer and one for each tool result. Before a call of a `once` tool an intent is committed: an intent
without a result says that the call may have been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentmesh.backend import Event
from agentmesh.errors import BackendError, BadAnswer, BudgetExceeded
from agentmesh.unicode import well_formed
from agentmesh_node.tools.calls import Call, Result, key_of


class ModelAnswer(msgspec.Struct, frozen=True, tag_field="step", tag="answer", omit_defaults=True):
    """An answer of the model."""

    message: Any
    """The message for the history: the provider's own JSON; None if it is empty and could not be sent again."""
    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    stop: str = "end_turn"
    """Why it ended, in the provider's terms."""
    model: str = ""
    """The model that answered."""
    usage: dict[str, int] = {}
    """`input_tokens` (those read from or written to a cache not counted), `output_tokens`, `cache_read_input_tokens`,
    `cache_write_input_tokens`."""
    goes_on: bool = False
    """The provider paused: ask again, with the history as it is."""
    compacted: bool = False
    """The message holds a summary of everything before it: the history begins with it."""
    note: str | None = None
    """The note that the mesh added to the request for this answer."""
    earlier: str | None = None
    """How earlier turns without an answer were shown in its request, if not as they were given (agentmesh.backend.Kept)."""
    told: str | None = None
    """The mesh's message between the answer before, which was not of the agent's type, and this one. An older build passes over
    it, and over this answer: it ends the turn with the one before."""


class Intent(msgspec.Struct, frozen=True, tag_field="step", tag="intent", omit_defaults=True):
    """A call is about to be made: of a `once` tool, or one that goes on with the call of an earlier turn."""

    id: str
    key: str = ""
    """The call's key: an owner that makes it again reads it here. Empty in the steps of an older build, which derived it."""
    name: str = ""
    input: Any = None
    """The tool and its arguments, where no answer among the steps has them."""


class Ran(msgspec.Struct, frozen=True, tag_field="step", tag="result"):
    """A tool call has ended."""

    result: Result


type LoopStep = ModelAnswer | Intent | Ran


def sound(reply: ModelAnswer) -> ModelAnswer:
    """`reply` with texts that the journal can keep; they go into the history and to tools in the same form. A call whose input
    has half a character, or what else the journal cannot keep, is not made."""
    if reply.calls:
        reply = msgspec.structs.replace(reply, calls=tuple(call.checked() for call in reply.calls))
    return msgspec.convert(well_formed(msgspec.to_builtins(reply)), ModelAnswer)


class Ids:
    """Gives each call of a turn an id of its own: providers repeat ids, or give none. The first call with an id keeps it.

    Ids follow from the order of the calls, so a later owner that replays the answers gives the same ids.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, calls: Sequence[Call]) -> tuple[Call, ...]:
        return tuple(
            call if (found := self.add(call.id)) == call.id else msgspec.structs.replace(call, id=found) for call in calls
        )

    def add(self, given: str) -> str:
        """Use `given`; or, if that is taken, the next free id like it."""
        found = self.next(given)
        self._used.add(found)
        return found

    def next(self, given: str) -> str:
        """The id that `add` would give."""
        found, number = given or "call", 1
        while found in self._used:
            number += 1
            found = f"{given or 'call'}#{number}"
        return found


class ReplayedSteps:
    """The steps of an earlier owner, to be replayed without calls."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self._answers: list[ModelAnswer] = []
        self._results: dict[str, Result] = {}
        self._intents: dict[str, Intent] = {}
        self._ended = Ids()
        for step in steps:
            self._add(msgspec.convert(step, LoopStep))
        self._answers.reverse()

    def _add(self, step: LoopStep) -> None:
        match step:
            case ModelAnswer():
                self._answers.append(step)
            case Intent():
                # In a journal from before ids were made distinct, an id may occur again after its call has ended: a later call's.
                self._intents[self._ended.next(step.id)] = step
            case Ran():
                self._results[self._ended.add(step.result.id)] = step.result

    def answer(self) -> ModelAnswer | None:
        """The next answer of the earlier owner, if there is one more."""
        return self._answers.pop() if self._answers else None

    def result(self, call: Call) -> Result | None:
        """The result of a call, if it has ended."""
        return self._results.get(call.id)

    def key(self, call: Call, turn: str) -> str | None:
        """The key of a call that may have been made; None if it was not begun, as far as a step says so.

        Args:
            turn: the name of the turn whose steps these are.
        """
        intent = self._intents.get(call.id)
        return None if intent is None else intent.key or key_of(turn, call)

    @property
    def told(self) -> str | None:
        """What the mesh told the model ahead of the next answer."""
        return self._answers[-1].told if self._answers else None

    @property
    def answered(self) -> bool:
        """Whether there is an answer that was not taken yet."""
        return bool(self._answers)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that the steps name."""
        return frozenset(intent.key for intent in self._intents.values())

    @property
    def earlier(self) -> str | None:
        """How the first answer was shown earlier turns (see `ModelAnswer.earlier`)."""
        return self._answers[-1].earlier if self._answers else None


class Total:
    """The tokens of a turn."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._model = ""

    def add(self, reply: ModelAnswer) -> None:
        for name, count in reply.usage.items():
            self._tokens[name] = self._tokens.get(name, 0) + count
        self._model = reply.model or self._model

    def event(self, *, replayed: bool) -> Event:
        """The tokens of the turn so far: the last such event has them all."""
        return Event("usage", {**self._tokens, "model": self._model}, replayed)


def answered(reply: ModelAnswer) -> list[Event]:
    """The events of an earlier owner's answer: text and thinking in one piece each."""
    found = []
    if reply.thinking:
        found.append(Event("thinking", {"text": reply.thinking}, replayed=True))
    if reply.text:
        found.append(Event("text", {"text": reply.text}, replayed=True))
    return found


def told_of_misfit(*, replayed: bool = False) -> Event:
    """The event for an answer that is not of the agent's type: its text is void, and the model is told."""
    return Event("text", {"text": "", "restart": True, "retry": {"reason": BadAnswer.code, "attempt": 2}}, replayed)


def called(call: Call, *, replayed: bool) -> Event:
    return Event("tool_use", {"id": call.id, "name": call.name, "input": call.input}, replayed)


def ran(result: Result, *, replayed: bool) -> Event:
    data = {"id": result.id, "ok": result.ok, "text": result.text}
    return Event("tool_result", data if result.error is None else {**data, "error": result.error}, replayed)


def failed(error: BackendError | BadAnswer | BudgetExceeded) -> Event:
    """The terminal event for an error: its reason and hints are the data."""
    reason = str(error.details.get("reason", error.code))
    return Event.error(
        reason, message=error.message, code=error.code, **{k: v for k, v in error.details.items() if k != "reason"}
    )
