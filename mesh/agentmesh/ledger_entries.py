"""What the ledger is made of, but for its own fields: requests that are open, prompts that are not mail, timers, steps, waits."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw

from agentmesh.budget import Limits
from agentmesh.effects import Effect
from agentmesh.identity import Party
from agentmesh.registry_values import Restart
from agentmesh.tool_runs import Counts
from agentmesh.wire import Attachment, ErrorBody, Outcome

NOTHING = Raw(b"")
"""No value (a `Raw` cannot stand in a union with null)."""


class Open(msgspec.Struct, frozen=True, omit_defaults=True):
    """An effect that the server has not acknowledged, as far as the journal knows.

    `nonce` is the id of the record that called for it: random, so that a stranger cannot guess the `Nats-Msg-Id`
    that is made of it.
    """

    effect: Effect
    nonce: str
    at: float


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a request's outcome goes."""

    ref: str
    reply_to: str | None = None
    stream_to: str | None = None
    sender: str | None = None
    life: str | None = None
    tag: str | None = None
    path: tuple[str, ...] = ()
    """The agents that wait for this outcome in the middle of a turn, the sender last; empty if the sender's turn is over."""
    deadline: float | None = None
    budget: Limits | None = None
    """What the request may cost: this turn, and the turns of the agents that it asks."""
    trace: dict[str, str] = {}
    msg_id: str | None = None
    """The request's `Nats-Msg-Id`, as its outcome names it."""
    stored: str | None = None
    """When the server stored the request, in its own words."""
    origin: str | None = None
    """The request's origin, if an agent sent it: a withdrawal names it."""
    end_by: float | None = None
    """The request ends at this time, with or without an answer (seconds since the epoch)."""
    root: str | None = None
    """As in `SendMail`."""
    key: str | None = None
    """The digest of the request's key (agentmesh.keys): who polls or cancels it needs that."""
    chain: tuple[Party, ...] = ()
    """On whose behalf the request is made, as it came (agentmesh.identity)."""


class Queued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A prompt that is not mail: self-chained, made by `handle_event`, or a request that is tried again.

    `place` orders it among the mail: behind every message whose sequence is not above it.
    """

    ref: str
    text: str
    place: int = 0
    label: str | None = None
    caller: Caller | None = None
    metadata: dict[str, Any] = {}
    attachments: tuple[Attachment, ...] = ()
    path: tuple[str, ...] = ()
    trace: dict[str, str] = {}
    """The context that its turn goes on in: of what made it, or, of a request that is tried again, of its message."""
    attempt: int = 1
    """How often it is tried, in place of one that failed."""
    links: tuple[str, ...] = ()
    """What caused it besides what made it: `<trace>-<span>` each."""


class Deferred(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request kept open beyond its turn."""

    caller: Caller
    turn: int
    exclusive: bool = False
    since: float = 0.0
    """When it was deferred (seconds since the epoch). 0: by a build that did not say; it counts from the next activation."""
    until: float | None = None
    """When it ends with `expired`: at the request's deadline, or when it has been open for as long as the agent allows."""


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event that is not mail: an effect that could not be done, or a deferred request that was closed from outside."""

    effect: dict[str, Any]
    error: ErrorBody
    closed: str | None = None
    """The ref of that request; `error.code` says how it was closed. (A build that does not know this tells of an effect.)"""
    trace: dict[str, str] = {}
    """The context of what the effect was for, or of the request: what the agent does about it goes on in that."""


class TimerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A timer that is set. Only a tick that bears this origin is delivered."""

    origin: str
    due: float
    every: float | None = None
    event: Any = None


