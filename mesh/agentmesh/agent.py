"""The Agent behaviour: what a user writes.

    class Coder(Agent[State]):
        async def init_agent(self, options):
            return Init(State())

        async def handle_response(self, ref, response, state):
            return Idle(state)

An agent owns the meaning of its turns; the mesh owns their mechanics. Callbacks may be plain functions too: those run in a
worker thread. The state is a msgspec Struct, a dataclass, a TypedDict or a dict; it is encoded when the turn commits.
What a callback asks for through its context (`self.tell`, `self.start_agent`, ...) becomes effects of the record being built,
and happens only if that record commits. docs/agent.md is the reference.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Awaitable
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import msgspec

from agentmesh import callback_context
from agentmesh.backend import Backend, Event, Response
from agentmesh.errors import InvalidAgent, MeshError
from agentmesh.registry_values import Restart
from agentmesh.wire import ErrorBody, Outcome

S = TypeVar("S")
type Later[T] = T | Awaitable[T]
"""The result of a callback that may be `async` or plain."""


# --- what callbacks return ----------------------------------------------------------------------------------------
class Init(msgspec.Struct, Generic[S], frozen=True):
    """From `init_agent`: the first state, and options for the backend (JSON, journaled: no secrets)."""

    state: S
    backend: dict[str, Any] = {}


class Idle(msgspec.Struct, Generic[S], frozen=True):
    """Wait for the next prompt or event."""

    state: S


class Prompt(msgspec.Struct, Generic[S], frozen=True):
    """Run another turn.

    From `handle_response`: next after this one. From `handle_error`: a retry, for the same caller. From `handle_event`: at
    the mailbox's tail.
    """

    text: str
    state: S
    label: str | None = None


class Halt(msgspec.Struct, Generic[S], frozen=True):
    """Dispatch nothing further until `resume`."""

    state: S


class Defer(msgspec.Struct, Generic[S], frozen=True):
    """Keep the request open until `self.reply(ref, ...)`, or until it is closed from outside (`Closed`).

    With `exclusive`, further prompts wait until then; while one such request is open, another one is a `bad_return`.
    """

    state: S
    exclusive: bool = False


class Proceed(msgspec.Struct, Generic[S], frozen=True):
    """From `pre_turn`: run the prompt, rewritten or not."""

    prompt: str
    state: S


class Skip(msgspec.Struct, Generic[S], frozen=True):
    """From `pre_turn`: answer `pre_turn_skipped` and go on with the next."""

    state: S


# --- what arrives in handle_event ---------------------------------------------------------------------------------
class Answer(msgspec.Struct, frozen=True):
    """The outcome of a `self.tell(..., tag=...)`, once."""

    tag: str
    agent: str
    outcome: Outcome


class Undelivered(msgspec.Struct, frozen=True):
    """An effect that could not be performed. `effect` says which: `{"kind", "target", "tag"?, ...}`."""

    effect: dict[str, Any]
    error: ErrorBody


class Closed(msgspec.Struct, frozen=True):
    """A request that this agent had deferred was ended from outside. Its caller has the outcome, and a `self.reply` to it does
    nothing."""

    ref: str
    how: Literal["replied", "cancelled", "expired", "withdrawn", "interrupted"]
    """`replied` and `cancelled`: by a control request; `expired`: its deadline or `defer_s` has passed; `withdrawn`: who asked it
    has no use for an answer any more; `interrupted`: its turn was, behind the decision to defer."""


class Timer(msgspec.Struct, frozen=True):
    """A timer that fired. `due` is seconds since the epoch; `missed` counts ticks merged into this one."""

    id: str
    event: Any
    due: float
    missed: int = 0


class Agent(Generic[S]):
    """Base of all agents. Two callbacks are required: `init_agent` and `handle_response`.

    Attributes of `self` are a cache of this process, never state: another process may run the next turn.
    """

    backend: ClassVar[str | type[Backend] | None] = None
    """The backend, unless the spec names one: its entry-point name, or a class of one's own, which takes the agent and the
    options (agentmesh.backend.Backend)."""
    answer_type: ClassVar[type[Any] | None] = None
    """The type of its answers: a msgspec Struct, a dataclass or a TypedDict. Its model is asked for JSON that fits, and told once
    if what it answers does not; `response.answer` is the value (docs/agent.md#typed-answers)."""
    script: ClassVar[Any] = None
    """For the scripted backend: a function of the prompt, or a list used in order."""
    tools: ClassVar[tuple[Any, ...]] = ()
    """What its model may call: functions, `agent_tool(...)`, MCP servers (agentmesh.tools)."""
    watchdog_s: ClassVar[float] = 600.0
    """Longest turn, in seconds, unless the spec says otherwise."""
    defer_s: ClassVar[float | None] = None
    """How long a deferred request stays open at most, in seconds: then its caller gets `expired`. None: an exclusive one for
    seven days, another one until it is answered."""
    max_attempts: ClassVar[int] = 3
    """Crashes that one input may cause before it becomes a dead letter."""
    max_takeovers: ClassVar[int] = 5
    """Deaths of its node that one input may outlive before it becomes a dead letter."""
    state_version: ClassVar[int] = 1
    """Raise it when State changes incompatibly, and define `migrate_state(self, old, version)`, async or plain: it is given the
    stored state as JSON data and the version of the class that wrote it, and returns a State. It runs when the versions differ,
    and when the stored state does not fit; without it, a state that fits is taken as it is."""
    restart: ClassVar[Restart | None] = None
    """Restart policy, unless the spec has one."""

    callers: ClassVar[Any] = None
    """Who may ask it: a list of patterns, as `["shop", "user:team-a.*", "agent:team-a.*", "account:TEAM_A"]`, or a function of
    the request that says True for those that may; None: everybody. A name without a prefix is that of a user on whose behalf the
    request is made, or of the agent that sends it. Others get `not_permitted` before a turn begins. The function runs on the
    event loop: it must be quick and do nothing else (docs/security.md#on-whose-behalf)."""

    # --- callbacks ------------------------------------------------------------------------------------------------
    # Each may be `async` or plain in a subclass, and its signature allows for both.
    def init_agent(self, options: dict[str, Any]) -> Later[Init[S] | Exception]:
        """Make the first state. Runs once in a life."""
        raise NotImplementedError(f"{type(self).__name__} must define init_agent")

    def handle_response(self, ref: str, response: Response, state: S) -> Later[Idle[S] | Prompt[S] | Halt[S] | Defer[S]]:
        """Decide after a successful turn."""
        raise NotImplementedError(f"{type(self).__name__} must define handle_response")

    def handle_error(self, ref: str, error: MeshError, state: S) -> Later[Idle[S] | Prompt[S] | Halt[S]]:
        """Decide after a failed turn."""
        return Idle(state)

    def handle_event(self, event: Any, state: S) -> Later[Idle[S] | Prompt[S] | Halt[S]]:
        """Handle what comes from outside: JSON values, Answer, Undelivered, Timer, Closed."""
        return Idle(state)

    def handle_stream_event(self, event: Event, state: S) -> Later[S]:
        """See each event of a turn as it comes. Runs on the event loop, in the prompt task: keep it quick. May be async."""
        return state

    def terminate_agent(self, reason: MeshError, state: S) -> Later[None]:
        """Tidy up when the agent stops or crashes."""

    def activate_agent(self, state: S) -> Later[None]:
        """Open local resources; runs each time a process takes the agent up."""

    def pre_run(self, state: S) -> Later[S | Exception]:
        """Prepare before the first turn; runs once, after `init_agent`."""
        return state

    def pre_turn(self, prompt: str, state: S) -> Later[Proceed[S] | Skip[S] | Halt[S]]:
        """Inspect, rewrite or refuse each prompt."""
        return Proceed(prompt, state)

    def post_turn(self, outcome: Outcome, ref: str, state: S) -> Later[S]:
        """Called after each turn's decision, on success and on failure."""
        return state

    def post_run(self, state: S) -> Later[None]:
        """Called once per halt."""

    # --- facts ----------------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """The agent's name."""
        return cast("str", self.__dict__.get("_name", ""))

    @property
    def request(self) -> callback_context.Request:
        """The prompt being handled: ref, label, sender, metadata, attachments, caller, chain.

        Raises:
            NotInCallback: no prompt is being handled.
        """
        return callback_context.current().request_or_raise()

    @property
    def sender(self) -> str | None:
        """The agent that sent the event being handled; None for the world outside."""
        return callback_context.current().sender

    # --- the context of a callback ------------------------------------------------------------------------------------
    def tell(
        self,
        target: str,
        prompt: str,
        *,
        tag: str | None = None,
        metadata: dict[str, Any] | None = None,
        detached: bool = False,
    ) -> None:
        """Send a prompt to another agent. With `tag`, its outcome comes back once as `Answer(tag, agent, outcome)`.

        It is sent on behalf of the request that is being handled: if that one is kept open, and ends later in any way but its
        answer, this is withdrawn. With `detached` it is not.
        """
        callback_context.current().tell(target, prompt, tag, metadata, detached=detached)

    def notify(self, target: str, event: Any) -> None:
        """Send an event to another agent."""
        callback_context.current().notify(target, event)

    def reply(self, ref: str, text: str | None = None, *, answer: Any = None, error: MeshError | str | None = None) -> None:
        """Answer a deferred request: with `text`, with a value of the agent's `answer_type`, or with an error. The first reply to
        a ref wins."""
        callback_context.current().reply(ref, text, error, answer)

    def start_agent(
        self,
        name: str,
        *,
        kind: str,
        backend: str | None = None,
        options: dict[str, Any] | None = None,
        labels: dict[str, str] | None = None,
        restart: Restart | None = None,
        watchdog_s: float | None = None,
        if_exists: Literal["error", "use"] = "error",
        link: bool = False,
    ) -> None:
        """Start an agent. A taken name comes back as `Undelivered`, unless `if_exists="use"`; with `link` it ends with this."""
        callback_context.current().start_agent(
            name, kind=kind, backend=backend, options=options or {}, labels=labels or {}, restart=restart,
            watchdog_s=watchdog_s, if_exists=if_exists, link=link,
        )  # fmt: skip

    def stop_agent(self, name: str) -> None:
        """Stop another agent."""
        callback_context.current().stop_agent(name)

    def notify_after(self, seconds: float, event: Any, *, id: str | None = None, every: float | None = None) -> str:
        """Get `event` as a `Timer` after `seconds`, then every `every` seconds. Returns the timer's id."""
        return callback_context.current().timer(event, after=seconds, at=None, timer_id=id, every=every)

    def notify_at(self, time: float, event: Any, *, id: str | None = None, every: float | None = None) -> str:
        """Get `event` as a `Timer` at `time` (seconds since the epoch). Returns the timer's id."""
        return callback_context.current().timer(event, after=None, at=time, timer_id=id, every=every)

    def cancel_timer(self, id: str) -> None:
        """Cancel a timer. Not delivered either if it has fired and was not handled yet."""
        callback_context.current().cancel_timer(id)


REQUIRED = ("init_agent", "handle_response")
"""The callbacks that every agent defines."""
HOOKS = (
    "handle_error", "handle_event", "handle_stream_event", "terminate_agent", "activate_agent",
    "pre_run", "pre_turn", "post_turn", "post_run",
)  # fmt: skip
"""The optional callbacks."""


def overridden(cls: type[Agent[Any]]) -> frozenset[str]:
    """The optional callbacks that `cls` defines itself: the others need not be called."""
    return frozenset(name for name in HOOKS if getattr(cls, name) is not getattr(Agent, name))


def plain_callbacks(cls: type[Agent[Any]]) -> frozenset[str]:
    """The callbacks of `cls` that are plain functions."""
    names = ("init_agent", "handle_response", *overridden(cls))
    return frozenset(name for name in names if not inspect.iscoroutinefunction(getattr(cls, name)))


def lacking(cls: type[Agent[Any]]) -> tuple[str, ...]:
    """The required callbacks that `cls` does not define, nor inherits from what does."""
    return tuple(
        name
        for name in REQUIRED
        if (found := getattr(cls, name)) is getattr(Agent, name) or getattr(found, "__isabstractmethod__", False)
    )


def is_base(cls: type[Agent[Any]]) -> bool:
    """Whether `cls` is there only to be derived from: it is abstract, or others complete what it lacks."""
    return inspect.isabstract(cls) or (bool(lacking(cls)) and bool(cls.__subclasses__()))


def state_type(cls: type[Agent[Any]]) -> Any:
    """The State of `class X(Agent[State])`, also through generic bases; Any if none is given.

    Raises:
        InvalidAgent: State is written as a string that names nothing in the class's module.
    """
    argument = _state_argument(cls)
    if isinstance(argument, typing.ForwardRef):
        name = argument.__forward_arg__
        try:
            return vars(sys.modules[cls.__module__])[name]
        except KeyError:
            raise InvalidAgent(f"{cls.__name__}: there is no {name!r} in {cls.__module__} to be its State") from None
    return Any if isinstance(argument, TypeVar) or argument is None else argument


def _state_argument(cls: type) -> Any:
    """What stands for `S` in the nearest base of `cls` that is an agent."""
    for base in types.get_original_bases(cls):
        origin = typing.get_origin(base) or base
        given = typing.get_args(base)
        if origin is Agent:
            return given[0] if given else None
        if not (isinstance(origin, type) and issubclass(origin, Agent)):
            continue
        argument = _state_argument(origin)
        names: tuple[Any, ...] = getattr(origin, "__parameters__", ())
        return given[names.index(argument)] if given and argument in names else argument
    return None


def agents_in(namespace: dict[str, Any]) -> dict[str, type[Agent[Any]]]:
    """The agent classes defined in a module's namespace, by kind (the class's name)."""
    return {
        value.__name__: value
        for value in namespace.values()
        if isinstance(value, type)
        and issubclass(value, Agent)
        and value is not Agent
        and value.__module__ == namespace.get("__name__")
        and not value.__name__.startswith("_")
    }
