"""Typed answers: an agent declares the type of its answer, and its callers read the answer as a value of a type. Pure.

    class Plan(msgspec.Struct):
        steps: list[str]

    class Planner(Agent[State]):
        answer_type = Plan

        async def handle_response(self, ref, response: Response[Plan], state):
            print(response.answer.steps)

The answer of such an agent is JSON: its text is the canonical form of a value that fits the type. A type is a msgspec Struct, a
dataclass or a TypedDict (docs/agent.md#typed-answers).
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.errors import BadAnswer
from agentmesh.json_values import NO_SUCH_NUMBER, not_finite
from agentmesh.strict_json import NotJson, checked, strictly
from agentmesh.wire import ErrorBody, Outcome

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    A = TypeVar("A", default=Any)
    """The type of an answer, where a class or a call may go without: then the answer is not typed."""
else:
    from typing import TypeVar

    A = TypeVar("A")

MOST_SCHEMA = 16 << 10
"""Most bytes of a schema as JSON: each agent's stands in its spec, which every node holds."""
MOST_TEXT = 256 << 10
"""Most characters of a typed answer: reading it holds up the event loop."""
_TOLD = 1000
"""Characters of a problem that are told."""
_SHOWN = 2000
"""Characters of an answer that does not fit that its error has."""
_FENCED = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
"""A block of code in Markdown, in which models like to put JSON."""


class UnusableType(TypeError):
    """A type cannot be that of an answer; the text says what to do."""


class Misfit(ValueError):
    """An answer is not of its type; the text says what does not fit, and where."""


class AnswerType[T]:
    """The type of an answer: its schema, and the way to read what a model has said."""

    def __init__(self, type: type[T]) -> None:
        """
        Raises:
            UnusableType: it is no Struct, dataclass or TypedDict, or JSON cannot express it.
        """
        self.name = _name(type)
        _check_kind(type, self.name)
        try:
            self.schema: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(_schema(type)))
            self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type)
        except (TypeError, ValueError, NameError, RecursionError) as error:
            cause = " ".join(str(error).split())
            raise UnusableType(
                f"{self.name} cannot be the type of an answer: {cause}; use types that JSON has (numbers, texts, lists, dicts, "
                "dates, enums, other Structs)"
            ) from None
        self._newest: tuple[str | None, str] = (None, "")
        size = len(msgspec.json.encode(self.schema))
        if size > MOST_SCHEMA:
            raise UnusableType(f"the schema of {self.name} takes {size} bytes; at most {MOST_SCHEMA} can be declared: split it")
        self.strict = strict_schema(self.schema)
        """The schema as providers take it that hold their model to it: without what they do not know, which is checked here. None
        if it has a part that they cannot express."""

    def read(self, text: str) -> T:
        """The value that `text` is: JSON and nothing else, or JSON in the one block of code that the text has.

        Raises:
            Misfit: it is none, or does not fit.
        """
        if len(text) > MOST_TEXT:
            raise Misfit(f"it has {len(text)} characters, and a typed answer has {MOST_TEXT} at most")
        body = _json_in(text)
        try:
            return self._decoder.decode(body)
        except Exception as error:  # noqa: BLE001 - a type's own checks are user code, which raises anything
            raise Misfit(_cause(error)) from None

    def canonical(self, value: T) -> str:
        """`value` as JSON text: the same text for equal values.

        Raises:
            Misfit: it cannot be read again as this type.
        """
        try:
            body = msgspec.json.encode(value, order="deterministic")
            if (fault := not_finite(value, body, "it")) is not None:
                raise Misfit(f"{fault}, {NO_SUCH_NUMBER}")
            self._decoder.decode(body)
            return body.decode()
        except Misfit:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise Misfit(_cause(error)) from None

    def fitting(self, text: str) -> str:
        """The canonical form of the answer `text`. That of the newest one is remembered: several look at it.

        Raises:
            Misfit: as `read`.
        """
        known, canonical = self._newest
        if text != known:
            canonical = self.canonical(self.read(text))
            self._newest = text, canonical
        return canonical

    def value(self, canonical: str) -> T:
        """The value of a canonical form: it is not checked again.

        Raises:
            msgspec.DecodeError: it is none.
        """
        return self._decoder.decode(canonical)

    def demand(self) -> str:
        """What a model is told that cannot be asked for this type in any other way."""
        return f"Answer with one JSON value and nothing else. It must fit this JSON schema:\n{self._as_json()}"

    def correction(self, problem: str) -> str:
        """What a model is told whose answer does not fit."""
        return (
            f"Your last answer cannot be used, since it is not of the form that was asked for: {problem}\n"
            f"Answer again. {self.demand()}"
        )

    def refused(self, text: str, problem: str) -> BadAnswer:
        """The error for an answer that does not fit."""
        details = {"reason": BadAnswer.code, "retryable": True, "problem": problem, "type": self.name, "text": text[:_SHOWN]}
        return BadAnswer(f"the answer is no {self.name}: {problem}", details=details)

    def _as_json(self) -> str:
        return msgspec.json.encode(self.schema).decode()


