"""From what a callback returned to what the turn machine takes: checked, and encoded. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from agentmesh.agent import Agent, Defer, Halt, Idle, Init, Proceed, Prompt, Skip, state_type
from agentmesh.errors import MeshError
from agentmesh.hands import Ask
from agentmesh.records import NOTHING
from agentmesh.turn.values import Choice, Misbehaved, Returned
from agentmesh.wire import ErrorBody

_ALLOWED: dict[str, tuple[type, ...]] = {
    "init_agent": (Init,),
    "handle_response": (Idle, Prompt, Halt, Defer),
    "handle_error": (Idle, Prompt, Halt),
    "handle_event": (Idle, Prompt, Halt),
    "pre_turn": (Proceed, Skip, Halt),
}
_STATE_HOOKS = ("pre_run", "post_turn")
_WRONG_CODE = {"init_agent": "init_failed", "pre_turn": "pre_turn_invalid", "pre_run": "pre_run_failed"}
NONE = Choice(kind="none")
STATE = Choice(kind="state")
IDLE = Choice(kind="idle")


class Checked(msgspec.Struct, frozen=True):
    """A callback's end as the machine's input, and the state as the object it is."""

    item: Returned | Misbehaved
    state: Any = None


class Codec:
    """Encodes, decodes and checks the state of one class of agents."""

    def __init__(self, cls: type[Agent[Any]]) -> None:
        self.type = state_type(cls)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self.type)
        self._class = self.type if isinstance(self.type, type) and hasattr(self.type, "__annotations__") else None
        if self._class is not None and issubclass(self._class, dict):
            self._class = dict  # a TypedDict is a dict at run time

    def decode(self, raw: Raw) -> Any:
        """The state in `raw`.

        Raises:
            msgspec.DecodeError: it is not of this class's State.
        """
        return self._decoder.decode(raw)

    def encode(self, state: Any) -> Raw | ErrorBody:
        """`state` as JSON, or what is wrong with it, naming the field."""
        if self._class is not None and not isinstance(state, self._class):
            message = f"the state is a {type(state).__name__}; this agent's State is {self._class.__name__}"
            return ErrorBody(code="bad_state", message=message)
        try:
            raw = Raw(msgspec.json.encode(state))
            # What is committed must be readable again: constructors do not check the types of their fields.
            self._decoder.decode(raw)
            return raw
        except msgspec.DecodeError as error:
            return ErrorBody(code="bad_state", message=f"the state could not be read again: {error}")
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            return ErrorBody(code="bad_state", message=f"the state cannot be encoded: {locate(state)}: {error}")

    def check(self, hook: str, value: Any, asks: tuple[Ask, ...]) -> Checked:
        """What callback `hook` returned, as the machine's input."""
        allowed = _ALLOWED.get(hook)
        if allowed is None and hook not in _STATE_HOOKS:
            return Checked(Returned(NONE, asks=asks))
        if isinstance(value, BaseException):
            return Checked(Misbehaved(returned_error(hook, value)))
        if allowed is None:
            choice, state = STATE, value
        elif isinstance(value, allowed):
            choice, state = _choice(value), value.state  # type: ignore[attr-defined]
        else:
            return Checked(Misbehaved(_wrong(hook, value, allowed)))
        if choice.kind in ("prompt", "proceed") and (not isinstance(choice.text, str) or not choice.text):
            what = "Proceed.prompt" if choice.kind == "proceed" else "Prompt.text"
            code = _WRONG_CODE.get(hook, "bad_return")
            return Checked(Misbehaved(ErrorBody(code=code, message=f"{hook}: {what} must be a non-empty string")))
        raw = self.encode(state)
        if isinstance(raw, ErrorBody):
            code = "init_failed" if hook == "init_agent" else raw.code
            return Checked(Misbehaved(ErrorBody(code=code, message=f"{hook}: {raw.message}")))
        return Checked(Returned(choice, raw, asks), state)


def _choice(value: Any) -> Choice:
    match value:
        case Idle():
            return IDLE
        case Prompt():
            return Choice(kind="prompt", text=value.text, label=value.label)
        case Halt():
            return Choice(kind="halt")
        case Defer():
            return Choice(kind="defer", exclusive=value.exclusive)
        case Proceed():
            return Choice(kind="proceed", text=value.prompt)
        case Skip():
            return Choice(kind="skip")
    return Choice(kind="init", backend=value.backend)


def _wrong(hook: str, value: Any, allowed: tuple[type, ...]) -> ErrorBody:
    names = ", ".join(t.__name__ for t in allowed)
    message = f"{hook} returned a {type(value).__name__}; it must return one of {names}"
    return ErrorBody(code=_WRONG_CODE.get(hook, "bad_return"), message=message, details={"returned": type(value).__name__})


def returned_error(hook: str, error: BaseException) -> ErrorBody:
    """An exception that a callback returned instead of raising: its way to refuse."""
    code = _WRONG_CODE.get(hook, "bad_return")
    return ErrorBody(code=code, message=str(error) or type(error).__name__, details={"type": type(error).__name__})


def raised_error(error: BaseException) -> ErrorBody:
    """An exception that a callback raised."""
    if isinstance(error, MeshError):
        return ErrorBody.of(error)
    return ErrorBody(code="task_crashed", message=f"{type(error).__name__}: {error}", details={"type": type(error).__name__})


def locate(value: Any, path: str = "state", depth: int = 0) -> str:
    """The path of the first part of `value` that cannot be encoded."""
    if depth > 50:
        return path
    children: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        children = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif hasattr(value, "__struct_fields__") or hasattr(value, "__dataclass_fields__"):
        fields = getattr(value, "__struct_fields__", None) or tuple(value.__dataclass_fields__)
        children = [(f"{path}.{name}", getattr(value, name, None)) for name in fields]
    for where, child in children:
        try:
            msgspec.json.encode(child)
        except Exception:  # noqa: BLE001 - whichever it is, the fault lies in this child
            return locate(child, where, depth + 1)
    return path


__all__ = ["IDLE", "NONE", "NOTHING", "STATE", "Checked", "Codec", "locate", "raised_error", "returned_error"]
