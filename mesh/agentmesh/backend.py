"""The backend contract: how a prompt becomes a stream of events.

A backend turns (session, prompt) into events ending in exactly one `result` or `error`. Its session is a JSON value: it
travels in the agent's journal, so that another node can go on with it. The shape is that of GenAgent's backends.

The order of calls, per agent: `start_session` once in a life; `resume_session` each time a process takes the agent up
(after a start, a takeover, a wake); `prompt` once a turn; `update_session` after a turn that ended in `result`;
`terminate_session` at the end of the life. Third parties register a factory under the entry-point group
`agentmesh.backends`; the factory is called with the agent instance and the backend options, and where it has a parameter of
that name also with `room=`, the `Room` that the node gives it.

A backend that holds connections or child processes may define `async release()`: it is called when the agent sleeps, moves,
crashes or ends in this process, perhaps more than once. The session stays as it is; `prompt` may come again.
`agentmesh.testing.BackendConformance` checks all of this against any backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Generic, Literal, NamedTuple, Protocol

import msgspec

from agentmesh.budget import Prices
from agentmesh.identity import Party
from agentmesh.steps import Allowance, Calls, Steps, UnjournaledSteps, Unlimited, Unmoved
from agentmesh.structured import A, AnswerType

type EventKind = Literal["text", "thinking", "tool_use", "tool_result", "usage", "result", "error"]


class Event(msgspec.Struct, frozen=True):
    """One normalised event of a turn.

    `data` by kind: text `{"text","restart"?,"retry"?}` (with `restart` the model's answer begins anew: what came since the last
    usage or tool_result is void; `retry` `{"reason","attempt"?,"after_s"?}` says that the model is asked again, and why) ·
    thinking `{"text"}` · tool_use `{"id","name","input"}` · tool_result `{"id","ok","text","error"?}` · usage
    `{"input_tokens","output_tokens","cache_read_input_tokens"?,"cache_write_input_tokens"?,"model"?}`, of the turn so far, cached
    tokens not among the input · result `{"text"?,"session_id"?}` · error `{"reason","message"?,"retryable"?,"retry_after_s"?}`.
    """

    kind: EventKind
    data: dict[str, Any] = {}
    replayed: bool = False
    """It comes from a step that an earlier owner took: `handle_stream_event` sees it again, live readers do not."""

    @property
    def terminal(self) -> bool:
        """Whether this event ends its stream."""
        return self.kind in ("result", "error")

    @staticmethod
    def text(text: str) -> Event:
        return Event("text", {"text": text})

    @staticmethod
    def result(text: str | None = None, **data: Any) -> Event:
        return Event("result", data if text is None else {"text": text, **data})

    @staticmethod
    def error(reason: str = "unknown", **data: Any) -> Event:
        return Event("error", {"reason": reason, **data})

    @staticmethod
    def usage(**tokens: int) -> Event:
        return Event("usage", dict(tokens))


class Response(msgspec.Struct, Generic[A], frozen=True):
    """What a successful turn gave.

    `text` is the result event's, else the concatenated text deltas; `usage` the last usage event's data, or None;
    `duration_ms` runs from dispatch to the terminal event. `Response[Plan]` is that of an agent with `answer_type = Plan`.
    """

    text: str
    events: tuple[Event, ...] = ()
    usage: dict[str, Any] | None = None
    session_id: str | None = None
    duration_ms: int = 0
    answer: A = None  # type: ignore[assignment]  # without an answer_type there is none
    """The answer as a value of the agent's `answer_type`, whose JSON `text` is then; None without such a type."""

    @staticmethod
    def of(events: list[Event], duration_ms: int, session_id: str | None) -> Response[Any]:
        """The response that `events`, which end in `result`, make up."""
        text = events[-1].data.get("text") if events else None
        if text is None:
            text = _said(events)
        usages = [e.data for e in events if e.kind == "usage"]
        return Response(text, tuple(events), usages[-1] if usages else None, session_id, duration_ms)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What an earlier turn did that ended without its answer, and that the session does not have."""

    name: str
    """Its `Steps.key`."""
    number: int
    prompt: str
    """What it was asked."""
    attachments: tuple[Any, ...] = ()
    steps: tuple[Any, ...] = ()
    """Its steps, oldest first; none where only the note is left."""
    note: str | None = None
    """What its tools did, in a text of at most 4 kB; None if it ran none."""
    shown: Literal["whole", "note", "not", "told"] = "whole"
    """How to show it to the model: as exchanges, by its note, not at all, or not again (`told`: the session has it)."""
    retried: bool = False
    """This turn tries its request again: a call of that one that has no result is the same call in this one, under its key. So is
    one that has a result of which this turn's model is not told."""


