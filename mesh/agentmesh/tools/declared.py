"""How an agent says which tools its model has.

Each tool says what may be done with a call that was in flight when its node died (`effect`):

- `pure`: it changes nothing. It may run again.
- `idempotent`: running it again under the same key changes nothing more. It may run again; `ToolCall.key` is that key.
- `once` (the default): it is never called again blindly. After a takeover `reconcile(key)` is asked what became of the call; if
  there is no such function, or it cannot tell, the model is told that the outcome is unknown.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, overload
from weakref import WeakKeyDictionary

import msgspec

from agentmesh import names
from agentmesh.errors import BadRequest, InvalidAgent
from agentmesh.structured import AnswerType, UnusableType
from agentmesh.tools.signature import Signature, ToolCall, signature_of

__all__ = [
    "AgentTool",
    "Done",
    "FunctionTool",
    "McpHttp",
    "McpStdio",
    "NotDone",
    "ToolCall",
    "ToolEffect",
    "ToolError",
    "ToolSpec",
    "agent_tool",
    "declared",
    "tool",
]

type ToolEffect = Literal["pure", "idempotent", "once"]
EFFECTS: frozenset[str] = frozenset(get_args(ToolEffect.__value__))
DEFAULT_TIMEOUT_S = 60.0
AGENT_TIMEOUT_S = 600.0
_POLICY = "__agentmesh_tool__"
_SIGNATURES: WeakKeyDictionary[Any, dict[str, Signature]] = WeakKeyDictionary()
"""Of functions that are tools, by the names that they have as such."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The names of tools that model APIs accept."""


class ToolError(Exception):
    """Raised by a tool: the call has failed, and the model sees only this message."""


class Done(msgspec.Struct, frozen=True):
    """From `reconcile`: the call took effect, and this is its result."""

    result: Any = None


class NotDone(msgspec.Struct, frozen=True):
    """From `reconcile`: the call certainly took no effect, and never will; it may be made."""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model sees it."""

    name: str
    description: str
    schema: dict[str, Any]
    """JSON schema of its input, an object."""


class _Policy(msgspec.Struct, frozen=True):
    effect: ToolEffect = "once"
    timeout_s: float = DEFAULT_TIMEOUT_S
    reconcile: Callable[..., Any] | None = None
    name: str | None = None
    description: str | None = None


class FunctionTool(msgspec.Struct, frozen=True):
    """A function that a model may call."""

    spec: ToolSpec
    function: Callable[..., Any]
    """Bound to the agent, if it is one of its methods."""
    signature: Signature
    effect: ToolEffect
    timeout_s: float
    reconcile: Callable[..., Any] | None


class AgentTool(msgspec.Struct, frozen=True):
    """Another agent, asked durably: after a takeover the same question is not sent twice, and its answer is not lost."""

    agent: str
    spec: ToolSpec
    timeout_s: float
    budget: dict[str, float] | None = None
    answer_type: AnswerType[Any] | None = None
    """What its answer must be; None: any text."""


class _Mcp(msgspec.Struct, frozen=True, kw_only=True):
    """What the declarations of MCP servers share."""

    name: str
    """Its tools are called `<name>__<tool>` before the model."""
    only: tuple[str, ...] | None = None
    """The tools that the model may see, by the server's own names; all where it is None."""
    effects: Mapping[str, ToolEffect] = {}
    """Effects by the server's own names of the tools. For a tool that is not listed the server's hints count (`readOnlyHint` is
    `pure`, `idempotentHint` is `idempotent`); without hints it is `once`."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    optional: bool = False
    """Whether a turn goes on while the server cannot be used. Its absence is told to the model and to the operators."""
    max_pages: int = 100
    """Most pages of its list of tools that are read. Beyond this and the next two bounds the server cannot be used."""
    max_tools: int = 1000
    """Most tools that it may have, or most of those in `only`."""
    max_list_bytes: int = 4 << 20
    """Most bytes of all names, descriptions and schemas together."""

    def __post_init__(self) -> None:
        _tool_name(self.name)
        for name, effect in self.effects.items():
            _effect(effect, f"{self.name}: the tool {name}")
        _timeout(self.timeout_s, self.name)
        for bound in ("max_pages", "max_tools", "max_list_bytes"):
            if getattr(self, bound) < 1:
                raise InvalidAgent(f"{self.name}: {bound} is 1 or more, not {getattr(self, bound)!r}")


class McpStdio(_Mcp, frozen=True, kw_only=True):
    """An MCP server in a child process. It gets PATH and the like from the node's environment, and variables named here."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    """Variables as they are. No secrets here: name those in `env_from`."""
    env_from: tuple[str, ...] = ()
    """Variables that are handed on from the node's environment."""
    cwd: str | None = None
    shared: bool = False
    """Whether all agents of a node that declare the server alike use one child: it keeps nothing that is one agent's alone."""


