"""Checks and encodes what callbacks return or raise, as inputs of the turn machine. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

import msgspec
from msgspec import Raw

from agentmesh.agent import REQUIRED, Agent, Defer, Halt, Idle, Init, Proceed, Prompt, Skip, lacking, state_type
from agentmesh.backend import BACKEND_METHODS, Event, Response
from agentmesh.callback_context import Ask
from agentmesh.errors import BackendError, BadAnswer, BudgetExceeded, InvalidAgent, MeshError
from agentmesh.identity import callers_of
from agentmesh.json_values import NO_SUCH_NUMBER, locate, not_finite
from agentmesh.records import NOTHING
from agentmesh.registry_values import Restart
from agentmesh.structured import AnswerType, UnusableType
from agentmesh.turn.values import Choice, Misbehaved, Returned
from agentmesh.wire import ErrorBody

_ALLOWED: dict[str, tuple[type, ...]] = {
    "init_agent": (Init,),
    "handle_response": (Idle, Prompt, Halt, Defer),
    "handle_error": (Idle, Prompt, Halt),
    "handle_event": (Idle, Prompt, Halt),
    "pre_turn": (Proceed, Skip, Halt),
}
_encode = msgspec.json.Encoder().encode
_STATE_HOOKS = ("pre_run", "post_turn")
_WRONG_CODE = {"init_agent": "init_failed", "pre_turn": "pre_turn_invalid", "pre_run": "pre_run_failed"}
NONE = Choice(kind="none")
STATE = Choice(kind="state")
IDLE = Choice(kind="idle")


class Checked(msgspec.Struct, frozen=True):
    """A callback's end as the machine's input, and the new state as an object."""

    item: Returned | Misbehaved
    state: Any = None


class Codec:
    """Encodes, decodes and checks the state of one class of agents."""

    def __init__(self, cls: type[Agent[Any]]) -> None:
        """Raises:
        InvalidAgent: the State that the class names cannot be encoded.
        """
        self.type = state_type(cls)
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self.type)
        except TypeError as error:
            raise InvalidAgent(f"{cls.__name__}: its State cannot be encoded: {error}") from None
        named = self.type is not Any and isinstance(self.type, type) and hasattr(self.type, "__annotations__")
        self._class = self.type if named else None
        if self._class is not None and issubclass(self._class, dict):
            self._class = dict  # a TypedDict is a dict at run time

    def decode(self, raw: Raw) -> Any:
        """The state in `raw`.

        Raises:
            msgspec.DecodeError: it is not of this class's State.
        """
        return self._decoder.decode(raw)

    def encode(self, state: Any, before: Raw = NOTHING) -> Raw | ErrorBody:
        """`state` as JSON, or an error that names the field at fault. For a state equal to `before`, `before` itself."""
        if self._class is not None and not isinstance(state, self._class):
            message = f"the state is a {type(state).__name__}; this agent's State is {self._class.__name__}"
            return ErrorBody(code="bad_state", message=message)
        try:
            body = _encode(state)
            if (fault := not_finite(state, body, "state")) is not None:
                return ErrorBody(code="bad_state", message=f"the state cannot be encoded: {fault}, {NO_SUCH_NUMBER}")
            raw = Raw(body)
            # What is committed must be readable again: constructors do not check the types of their fields.
            self._decoder.decode(raw)
            return before if raw == before else raw
        except msgspec.DecodeError as error:
            return ErrorBody(code="bad_state", message=f"the state could not be read again: {error}")
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            return ErrorBody(code="bad_state", message=f"the state cannot be encoded: {locate(state)}: {error}")

    def check(self, hook: str, value: Any, asks: tuple[Ask, ...], before: Raw = NOTHING, *, attachments: bool = False) -> Checked:
        """What callback `hook` returned, as the machine's input.

        Args:
            before: the state that it was given.
            attachments: the prompt being handled has some: it may be without a text.
        """
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
        problem = _problem(choice, attachments and hook == "pre_turn") if choice is not IDLE else None
        if problem is not None:
            return Checked(Misbehaved(ErrorBody(code=_WRONG_CODE.get(hook, "bad_return"), message=f"{hook}: {problem}")))
        raw = self.encode(state, before)
        if type(raw) is Raw:
            return Checked(Returned(choice, raw, asks), state)
        assert isinstance(raw, ErrorBody)
        code = "init_failed" if hook == "init_agent" else raw.code
        return Checked(Misbehaved(ErrorBody(code=code, message=f"{hook}: {raw.message}")))


def check_class(cls: type[Agent[Any]]) -> None:
    """Check a class of agents before any of them runs.

    Raises:
        InvalidAgent: it lacks a required callback, its State cannot be encoded, or an attribute has a wrong value.
    """
    if lacks := lacking(cls):
        raise InvalidAgent(
            f"{cls.__name__} has no {' and no '.join(lacks)}: every agent defines {' and '.join(REQUIRED)} (the name of a class "
            "that only others derive from begins with '_')"
        )
    Codec(cls)
    found: Any = cls
    checks: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("watchdog_s", lambda v: _is_number(v) and v > 0, "a number of seconds above 0"),
        ("defer_s", lambda v: v is None or (_is_number(v) and v > 0), "a number of seconds above 0, or None"),
        ("max_attempts", lambda v: _is_number(v, int) and v > 0, "a whole number above 0"),
        ("max_takeovers", lambda v: _is_number(v, int) and v > 0, "a whole number above 0"),
        ("state_version", lambda v: _is_number(v, int), "a whole number"),
        ("restart", lambda v: v is None or isinstance(v, Restart), "a Restart"),
        ("backend", _is_backend, "the name of a backend, or a class with the methods of one"),
    )
    wrong = [f"{name} = {getattr(found, name)!r} must be {must}" for name, fits, must in checks if not fits(getattr(found, name))]
    if wrong:
        raise InvalidAgent(f"{cls.__name__}: {'; '.join(wrong)}")
    callers_of(cls.callers, cls.__name__)
    answer_type_of(cls)


def answer_type_of(cls: type[Agent[Any]]) -> AnswerType[Any] | None:
    """The type of the answers of a class of agents; None if it declares none.

    Raises:
        InvalidAgent: it cannot be the type of an answer.
    """
    if cls.answer_type is None:
        return None
    try:
        return _answer_type(cast("Hashable", cls.answer_type))
    except UnusableType as error:
        raise InvalidAgent(f"{cls.__name__}.answer_type: {error}") from None
    except TypeError:  # it cannot even be looked up
        raise InvalidAgent(f"{cls.__name__}.answer_type = {cls.answer_type!r} is no type; name a class") from None


@functools.cache
def _answer_type(given: Any) -> AnswerType[Any]:
    """Made once: each agent that is taken up needs it."""
    return AnswerType(given)


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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


def _problem(choice: Choice, may_be_empty: bool = False) -> str | None:
    """What is wrong with a decision's own fields: constructors do not check them, and the journal must stay readable."""
    exclusive: Any = choice.exclusive
    backend: Any = choice.backend
    match choice.kind:
        case "prompt" | "proceed":
            what = "Proceed.prompt" if choice.kind == "proceed" else "Prompt.text"
            if not _is_text(choice.text) or not (choice.text or may_be_empty):
                return f"{what} must be a non-empty string"
            if choice.label is not None and not _is_text(choice.label):
                return "Prompt.label must be a string"
        case "defer":
            if not isinstance(exclusive, bool):
                return "Defer.exclusive must be true or false"
        case "init":
            if not isinstance(backend, dict):
                return f"Init.backend must be a dict, not a {type(backend).__name__}"
            if plain(backend) is None:
                return f"Init.backend must be JSON: {locate(backend, 'backend')} cannot be encoded"
            if (fault := not_finite(backend, _encode(backend), "backend")) is not None:
                return f"Init.backend must be JSON: {fault}, {NO_SUCH_NUMBER}"
    return None


