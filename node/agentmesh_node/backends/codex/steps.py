"""The steps of a codex turn, as the journal keeps them and as a later owner reads them (docs/architecture.md#steps).

When the tools of a model answer have run, the thread's rollout is stored and a `Saved` step names it: a turn that lost its node
goes on from the newest. A run of one of the agent's own tools stands between an `OwnToolIntent` and an `OwnToolRan`: an
answer that was not saved yet is asked for again, and a call in it that was made before is not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentmesh.backend import Event
from agentmesh_node.backends.codex.rollout import Rollout
from agentmesh_node.tools import Call, Result
from agentmesh_node.tools.calls import key_of


class Saved(msgspec.Struct, frozen=True, tag_field="step", tag="saved"):
    """The thread was stored after an answer and its tools."""

    session_id: str
    rollout: Rollout
    events: tuple[Event, ...] = ()
    """The events since the step before."""
    usage: dict[str, int] = {}
    """Tokens of the turn so far."""
    tool_calls: int = 0
    """Tool runs of the turn so far."""


class OwnToolIntent(msgspec.Struct, frozen=True, tag_field="step", tag="intent"):
    """A call of one of the agent's own tools is about to be made."""

    call: Call
    key: str = ""
    """Its key: an owner that makes this call again reads it here. Empty in the steps of an older build, which derived it."""


class OwnToolRan(msgspec.Struct, frozen=True, tag_field="step", tag="ran"):
    """The call has ended."""

    call: Call
    result: Result


type CodexStep = Saved | OwnToolIntent | OwnToolRan


class EarlierSteps:
    """The steps of an earlier owner."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self.saved: list[Saved] = []
        self._intents: list[Call] = []
        self._ran: list[OwnToolRan] = []
        self._keys: dict[str, str] = {}
        for step in steps:
            self._add(msgspec.convert(step, CodexStep))

    def _add(self, step: CodexStep) -> None:
        match step:
            case Saved():
                self.saved.append(step)
                # The thread holds these calls and their results.
                self._intents.clear()
                self._ran.clear()
            case OwnToolIntent():
                self._intents.append(step.call)
                self._keys[step.call.id] = step.key
            case OwnToolRan():
                self._ran.append(step)

    def events(self) -> list[Event]:
        """The events of the earlier owner's committed steps."""
        found = [event for saved in self.saved for event in saved.events]
        results = {ran.call.id: ran.result for ran in self._ran}
        for call in self._intents:
            found.append(Event("tool_use", {"id": call.id, "name": call.name, "input": call.input}))
            result = results.get(call.id)
            if result is not None:
                found.append(Event("tool_result", {"id": call.id, "ok": result.ok, "text": result.text}))
        return [msgspec.structs.replace(event, replayed=True) for event in found]

    def former(self, call: Call) -> tuple[Call, Result | None] | None:
        """The call of an earlier owner that this one repeats, with its result if it had one. Each is given once.

        The model was asked again, so its call has another id: calls are matched by tool and input.
        """
        for ran in self._ran:
            if _same(ran.call, call):
                self._ran.remove(ran)
                self._intents = [intent for intent in self._intents if intent.id != ran.call.id]
                return ran.call, ran.result
        for intent in self._intents:
            if _same(intent, call):
                self._intents.remove(intent)
                return intent, None
        return None

    def key(self, call: Call, turn: str) -> str:
        """The key of a call that `former` gave, in the turn of that name."""
        return self._keys.get(call.id) or key_of(turn, call)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that the steps name."""
        return frozenset(self._keys.values())


def _same(one: Call, other: Call) -> bool:
    return one.name == other.name and one.input == other.input


def step_value(step: CodexStep) -> Any:
    """The step as JSON data."""
    return msgspec.to_builtins(step)