class McpHttp(_Mcp, frozen=True, kw_only=True):
    """An MCP server behind a URL (streamable HTTP)."""

    url: str
    headers_from_env: Mapping[str, str] = {}
    """Header names, and the variables of the node's environment that hold their values."""


type Declared = FunctionTool | AgentTool | McpStdio | McpHttp


@overload
def tool[F: Callable[..., Any]](function: F, /) -> F: ...


@overload
def tool[F: Callable[..., Any]](
    *,
    effect: ToolEffect = "once",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    reconcile: Callable[..., Any] | None = None,
    name: str | None = None,
    description: str | None = None,
) -> Callable[[F], F]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    effect: ToolEffect = "once",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    reconcile: Callable[..., Any] | None = None,
    name: str | None = None,
    description: str | None = None,
) -> Callable[..., Any]:
    """Say how a function is to be run as a tool. The function stays as it is; list it in the class's `tools`.

    Args:
        function: set if the decorator is used without arguments: a `once` tool with all defaults, as an undecorated one.
        effect: what may be done with a call that was in flight when its node died; see the module.
        timeout_s: longest run, in seconds; then it is cancelled, and the model gets an error result.
        reconcile: for `once` only: a function, `async` or plain, of the call's key, that returns `Done(result)`, `NotDone()`, or
            None when it cannot tell. May be a method of the agent if the tool is one.
        name: how the model calls it; the function's name unless given.
        description: what the model is told; the docstring unless given.

    Raises:
        InvalidAgent: an argument makes no sense.
    """
    if reconcile is not None and effect != "once":
        raise InvalidAgent(f"a tool with the effect {effect!r} may run again: only one with 'once' has a use for reconcile")
    _effect(effect, "a tool")
    _timeout(timeout_s, name or "a tool")
    policy = _Policy(effect, timeout_s, reconcile, name, description)

    def mark[F: Callable[..., Any]](function: F) -> F:
        setattr(function, _POLICY, policy)
        return function

    if function is None:
        return mark
    if not callable(function):
        raise InvalidAgent(f"@tool decorates a function; its settings have names, as in @tool(effect={function!r})")
    return mark(function)


def agent_tool(
    agent: str,
    *,
    timeout_s: float = AGENT_TIMEOUT_S,
    description: str | None = None,
    name: str | None = None,
    budget: dict[str, float] | None = None,
    answer_type: type[Any] | None = None,
) -> AgentTool:
    """Another agent as a tool: the model gives it a prompt and gets its answer.

    Args:
        agent: the agent's name in the mesh.
        timeout_s: longest wait for its answer, in seconds.
        description: what the model is told about it.
        name: how the model calls it; `ask_<agent>` unless given.
        budget: bounds of what the other agent may spend on one question.
        answer_type: the type of its answers (agentmesh.structured): the model gets JSON of a value that fits, or an error.

    Raises:
        InvalidAgent: no agent or tool can have that name, or that type cannot be one of an answer.
    """
    try:
        names.agent_name(agent)
    except BadRequest as error:
        raise InvalidAgent(f"agent_tool: {error.message}") from None
    _timeout(timeout_s, agent)
    called = _tool_name(name or f"ask_{agent}".replace(".", "_")[:64])
    try:
        typed = None if answer_type is None else AnswerType(answer_type)
    except UnusableType as error:
        raise InvalidAgent(f"agent_tool: {error}") from None
    form = "text" if typed is None else f"JSON, a {typed.name}"
    told = description or f"Ask the agent {agent}. It answers in {form}; it knows nothing of this conversation."
    prompt = {"type": "string", "description": "The whole question, with all that is needed to answer it."}
    schema = {"type": "object", "properties": {"prompt": prompt}, "required": ["prompt"], "additionalProperties": False}
    return AgentTool(agent, ToolSpec(called, told, schema), timeout_s, budget, typed)