def _is_text(value: Any) -> bool:
    """Whether `value` is a string that can be encoded: lone surrogates cannot."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """`value` as JSON data that shares no object with it, or None if it cannot be encoded."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None


def sound(error: ErrorBody) -> ErrorBody:
    """`error` in a form that can be encoded: user code puts anything into an exception."""
    message, details = error.message, error.details
    if not _is_text(message):
        message = str(message).encode(errors="replace").decode()
    if details:
        found = plain(details)
        details = found if isinstance(found, dict) else {"unencodable": repr(details)[:1000].encode(errors="replace").decode()}
    return ErrorBody(code=error.code, message=message, details=details)


def bad_response(response: Response) -> str | None:
    """What in a backend's response no outcome can carry, or None."""
    if not _is_text(response.text):
        return f"its text is a {type(response.text).__name__}, not a string that can be encoded"
    if response.session_id is not None and not _is_text(response.session_id):
        return f"its session_id is a {type(response.session_id).__name__}, not a string"
    if response.usage is not None and not isinstance(plain(response.usage), dict):
        return "its usage cannot be encoded"
    return None


def _is_backend(value: Any) -> bool:
    if isinstance(value, type):
        return all(callable(getattr(value, name, None)) for name in BACKEND_METHODS)
    return value is None or isinstance(value, str)


def _wrong(hook: str, value: Any, allowed: tuple[type, ...]) -> ErrorBody:
    names = ", ".join(t.__name__ for t in allowed)
    what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    message = f"{hook} returned {what}; it must return one of {names}"
    return ErrorBody(code=_WRONG_CODE.get(hook, "bad_return"), message=message, details={"returned": type(value).__name__})


def returned_error(hook: str, error: BaseException) -> ErrorBody:
    """An exception that a callback returned instead of raising: its way to refuse."""
    code = _WRONG_CODE.get(hook, "bad_return")
    return sound(ErrorBody(code=code, message=str(error) or type(error).__name__, details={"type": type(error).__name__}))


def raised_error(error: BaseException) -> ErrorBody:
    """An exception that a callback raised."""
    if isinstance(error, MeshError):
        return sound(ErrorBody.of(error))
    try:
        message = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception's text is user code as well
        message = type(error).__name__
    return sound(ErrorBody(code="task_crashed", message=message, details={"type": type(error).__name__}))


def terminal_error(event: Event) -> ErrorBody:
    """A terminal error event: its reason; a missing one is `unknown`."""
    reason = str(event.data.get("reason") or "unknown")
    message = str(event.data.get("message") or reason)
    given = event.data.get("code")
    code = given if given in (BudgetExceeded.code, BadAnswer.code) else BackendError.code
    details = plain(event.data)
    return sound(ErrorBody(code=code, message=message, details={**(details or {}), "reason": reason}))


def crash_error(error: BaseException) -> ErrorBody:
    """The error for an exception that escaped from a prompt task."""
    if isinstance(error, BackendError):
        return sound(ErrorBody.of(error))
    if isinstance(error, MeshError):
        return sound(ErrorBody(code="task_crashed", message=str(error), details={"reason": error.code}))
    message, reason = f"{type(error).__name__}: {error}", type(error).__name__
    return sound(ErrorBody(code="task_crashed", message=message, details={"reason": reason}))


__all__ = [
    "IDLE", "NONE", "NOTHING", "STATE", "Checked", "Codec", "bad_response", "check_class", "crash_error", "locate", "plain",
    "raised_error", "returned_error", "sound", "terminal_error",
]  # fmt: skip
