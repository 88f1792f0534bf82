"""Calls of which nobody knows, or was told, what became of them: the next equal call of the model goes on with each
(docs/design/040-a-call-that-timed-out-keeps-its-key.md).

Such a call is one that was begun and has no result, one that timed out, or one whose outcome is unknown. A model that makes it
again gives it another id, but means the same one; under a key of its own it would take effect twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from agentmesh.backend import Kept
from agentmesh_node.tools.calls import Call, Result, key_of

_NOT_MADE = ("budget_exceeded", "max_tool_runs")
"""Errors of calls that were refused before they were made: they say nothing of an earlier try."""


class FormerCall(NamedTuple):
    """A call with which the next equal one goes on."""

    call: Call
    key: str
    result: Result | None
    """Its result, of which the model is not told: its messages were refused."""


class OpenCalls:
    """The open calls of a turn and of the earlier tries of its request, oldest first."""

    def __init__(self) -> None:
        self._open: dict[str, FormerCall] = {}
        self._fresh: dict[str, FormerCall] = {}
        """Calls of the newest answer that its other calls do not go on with: the model has not been told of their ends."""
        self._known: set[str] = set()
        """Keys of calls that have ended once."""

    def begun(self, call: Call, key: str) -> None:
        """Note a call that may have been made."""
        if call.unfit is None:
            self._open.setdefault(key, FormerCall(call, key, None))

    def ended(self, call: Call, key: str, result: Result, *, hidden: bool = False) -> None:
        """Note the end of a call. With `hidden` the model is not told of it.

        It stays open if it timed out: then it was made. So it does if its outcome is unknown, but only once: what the model does
        when it has been told so twice is a call of its own.
        """
        if call.unfit is not None or result.error in _NOT_MADE:
            return
        again = key in self._known
        self._known.add(key)
        if result.error == "timeout" or (result.error == "unknown_outcome" and not again):
            self._open.pop(key, None)
            self._fresh[key] = FormerCall(call, key, None)
        elif hidden:
            self._open[key] = FormerCall(call, key, result)
        else:
            self._open.pop(key, None)

    def next_answer(self) -> None:
        """The model has been told how the calls of its answer ended, and gives the next one."""
        self._open |= self._fresh
        self._fresh.clear()

    def gone_on_with(self, keys: Iterable[str]) -> None:
        """Note calls that have been begun under these keys: those that were open are met."""
        for key in keys:
            if self._open.pop(key, None) is not None or self._fresh.pop(key, None) is not None:
                self._known.add(key)

    def meet(self, call: Call) -> FormerCall | None:
        """Take the oldest call of the same tool with equal arguments, which `call` goes on with. None if there is none."""
        for key, one in self._open.items():
            if (one.call.name, one.call.input) == (call.name, call.input):
                self._known.add(key)
                return self._open.pop(key)
        return None

    def __iter__(self) -> Iterator[FormerCall]:
        return iter(tuple(self._open.values()))


def open_calls(kept: Sequence[Kept], taken: Sequence[Any], turn: str, known: frozenset[str]) -> OpenCalls:
    """The open calls of backends whose intents name their calls.

    Args:
        kept: earlier turns; those count whose request is tried again.
        taken: the steps of earlier owners of this turn. What these left without a result they go on with themselves.
        turn: the name of this turn.
        known: the keys with which this turn goes on already.
    """
    found = OpenCalls()
    for earlier in kept:
        if earlier.retried:
            _read(found, earlier.steps, earlier.name, hidden=earlier.shown == "not", begun=True)
    found.gone_on_with(known)
    _read(found, taken, turn, hidden=False, begun=False)
    found.next_answer()
    return found


def _read(found: OpenCalls, steps: Sequence[Any], turn: str, *, hidden: bool, begun: bool) -> None:
    calls: dict[str, tuple[Call, str]] = {}
    for step in steps:
        kind = step.get("step") if isinstance(step, dict) else None
        if kind == "intent":
            call = msgspec.convert(step.get("call") or step, Call)
            calls[call.id] = call, step.get("key") or key_of(turn, call)
            found.gone_on_with((calls[call.id][1],))
            if call.name and begun:
                found.begun(*calls[call.id])
        elif kind in ("result", "ran"):
            result = msgspec.convert(step["result"], Result)
            if result.id in calls and calls[result.id][0].name:
                found.ended(*calls[result.id], result, hidden=hidden)
