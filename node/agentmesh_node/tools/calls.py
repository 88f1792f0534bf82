"""A call of a tool, its result, and the bounds within which any call runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import islice
from typing import Any

import msgspec

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.json_values import not_finite, search
from agentmesh.strict_json import NotJson, checked
from agentmesh_node.tools.call_inputs import SHOWN, input_of

PATIENCE_S = 5.0
"""How long a cancelled call may take to end before it is left behind and reported."""
MAX_RESULT = 100_000
"""Most characters of a result that a model gets, and the journal keeps."""


TOLD = 5
"""Most numbers of a result that JSON does not have and that the model is told by name."""
NOTE_ROOM = 1_000
"""Most characters of that note."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call that a model asks for."""

    id: str
    name: str
    input: Any = None
    unfit: str | None = None
    """Why the input cannot be used: the call is never made, and the model is told. `input` is then the text as it came."""

    @staticmethod
    def sent(id: str, name: str, text: str) -> Call:
        """The call with the input that `text` is, as the model sent it."""
        try:
            return Call(id, name, input_of(text))
        except NotJson as error:
            return Call(id, name, text, str(error))

    def checked(self) -> Call:
        """This call; or, if the journal cannot keep its input, one that cannot be made."""
        if self.unfit is not None:
            return self
        try:
            return Call(self.id, self.name, checked(self.input))
        except NotJson as error:
            return Call(self.id, self.name, "", str(error))

    def refusal(self) -> Result | None:
        """The result of a call whose input cannot be used; None for one that can be made."""
        if self.unfit is None:
            return None
        text = str(self.input)
        shown = f"; it began {shortened(text, SHOWN)!r}" if text else ""
        return Result.failed(
            self,
            "bad_input",
            f"This call was not made: its input did not arrive as one whole JSON object ({self.unfit}){shown}. "
            "Make the call again, with a shorter input if it was cut off.",
        )


def key_of(turn: str, call: Call) -> str:
    """The key of a call that is made for the first time, in the turn of that name."""
    return f"{turn}/{call.id}"


class Result(msgspec.Struct, frozen=True):
    """The result of a call, as the model gets it."""

    id: str
    name: str
    ok: bool
    text: str
    error: str | None = None
    """A stable word for what went wrong: `bad_input`, `unknown_tool`, `timeout`, `raised`, `unknown_outcome`, an error's code."""

    @staticmethod
    def of(call: Call, value: Any) -> Result:
        """The result for a return value: text as it is, anything else as JSON. Numbers that JSON does not have are `null` there,
        and the model is told which: the tool has run."""
        try:
            text = value if isinstance(value, str) else "" if value is None else msgspec.json.encode(value).decode()
            if not isinstance(value, str) and not_finite(value, text.encode()) is not None:
                return Result(call.id, call.name, True, shortened(text, MAX_RESULT - NOTE_ROOM) + _noted(value))
        except Exception as error:  # noqa: BLE001 - encoding may run user code, and numbers may be too large
            return Result.failed(call, "raised", f"the tool's result is no JSON: {error}")
        return Result(call.id, call.name, True, shortened(text))

    @staticmethod
    def failed(call: Call, error: str, text: str) -> Result:
        return Result(call.id, call.name, False, shortened(text), error)


def _noted(value: Any) -> str:
    """Which numbers of a result are written as `null`, for the model."""
    found = list(islice(search(value, "result"), TOLD + 1))
    more = ", and others" if len(found) > TOLD else ""
    return shortened(f"\n[{', '.join(found[:TOLD])}{more}: JSON has no such number, so null stands there]", NOTE_ROOM)


def shortened(text: str, most: int = MAX_RESULT) -> str:
    """`text` in a form that the journal can keep, cut to `most` characters with a note on how much is missing.

    Characters that UTF-8 cannot encode (lone surrogates, as in file names that are no UTF-8) become question marks.
    """
    kept = text[:most].encode(errors="replace").decode()
    return kept if len(text) <= most else f"{kept}\n[cut: {len(text) - most} more characters]"


class TimedOut(Exception):
    """A bounded piece of work took too long, and was cancelled."""


async def bounded[T](work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
    """The result of `work`, which runs in a task of its own. Work that does not end when it is cancelled is left behind.

    Raises:
        TimedOut: it took longer than `timeout_s` seconds.
    """
    task = asyncio.create_task(work, name=f"tool {what}")
    try:
        done, _ = await asyncio.wait((task,), timeout=timeout_s)
        if done:
            return task.result()
    except asyncio.CancelledError:
        await cancel_and_wait(task, within_s=PATIENCE_S, heed=False)
        raise
    await cancel_and_wait(task, within_s=PATIENCE_S, heed=False)
    raise TimedOut