def declared(agent: Any) -> tuple[Declared, ...]:
    """The tools that an agent's class lists in `tools`; functions that are methods are bound to `agent`.

    Raises:
        InvalidAgent: something in it is no tool, or two have one name.
    """
    listed: Sequence[Any] = getattr(type(agent), "tools", ())
    if not isinstance(listed, Sequence):
        raise InvalidAgent(f"{type(agent).__name__}.tools is no tuple: {listed!r}; one tool alone needs a comma: tools = (it,)")
    found = tuple(_declared(item, agent) for item in listed)
    seen: set[str] = set()
    for item in found:
        name = item.name if isinstance(item, _Mcp) else item.spec.name
        if name in seen:
            raise InvalidAgent(f"{type(agent).__name__}: two of its tools are called {name!r}; give one another name")
        seen.add(name)
    return found


def outlasting(cls: Any) -> list[str]:
    """The tools of a class that may take longer than its watchdog: their time-outs are cut, so that the model is told."""
    watchdog_s, found = cls.watchdog_s, []
    for item in getattr(cls, "tools", ()):
        policy = item if isinstance(item, AgentTool | McpStdio | McpHttp) else getattr(item, _POLICY, _Policy())
        if policy.timeout_s > watchdog_s:
            name = (
                item.spec.name if isinstance(item, AgentTool) else getattr(item, "name", None) or getattr(item, "__name__", "?")
            )
            found.append(f"{name} ({policy.timeout_s:g} s)")
    return found


def _declared(item: Any, agent: Any) -> Declared:
    if isinstance(item, AgentTool | McpStdio | McpHttp):
        return item
    if not callable(item):
        raise InvalidAgent(f"{type(agent).__name__}.tools: {item!r} is no function, agent_tool, McpStdio or McpHttp")
    policy: _Policy = getattr(item, _POLICY, _Policy())
    method = _is_method(item)
    function = item.__get__(agent) if method else item
    reconcile = policy.reconcile
    if reconcile is not None and _is_method(reconcile):
        reconcile = reconcile.__get__(agent)
    name = _tool_name(policy.name or str(getattr(item, "__name__", "")))
    signature = _signature(item, function, name)
    spec = ToolSpec(name, policy.description or signature.description, signature.schema)
    return FunctionTool(spec, function, signature, policy.effect, policy.timeout_s, reconcile)


def _signature(item: Any, function: Any, name: str) -> Signature:
    """That of `item`, which `function` is for one agent. It is the same for all agents of a class, and takes a while to find."""
    try:
        known = _SIGNATURES.setdefault(item, {})
    except TypeError:  # a callable that has no hash, or cannot be referred to weakly
        return signature_of(function, name)
    found = known.get(name)
    if found is None:
        found = known[name] = signature_of(function, name)
    return found


def _is_method(function: Any) -> bool:
    """Whether this is a function of a class body that is not bound yet."""
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "self"


def _tool_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidAgent(f"a tool cannot be called {name!r}: 1 to 64 letters, digits, '_' or '-'; give it a name")
    return name


def _effect(effect: str, whose: str) -> None:
    if effect not in EFFECTS:
        raise InvalidAgent(f"{whose}: the effect is 'pure', 'idempotent' or 'once', not {effect!r}")


def _timeout(timeout_s: float, whose: str) -> None:
    if not 0 < timeout_s <= 86_400:
        raise InvalidAgent(f"{whose}: timeout_s is a number of seconds, up to a day, not {timeout_s!r}")