def _said(events: list[Event]) -> str:
    """The text of a turn, without that of answers that broke off and were asked for again."""
    kept: list[str] = []
    whole = 0
    for event in events:
        if event.kind in ("usage", "tool_result"):
            whole = len(kept)
        elif event.kind == "text":
            if event.data.get("restart"):
                del kept[whole:]
            kept.append(event.data.get("text", ""))
    return "".join(kept)


class Turn(msgspec.Struct, frozen=True):
    """What a backend may know about the turn that it runs."""

    agent: str
    ref: str
    number: int
    metadata: dict[str, Any] = {}
    attachments: tuple[Any, ...] = ()
    steps: Steps = msgspec.field(default_factory=UnjournaledSteps)
    """The steps of this turn that are durable already, and the way to make more."""
    allowance: Allowance = msgspec.field(default_factory=Unlimited)
    """What it may still spend."""
    report_absence: Callable[[str, str], None] = lambda server, reason: None
    """Tells the operators that a server of tools which may be absent is, and why."""
    kept: tuple[Kept, ...] = ()
    """What earlier turns did that ended without their answers, oldest first. Once a turn has its answer, or fails and leaves
    another session behind, the session is taken to hold all of it."""
    calls: Calls = msgspec.field(default_factory=Unmoved)
    """Tells the mesh which calls are open: between them the turn may go on on another node."""
    chain: tuple[Party, ...] = ()
    """On whose behalf it runs, as `self.request.chain` has it."""
    answer_type: AnswerType[Any] | None = None
    """The type of the answer, where the agent declares one: ask the model for it in whatever way there is. What the model answers
    is checked by the mesh."""
    committed: Any = None
    """The session that the journal has, in a second prompt of one turn, which goes on behind the session that the first one left:
    what belongs to both must stay."""


class Room(msgspec.Struct, frozen=True):
    """What a node offers a backend besides the agent and its options: a directory for files that may be lost, and the mesh for
    data that must follow the agent to another node."""

    agent: str
    incarnation: str
    """Tells this life of the agent from others under its name."""
    directory: str
    """An absolute path on this machine, for this agent alone; the backend makes the directory if it needs it. Files there may be
    gone the next time: another node has another directory."""
    root: str = "mesh"
    """The mesh's root token."""
    transport: Any = None
    """The node's connection, an `agentmesh.edge.transport.Transport`; None outside a mesh."""
    place: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
    """A slot for a child process of a turn, held while it runs. Entering waits while the node runs as many as it allows this
    backend."""
    prices: Prices = msgspec.field(default_factory=Prices)
    """The node's table of prices."""


class Stream(NamedTuple):
    """A turn under way: its events, and the session as it stands even if the turn fails."""

    events: AsyncIterator[Event]
    session: Any


BACKEND_METHODS = ("start_session", "resume_session", "prompt", "update_session", "terminate_session")


class Backend(Protocol):
    """A model, or a stand-in for one. Methods raise `agentmesh.errors.BackendError` for what they refuse.

    A class may have a tuple `imports`, the names of modules that it imports only when it is used: a node that serves a kind with
    this backend imports them before it takes agents, so that none of them waits for that in the middle of a turn.
    """

    async def start_session(self) -> Any:
        """Begin a session; returns its serialisable value."""

    async def resume_session(self, session: Any) -> Any:
        """Take a session up in this process; returns it, repaired if need be."""

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Begin a turn. Cancelling the task that reads the stream must end whatever the backend has started."""

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """The session after a turn that ended in a `result` event with this data."""

    async def terminate_session(self, session: Any) -> None:
        """End a session for good. Called twice is harmless."""
