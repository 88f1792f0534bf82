"""The input of a tool: a schema for the model, and a check of what the model then gives.

Both come from the type hints, through msgspec; the descriptions come from the docstring (Google, NumPy or reST style).
"""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agentmesh.errors import BadRequest, InvalidAgent
from agentmesh.identity import Party


class ToolCall(msgspec.Struct, frozen=True):
    """The call that a tool runs for. A tool that has a parameter of this type is given it; the model does not see it."""

    id: str
    key: str
    """The same for every try of this call, and shared by no other call of any agent: an idempotency key."""
    agent: str
    ref: str
    chain: tuple[Party, ...] = ()
    """On whose behalf the turn runs that makes the call, as `self.request.chain` has it: the oldest first. It begins with a user
    where the server has told one, else with `unverified`; empty in a turn that the agent gives itself."""

    @property
    def caller(self) -> Party | None:
        """The first of the chain: whom all this is for."""
        return self.chain[0] if self.chain else None


class Signature(msgspec.Struct, frozen=True):
    """The input of a function that is a tool."""

    schema: dict[str, Any]
    """JSON schema, an object without references to outside."""
    description: str
    """The docstring, without its section on arguments."""
    type: type[msgspec.Struct]
    call: str | None = None
    """The parameter that gets the `ToolCall`, if there is one."""

    def arguments(self, given: Any) -> dict[str, Any]:
        """The function's arguments from what the model gave.

        Raises:
            BadRequest: it does not fit; the message names the place.
        """
        try:
            value = msgspec.convert(given, self.type)
        except msgspec.ValidationError as error:
            raise BadRequest(str(error)) from None
        return {name: getattr(value, name) for name in self.type.__struct_fields__}


def signature_of(function: Callable[..., Any], name: str) -> Signature:
    """The signature of `function`, whose `self` is bound already.

    Raises:
        InvalidAgent: a parameter has no type, or a type that JSON cannot express; or the package for docstrings is missing.
    """
    hints = _hints(function, name)
    summary, described = _documented(function, name)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    call: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidAgent(f"the tool {name}: {parameter} cannot be a tool's parameter; give each a name and a type")
        if parameter.name not in hints:
            raise InvalidAgent(f"the tool {name}: give the parameter {parameter.name} a type")
        hint = hints[parameter.name]
        if hint is ToolCall:
            call = parameter.name
            continue
        told = described.get(parameter.name)
        annotated = Annotated[hint, msgspec.Meta(description=told)] if told else hint
        default = parameter.default
        if default is parameter.empty:
            fields.append((parameter.name, annotated))
        else:
            fields.append((parameter.name, annotated, _default(default)))
    try:
        made = msgspec.defstruct(f"{name}_input".replace("-", "_"), fields, kw_only=True, forbid_unknown_fields=True)
        schema = _schema(made)
    except (TypeError, ValueError) as error:
        raise InvalidAgent(f"the tool {name}: its parameters cannot be described: {error}") from None
    return Signature(schema, summary, made, call)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError) as error:
        raise InvalidAgent(f"the tool {name}: its type hints cannot be read: {error}") from None


def _documented(function: Callable[..., Any], name: str) -> tuple[str, dict[str, str]]:
    """The docstring's text, and what it says of each parameter."""
    text = inspect.getdoc(function)
    if not text:
        return "", {}
    try:
        import docstring_parser  # noqa: PLC0415 - an extra
    except ImportError:
        raise InvalidAgent(f"the tool {name}: docstrings are read by an extra; install agentmesh[tools]") from None
    parsed = docstring_parser.parse(text)
    parts = (parsed.short_description, parsed.long_description, _returns(parsed))
    described = {p.arg_name: p.description for p in parsed.params if p.description}
    return "\n\n".join(part for part in parts if part), described


def _returns(parsed: Any) -> str | None:
    told = parsed.returns.description if parsed.returns is not None else None
    return f"Returns: {told}" if told else None


def _default(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return msgspec.field(default_factory=lambda: copy.deepcopy(value))


def _schema(made: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of `made` with the object itself at the top, as model APIs want it."""
    (top,), components = msgspec.json.schema_components([made], ref_template="#/$defs/{name}")
    name = top["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = dict(components.pop(name))
    schema.pop("title", None)
    return {**schema, "$defs": components} if components else schema