def answer_of[T](outcome: Outcome, answer_type: type[T] | AnswerType[T]) -> T:
    """The answer in an outcome as a value of that type.

    Raises:
        MeshError: the request ended with an error; its class follows the code.
        BadAnswer: the answer does not fit; `details["text"]` is its beginning, and the outcome stands.
        UnusableType: it cannot be the type of an answer.
    """
    if not outcome.ok:
        raise (outcome.error or ErrorBody(code="error", message="the request ended with an error that has no body")).exception()
    known = answer_type if isinstance(answer_type, AnswerType) else AnswerType(answer_type)
    text = outcome.text or ""
    try:
        return known.read(text)
    except Misfit as misfit:
        raise known.refused(text, str(misfit)) from None


def _json_in(text: str) -> str:
    """The JSON in a text.

    Raises:
        Misfit: there is none, or such as not everybody reads in the same way.
    """
    bare = text.strip()
    blocks = [] if bare.startswith(("{", "[")) else _FENCED.findall(bare)
    body = blocks[0] if len(blocks) == 1 else bare
    try:
        checked(strictly(body))
    except (NotJson, RecursionError) as error:
        several = f", and it has {len(blocks)} blocks of code" if len(blocks) > 1 else ""
        raise Misfit(f"it is no JSON ({str(error)[:_TOLD] or 'nested too deeply'}){several}") from None
    return body


def _cause(error: Exception) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - the text of an exception is user code as well
        said = ""
    known = isinstance(error, msgspec.MsgspecError)
    return (said if known and said else f"{type(error).__name__}: {said}")[:_TOLD].encode(errors="replace").decode()


# --- types ------------------------------------------------------------------------------------------------------------
def _name(given: Any) -> str:
    return str(getattr(given, "__name__", None) or given)


def _check_kind(given: Any, name: str) -> None:
    """
    Raises:
        UnusableType: it is none of the three kinds of types whose JSON is an object.
    """
    found = typing.get_origin(given) or given
    if isinstance(found, type) and (
        (issubclass(found, msgspec.Struct) and not found.__struct_config__.array_like)
        or dataclasses.is_dataclass(found)
        or typing.is_typeddict(found)
    ):
        return
    raise UnusableType(
        f"{name} cannot be the type of an answer: that is a msgspec Struct (not array_like), a dataclass or a TypedDict; put "
        "anything else into a field of one"
    )


def _schema(given: Any) -> dict[str, Any]:
    """The JSON schema of a type, with the object itself at the top."""
    (top,), components = msgspec.json.schema_components([given], ref_template="#/$defs/{name}")
    name = top["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = dict(components[name])
    used = components if _refers_to(components, top["$ref"]) else {key: one for key, one in components.items() if key != name}
    return {**schema, "$defs": used} if used else schema


def _refers_to(part: Any, ref: str) -> bool:
    if isinstance(part, Mapping):
        return part.get("$ref") == ref or any(_refers_to(item, ref) for item in part.values())
    return isinstance(part, list | tuple) and any(_refers_to(item, ref) for item in part)


# --- what providers know ----------------------------------------------------------------------------------------------
_BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "format",
    "minItems", "maxItems", "uniqueItems", "contentEncoding", "examples",
)  # fmt: skip
"""What a schema may say that not all of them know: it goes into the description, and is checked here."""


class _Inexpressible(ValueError):
    """A schema has a part that providers cannot hold their model to."""


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """`schema` in the part of JSON schema that all providers know: each object names all its members, requires them and has no
    others. None if it cannot be written so: it has dicts of any names, values of any type, tuples, or refers to itself."""
    definitions = schema.get("$defs", {})
    try:
        if _is_recursive(definitions):
            return None
        found = _strict({key: value for key, value in schema.items() if key != "$defs"})
        return {**found, "$defs": {name: _strict(one) for name, one in definitions.items()}} if definitions else found
    except _Inexpressible:
        return None


def _strict(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise _Inexpressible
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    told = [str(schema["description"])] if schema.get("description") else []
    bounds = ", ".join(f"{name}: {schema[name]}" for name in _BOUNDS if name in schema)
    if bounds:
        told.append(f"({bounds})")
    found: dict[str, Any] = {"description": " ".join(told)} if told else {}
    if (choices := schema.get("anyOf", schema.get("oneOf"))) is not None:
        return {**found, "anyOf": [_strict(one) for one in choices]}
    for name in ("type", "enum", "const"):
        if name in schema:
            found[name] = schema[name]
    match schema.get("type"):
        case "object":
            members = schema.get("properties")
            if not isinstance(members, Mapping) or schema.get("additionalProperties"):
                raise _Inexpressible
            found["properties"] = {name: _strict(one) for name, one in members.items()}
            found["required"] = list(members)
            found["additionalProperties"] = False
        case "array":
            if "prefixItems" in schema or "items" not in schema:
                raise _Inexpressible
            found["items"] = _strict(schema["items"])
        case None if "enum" not in schema and "const" not in schema:
            raise _Inexpressible
    return found


def _is_recursive(definitions: Mapping[str, Any]) -> bool:
    """Whether a definition is part of itself."""
    edges = {name: _references(one) for name, one in definitions.items()}
    waiting, done = dict(edges), set[str]()
    while waiting:  # those that need nothing which is not done are done
        ready = [name for name, needs in waiting.items() if needs <= done | (needs - edges.keys())]
        if not ready:
            return True
        for name in ready:
            done.add(name)
            del waiting[name]
    return False


def _references(part: Any) -> set[str]:
    if isinstance(part, Mapping):
        own = {str(part["$ref"]).rpartition("/")[2]} if "$ref" in part else set()
        return own.union(*(_references(item) for item in part.values()))
    return set().union(*map(_references, part)) if isinstance(part, list | tuple) else set()
