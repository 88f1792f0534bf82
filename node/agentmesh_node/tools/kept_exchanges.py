"""What earlier turns of an agent did that ended without their answers, for the history of a tool loop
(docs/design/030-what-was-done-is-kept.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from agentmesh.backend import Kept, Turn
from agentmesh.tool_runs import INTERRUPTED, MAY_BE_DONE
from agentmesh_node.tools.calls import Call, Result, key_of
from agentmesh_node.tools.loop_steps import Ids, ReplayedSteps
from agentmesh_node.tools.open_calls import OpenCalls

type ShownAs = Literal["whole", "note", "not"]
"""How earlier turns are shown at most: each as it was given, all by their notes, or none."""
NOT_DONE = "interrupted; it was not done"
"""The end of a call of which its tool says that it has not taken effect."""


class Provider(Protocol):
    """How a provider writes messages (see `agentmesh_node.tools.loop.Model`)."""

    def prompt(self, text: str, turn: Turn) -> Any: ...

    def results(self, results: Sequence[Result]) -> Any: ...

    def noted(self, message: Any, note: str) -> Any: ...


type AskAfter = Callable[[Call, str], Awaitable[Result | None]]
"""What became of a call that may have been made, by its key: its result; None if it was not made."""


class _Read(NamedTuple):
    kept: Kept
    steps: bool
    """Whether its steps are those of a tool loop, and are shown."""


class EarlierTurns:
    """The earlier turns that a turn is given."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = [_Read(turn, _is_readable(turn)) for turn in kept]

    def levels(self, begun: str | None, answered: bool) -> tuple[ShownAs, ...]:
        """The levels at which a turn may show them, to be tried in turn while its model refuses the messages.

        Args:
            begun: the level at which an earlier owner of the turn got its first answer, if not the first one.
            answered: whether an earlier owner got an answer.
        """
        whole = any(turn.shown == "whole" and steps for turn, steps in self._kept)
        noted = any(turn.shown in ("whole", "note") and turn.note for turn, _ in self._kept)
        levels: list[ShownAs] = ["whole"] if whole else []
        levels += ["note"] if noted else []
        levels.append("not")
        if answered:
            first: ShownAs = levels[0] if begun not in ("note", "not") else "note" if begun == "note" else "not"
            return (first,)
        return tuple(levels)

    async def show(self, level: ShownAs, history: list[Any], model: Provider, turn: Turn, ask_after: AskAfter) -> list[str]:
        """Add to the history what is shown as exchanges. Returns the notes of what is shown by its note."""
        notes = []
        for kept, steps in self._kept:
            if level == "not" or kept.shown in ("not", "told"):
                continue
            if level == "whole" and kept.shown == "whole" and steps:
                await _replay(kept, history, model, turn, ask_after)
            elif kept.note:
                notes.append(kept.note)
        return notes

    def open_calls(self, known: frozenset[str], level: ShownAs) -> OpenCalls:
        """The calls of those turns whose request is tried again that are open, or whose results the model is not told.

        Args:
            known: the keys with which this turn goes on already.
            level: how the turns are shown.
        """
        found = OpenCalls()
        for kept, steps in self._kept:
            if kept.retried and steps:
                hidden = kept.shown == "not" or (level == "not" and kept.shown != "told")
                for call, key, result in _calls(kept):
                    if result is None:
                        found.begun(call, key)
                    else:
                        found.ended(call, key, result, hidden=hidden)
        found.next_answer()
        found.gone_on_with(known)
        return found


def notes(kept: Sequence[Kept]) -> list[str]:
    """The notes of earlier turns, for a backend that can show them in no other way."""
    return [turn.note for turn in kept if turn.shown in ("whole", "note") and turn.note]


def _is_readable(kept: Kept) -> bool:
    """Whether its steps are a tool loop's: the agent may have had another backend."""
    try:
        return bool(kept.steps) and ReplayedSteps(kept.steps).answered
    except (msgspec.ValidationError, TypeError):
        return False


def _calls(kept: Kept) -> list[tuple[Call, str, Result | None]]:
    """The calls of a turn, with their keys and results."""
    steps, ids = ReplayedSteps(kept.steps), Ids()
    calls: list[Call] = []
    while (answer := steps.answer()) is not None:
        calls += ids.of(answer.calls)
    return [(call, steps.key(call, kept.name) or key_of(kept.name, call), steps.result(call)) for call in calls]


async def _replay(kept: Kept, history: list[Any], model: Provider, turn: Turn, ask_after: AskAfter) -> None:
    """Add the exchanges of a turn to the history."""
    steps, ids = ReplayedSteps(kept.steps), Ids()
    history.append(model.prompt(kept.prompt, msgspec.structs.replace(turn, attachments=kept.attachments)))
    while (answer := steps.answer()) is not None:
        if answer.told:
            history.append(model.prompt(answer.told, msgspec.structs.replace(turn, attachments=())))
        if answer.note:
            history[-1] = model.noted(history[-1], answer.note)
        if answer.compacted:
            history.clear()
        if answer.message is not None:
            history.append(answer.message)
        if not answer.calls:
            continue
        results = []
        for given, call in zip(answer.calls, ids.of(answer.calls), strict=True):
            result = steps.result(call)
            if result is None:
                result = await _end_of(call, steps.key(call, kept.name), ask_after)
            results.append(msgspec.structs.replace(result, id=given.id))
        history.append(model.results(results))


async def _end_of(call: Call, key: str | None, ask_after: AskAfter) -> Result:
    """The end of a call that has no result, as the model is told."""
    found = Result.failed(call, INTERRUPTED, MAY_BE_DONE) if key is None else await ask_after(call, key)
    if found is None:
        return Result.failed(call, INTERRUPTED, NOT_DONE)
    return found if found.ok else Result.failed(call, INTERRUPTED, MAY_BE_DONE)