class Awaited(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tagged request whose answer has not come yet."""

    agent: str
    tag: str
    since: float = 0.0
    """When it was asked (seconds since the epoch); 0 in journals of a build that did not say."""
    deadline: float | None = None
    """Its turn must not begin later."""


class Delegated(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request to another agent, made on behalf of a request of this one's that is open; or withdrawn, and not known to have
    ended (docs/architecture.md#withdrawals)."""

    agent: str
    request: str
    """The ref of the request that it is for."""
    withdrawn: bool = False


class Turning(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The turn that has taken steps: what the next owner must know to go on with it."""

    key: str
    """The key of its input in the crash counters (`Active.key`)."""
    number: int
    prompt: str
    """What `pre_turn` made of the prompt when the first step was taken."""
    began: float = 0.0
    """When it was begun for the first time (seconds since the epoch)."""
    moves: int = 0
    """How often an owner has handed it on between two calls."""
    code: str = ""
    """The version of the code with which it took the first step (`NodeLease.code`); empty if that is not known."""
    traced: Traced | None = None
    """The spans of the attempt that took the first step, where turns are traced. The other attempts have its trace and parent."""


class Inner(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a model, or a run of a tool, inside an attempt: what its span has."""

    id: str
    """Of the span: `agentmesh.trace.context.inner_span_id`."""
    op: Literal["chat", "execute_tool"]
    name: str
    """The model or the tool."""
    began: float
    ended: float
    """Seconds since the epoch, by the servers' time."""
    error: str = ""
    """The code of the error that it ended with; empty if with none."""
    attributes: dict[str, str | int | float | bool] = {}


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step as its backend gave it. (A struct, because null in a change means that a key goes.)"""

    value: Raw = NOTHING
    began: float = 0.0
    ended: float = 0.0
    """Seconds since the epoch. This and what follows is written where turns are traced."""
    generation: int = 0
    boot: str = ""
    """The owner that took it."""
    attempt: str = ""
    """The id of the span of the attempt that took it."""
    inner: Inner | None = None
    """The call that it has the result of, if its backend says so."""

    @property
    def size(self) -> int:
        """Its bytes as JSON."""
        return memoryview(self.value).nbytes


type Shown = Literal["whole", "note", "not", "told"]


class KeptTurn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a turn did that ended in any way but its answer (agentmesh.turn.kept). The next turn shows it to the model."""

    number: int
    ref: str
    """The request that it was for, or the one that is tried in its place: that one goes on with its calls that have no result."""
    prompt: str = ""
    attachments: tuple[Attachment, ...] = ()
    steps: tuple[Step, ...] = ()
    note: str | None = None
    """The same in a text of a few lines; None if it ran no tool."""
    shown: Shown = "whole"
    """How the next turn shows it: as whole exchanges; by its note; not at all, because a turn with its note in it was refused; or
    not again, because the session has it."""
    tries: int = 0
    """Turns that it was shown to in this way and that failed for an unknown reason before the model had answered."""

    @property
    def size(self) -> int:
        """Bytes of its steps and attachments, about."""
        return sum(step.size for step in self.steps) + sum(len(a.content) for a in self.attachments)


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A wait inside a turn: what another agent was asked, and its outcome once that is known."""

    agent: str
    since: float
    deadline: float
    origin: str = ""
    """The request's origin; empty if none was sent."""
    outcome: Outcome | None = None
    generation: int = 0
    boot: str = ""
    attempt: str = ""
    """Who has asked, as in `Step`."""


class Seen(msgspec.Struct, frozen=True):
    """A message that was purged within the duplicate window, and when."""

    ref: str
    at: float


class Traced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a record tells of the spans of an attempt, and of the span of its message if that ends with it, beside what `TurnInfo`
    has (docs/design/035-spans-are-told-by-records.md)."""

    trace: str
    span: str = ""
    """The attempt's; empty if none began: the message became a dead letter before this owner tried it."""
    parent: str = ""
    """The span above the attempt: that of its message, or what made the prompt."""
    links: tuple[str, ...] = ()
    """What caused the attempt besides its parent: `<trace>-<span>` each."""
    sampled: bool = True
    began: float = 0.0
    """When this attempt began (seconds since the epoch); `TurnInfo.started` is when the turn did, for the first time."""
    boot: str = ""
    crashes: int = 0
    retries: int = 0
    process: str = ""
    """The span of the message that the record consumes; empty if it consumes none for this turn."""
    above: str = ""
    """The span above that one; empty if there is none."""
    lane: str = ""
    stored: float = 0.0
    """Of that message: its lane, and when the server stored it (seconds since the epoch)."""
    inner: tuple[Inner, ...] = ()
    """Calls inside the attempt that left no step."""


class TurnBefore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The turn before a plain one: what the link to it is derived from."""

    number: int
    ref: str
    key: str
    """As in `Derived`, like what has no text here."""
    stored: str | None = None
    generation: int = 0
    boot: str = ""
    """Its owner; left out where that is the turn's own."""
    epoch: int = 1
    crashes: int = 0


class Derived(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the spans of a plain turn are derived from, beside what `TurnInfo` has (`agentmesh.trace.derived`): it was for mail
    without a context, and nobody asked for its ids while it ran. Most turns are such, and ids would cost each of them more than
    all else that is told of it."""

    key: str
    """The key of its input, which is mail, in the ledger's counters: `<lane>:<sequence>`."""
    stored: str | None = None
    """When the server stored that, in its own words."""
    boot: str
    epoch: int = 1
    crashes: int = 0
    began: float | None = None
    """When this attempt began, if not with the turn."""
    ratio: float | None = None
    """The share of traces that its owner samples where nobody has decided, if not all."""
    before: TurnBefore | None = None
    """The turn before, if that was a plain one, too."""
    links: tuple[str, ...] = ()
    """The turn before, if its ids were told."""


class Handled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that a record consumed without a turn, as its span has it: an event that `handle_event` was called with, or a
    prompt or an event that ended with an error before anything ran."""

    lane: str
    seq: int
    trace: str
    span: str
    parent: str = ""
    links: tuple[str, ...] = ()
    """What caused it besides its parent: `<trace>-<span>` each."""
    sampled: bool = True
    sender: str | None = None
    chain: tuple[Party, ...] = ()
    """On whose behalf it came; empty where no user is known (agentmesh.identity)."""
    stored: float = 0.0
    """When the server stored it (seconds since the epoch)."""
    began: float = 0.0
    """When `handle_event` was called; 0 if nothing ran."""
    ended: float = 0.0
    error: str = ""
    """The code of the error that it ended with; empty if with none."""
    timer: str = ""
    """The timer whose tick it is."""


class TurnInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `mesh history` shows of a turn."""

    number: int
    ref: str
    started: float
    ended: float
    node: str
    generation: int
    sender: str | None = None
    chain: tuple[Party, ...] = ()
    """On whose behalf its request was, as it came; empty where no user is known (agentmesh.identity)."""
    label: str | None = None
    prompt: str = ""
    answer: str | None = None
    error: ErrorBody | None = None
    usage: dict[str, Any] | None = None
    takeovers: int = 0
    tools: Counts = {}
    """The tools that ran, and how often each ended in which way."""
    note: str | None = None
    """What the tools of a turn without an answer did, in a few lines."""
    trace: Traced | None = None
    """Its spans, where turns are traced."""
    derived: Derived | None = None
    """In the place of `trace`, of a plain turn: what that is derived from."""
    code: tuple[str, ...] = ()
    """The versions of the code with which it began and ended, if it went on with another one."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `mesh set` has put in the place of what class and spec say; None: nothing."""

    watchdog_s: float | None = None
    budget: Limits | None = None
    restart: Restart | None = None


class SetInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of the agent's configuration, as `mesh history` shows it."""

    number: int
    """Counts the changes of a life, from 1."""
    id: str
    """The request's id: by it a repetition is known."""
    at: float
    turn: int
    """The newest turn before it."""
    node: str
    values: dict[str, Any]
    """By the name of a part its new value, if that is short; of the backend options those that were changed."""
