"""The turn machine's inputs, commands and state. Plain values."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import msgspec
from msgspec import Raw

from agentmesh.backend import Response
from agentmesh.budget import EMPTY_PURSE, NO_LIMITS, Limits, Purse
from agentmesh.callback_context import Ask, Request
from agentmesh.control_values import Adjustment
from agentmesh.formats import RECORD_VERSION
from agentmesh.identity import UNKNOWN, Chain, Policy, whole
from agentmesh.records import (
    NOTHING,
    Caller,
    Change,
    Delegated,
    Effect,
    Handled,
    Inner,
    KeptTurn,
    Ledger,
    Open,
    Queued,
    RecordKind,
    Seen,
    SetTimer,
    TurnInfo,
)
from agentmesh.registry_values import AgentStatus, Restart
from agentmesh.tool_runs import ToolRun
from agentmesh.trace.context import TraceContext
from agentmesh.turn.step_values import AskAgent, Circled, StepTaken, TakeStep, WaitLost, WaitOver
from agentmesh.wire import Attachment, ErrorBody, Mail, Outcome


class Phase(StrEnum):
    """What an owner is doing. GenAgent's `idle` and `processing` are `IDLE` and the phases of a turn."""

    BOOT = "boot"
    """Just activated."""
    INIT = "init"
    """`init_agent` runs."""
    SESSION = "session"
    """The backend starts or resumes its session."""
    ACTIVATE = "activate"
    """`activate_agent` runs."""
    PRE_RUN = "pre_run"
    """`pre_run` runs."""
    IDLE = "idle"
    PRE_TURN = "pre_turn"
    """`pre_turn` looks at the next prompt."""
    TURN = "turn"
    """The prompt task runs."""
    DECIDING = "deciding"
    """`handle_response` or `handle_error` runs."""
    POST_TURN = "post_turn"
    """`post_turn` runs."""
    HANDLING = "handling"
    """`handle_event` runs: for an idle agent, or for what was deferred during the turn."""
    POST_RUN = "post_run"
    """`post_run` runs, once per halt."""
    COMMITTING = "committing"
    """The record is being appended."""
    CRASHING = "crashing"
    """`terminate_agent` runs after a crash."""
    HANDED_ON = "handed_on"
    """The running turn is handed on, by this owner's last record: the next owner goes on with its next call."""
    SUSPECT = "suspect"
    """The next input may kill nodes: it waits until this node handles no other suspect input."""
    CONFIGURING = "configuring"
    """The backend checks new options."""
    RESTARTING = "restarting"
    """Back-off between a crash and the restart."""
    FAILED = "failed"
    """None of the agent's code runs until `resume`."""
    ENDING = "ending"
    """`terminate_agent` runs, because the agent stops."""
    CLOSING = "closing"
    """The backend's `terminate_session` runs."""
    STOPPED = "stopped"
    """The `stopped` record is committed; the lanes are swept and effects are finished."""
    OVER = "over"
    """A tombstone ends the journal."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine must know of the agent's class and spec."""

    name: str
    kind: str
    hooks: frozenset[str] = frozenset()
    """Optional callbacks that the class defines: the others are not called."""
    watchdog_s: float = 600.0
    max_attempts: int = 3
    max_takeovers: int = 5
    restart: Restart = Restart()
    state_version: int = 1
    options: dict[str, Any] = {}
    backend_options: dict[str, Any] = {}
    """What the start asks of the backend; it goes over what `init_agent` chooses."""
    budget: Limits = NO_LIMITS  # of each turn
    snapshot_records: int = 256
    snapshot_bytes: int = 1 << 20
    """Records, and bytes of records, after which the next one is a snapshot."""
    max_payload: int = 1 << 20
    """The server's limit in bytes: an outcome that does not fit becomes `too_large`."""
    max_effects: int = 1000
    """Open effects above which no new prompt begins."""
    plain: frozenset[str] = frozenset()
    """Callbacks that are plain functions: they run in threads, which cannot be cancelled."""
    defer_s: float | None = None
    """How long a deferred request stays open; None: exclusive ones for `deferral.EXCLUSIVE_S`, the others without an end."""
    remember_s: float = 180.0
    """How long the ids of purged mail are remembered: the streams' duplicate window, plus a margin for differing clocks."""
    code: str = ""
    """The version of the agent's code here; empty if that is not known."""
    traced: bool = False
    """Whether records tell the spans of what happens (agentmesh.turn.tracing). Otherwise contexts are handed on as they came."""
    trace_ratio: float = 1.0
    """The share of the traces begun here that is sampled."""
    callers: tuple[str, ...] | Policy | None = None
    """Who may ask it (agentmesh.identity); None: everybody."""


# --- inputs -------------------------------------------------------------------------------------------------------
class Start(msgspec.Struct, frozen=True):
    """The owner has activated the agent. `died`: the node of the previous owner is dead."""

    died: bool = False


class Arrived(msgspec.Struct, frozen=True):
    """Mail, in stream order per lane. Messages that were consumed already are dropped."""

    mail: tuple[Mail, ...]
    usage: dict[str, Any] | None = None
    """What the running turn has spent so far, if one of them is a withdrawal."""
    turn: int | None = None
    """The turn that this is of: by the time when it is handled another may run. None where nobody has said."""


CUT_SHORT = (Phase.PRE_TURN, Phase.DECIDING, Phase.POST_TURN, Phase.HANDLING, Phase.POST_RUN)
"""Phases in which a callback of a turn runs."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A callback's return value, checked, as plain fields."""

    kind: Literal["init", "session", "none", "state", "idle", "prompt", "halt", "defer", "proceed", "skip"]
    text: str = ""
    label: str | None = None
    exclusive: bool = False
    backend: dict[str, Any] = {}
    session: Raw = NOTHING


class Returned(msgspec.Struct, frozen=True):
    """A callback returned; `state` is the encoded new state (`NOTHING` where it gives none)."""

    choice: Choice
    state: Raw = NOTHING
    asks: tuple[Ask, ...] = ()


class Misbehaved(msgspec.Struct, frozen=True):
    """A callback returned a wrong value (`bad_return`), or a state that cannot be encoded (`bad_state`)."""

    error: ErrorBody


class Raised(msgspec.Struct, frozen=True):
    """A callback raised."""

    error: ErrorBody


class CutShort(msgspec.Struct, frozen=True):
    """A callback has ended because it was told to (`CancelCallback`)."""


class Unreadable(msgspec.Struct, frozen=True):
    """The stored state cannot be decoded by this class."""

    error: ErrorBody


class TurnEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt task of turn `turn` ended by itself. `NOTHING` leaves state or session as it was at dispatch."""

    turn: int
    response: Response | None = None
    error: ErrorBody | None = None
    state: Raw = NOTHING
    session: Raw = NOTHING
    usage: dict[str, Any] | None = None  # of a turn that failed
    tools: tuple[ToolRun, ...] = ()
    """The tools that ran."""
    inner: tuple[Inner, ...] = ()
    """Its calls that left no step, where turns are traced."""


class Watchdog(msgspec.Struct, frozen=True):
    """The turn has run too long."""

    turn: int
    usage: dict[str, Any] | None = None
    """What it has spent so far."""
    tools: tuple[ToolRun, ...] = ()
    """The tools that ran so far."""
    inner: tuple[Inner, ...] = ()
    """As in `TurnEnded`."""


class Committed(msgspec.Struct, frozen=True):
    """The record in flight stands at `seq` of the journal stream."""

    seq: int
    id: str
    at: float
    size: int = 0


class EffectsDone(msgspec.Struct, frozen=True):
    """The server has acknowledged these effects."""

    origins: tuple[str, ...]


class GaveUp(msgspec.Struct, frozen=True):
    """An effect was refused for good."""

    origin: str
    error: ErrorBody


class Interrupt(msgspec.Struct, frozen=True):
    """End the running turn (only that of `ref`, if given), or that one of its callbacks which runs now."""

    token: str = ""
    ref: str | None = None
    usage: dict[str, Any] | None = None
    """What the running turn has spent so far."""
    tools: tuple[ToolRun, ...] = ()
    """The tools that ran in it so far."""
    inner: tuple[Inner, ...] = ()
    """As in `TurnEnded`."""
    turn: int | None = None
    """The turn that this is of: by the time when it is handled another may run. None where nobody has said."""


class Resume(msgspec.Struct, frozen=True):
    """Clear `halted`, or revive a failed agent."""

    token: str = ""


class Cancel(msgspec.Struct, frozen=True):
    """Remove a waiting prompt, or close a deferred request. With `tree`, end the request also if it runs."""

    ref: str
    token: str = ""
    tree: bool = False
    usage: dict[str, Any] | None = None
    """What the running turn has spent so far."""
    turn: int | None = None
    """The turn that this is of: by the time when it is handled another may run. None where nobody has said."""
    key: str | None = None
    """The digest of the key that the requester has given."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a deferred request from outside."""

    ref: str
    text: str
    token: str = ""


class AskTimer(msgspec.Struct, frozen=True):
    """Set a timer because a control request asks for it."""

    timer: SetTimer
    token: str = ""


class DropTimer(msgspec.Struct, frozen=True):
    """Cancel a timer because a control request asks for it."""

    id: str
    token: str = ""


class Configure(msgspec.Struct, frozen=True, kw_only=True):
    """Change the agent's configuration between two turns, because a control request asks for it."""

    id: str
    """The request's: the same request twice is one change."""
    change: Adjustment
    labels: dict[str, str] = {}
    """The spec's labels, which `expect` covers."""
    expect: str | None = None
    token: str = ""


class Trim(msgspec.Struct, frozen=True):
    """Consumed mail is about to be purged: remember the ids that the server will then forget. Answered to `token`."""

    token: str
    seen: dict[str, Seen]


class Retire(msgspec.Struct, frozen=True):
    """This owner is about to hand the agent over: it finishes what it has begun, and begins nothing more."""


class HandOn(msgspec.Struct, frozen=True):
    """The turn has no call open, and its agent is about to be handed over: the next owner goes on with it."""

    turn: int


class Cleared(msgspec.Struct, frozen=True):
    """No other suspect input is handled on this node: this agent's may begin."""


class Stop(msgspec.Struct, frozen=True):
    """The spec says `stopping`."""

    reason: ErrorBody


class Swept(msgspec.Struct, frozen=True):
    """Every message up to the lanes' last sequences, as read after the `stopped` record, has been fed."""


class BackoffOver(msgspec.Struct, frozen=True):
    """The back-off after a crash is over."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: check the deadlines of prompts and waits, and the ends of requests."""

    usage: dict[str, Any] | None = None
    """What the running turn has spent so far."""
    turn: int | None = None
    """The turn that this is of: by the time when it is handled another may run. None where nobody has said."""


class Rest(msgspec.Struct, frozen=True):
    """The agent may sleep if it has nothing to do."""


type Input = (
    Start | Arrived | Returned | Misbehaved | Raised | CutShort | Unreadable | TurnEnded | Watchdog | Committed | EffectsDone
    | GaveUp | Interrupt | Resume | Cancel | Reply | AskTimer | DropTimer | Trim | Stop | Swept | BackoffOver | Tick | Rest
    | Retire | HandOn | Cleared | TakeStep | AskAgent | Circled | WaitLost | Configure
)  # fmt: skip


# --- traces -------------------------------------------------------------------------------------------------------
class AttemptSpans(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a turn, as its spans have it."""

    context: TraceContext
    """Its own: what it makes stands below it."""
    parent: str = ""
    links: tuple[str, ...] = ()
    crashes: int = 0
    retries: int = 0
    process: str = ""
    """The span of its message; empty if that was told before, or if the prompt is no message."""
    above: str = ""
    lane: str = ""
    stored: float = 0.0
    """As in `agentmesh.records.Traced`."""


class TurnAttempt(msgspec.Struct, eq=False):
    """An attempt of a turn. What its spans have stands when it begins, and is worked out once somebody asks for it: of most turns
    nobody does (docs/design/049-ids-that-nobody-asks-for.md)."""

    find: Callable[[TurnAttempt], AttemptSpans]
    """Works that out."""
    config: Config
    ledger: Ledger
    active: Active
    """As they were when it began."""
    began: float
    """When that was (seconds since the epoch)."""
    found: AttemptSpans | None = None
    watched: bool = False
    """Whether its owner has noted that it lasts."""

    @property
    def spans(self) -> AttemptSpans:
        """What its spans have."""
        if self.found is None:
            self.found = self.find(self)
        return self.found

    @property
    def context(self) -> TraceContext:
        """Its own: what it makes stands below it."""
        return self.spans.context

    def __repr__(self) -> str:
        return f"TurnAttempt({self.active.key!r}, began={self.began!r})"


# --- commands -----------------------------------------------------------------------------------------------------
class RunCallback(msgspec.Struct, frozen=True, kw_only=True):
    """Run a callback (or `start_session`, `resume_session`, `terminate_session`) and feed its end back."""

    hook: str
    args: tuple[Any, ...] = ()
    state: Raw = NOTHING
    request: Request | None = None
    sender: str | None = None
    trace: dict[str, str] = {}
    """The context that it runs in where turns are not traced, as headers."""
    of: TurnAttempt | TraceContext | None = None
    """Where turns are traced: its turn's attempt, or the context of the event that it handles."""

    @property
    def context(self) -> TraceContext | None:
        """The context that it runs in, where turns are traced."""
        return self.of.context if isinstance(self.of, TurnAttempt) else self.of


class CancelCallback(msgspec.Struct, frozen=True):
    """Cancel the callback that runs now, if it still runs after `after_s` seconds. Its end is fed back, however it ends."""

    after_s: float = 0.0


class RunTurn(msgspec.Struct, frozen=True, kw_only=True):
    """Start the prompt task and feed its end back as `TurnEnded`."""

    number: int
    request: Request
    prompt: str
    state: Raw
    session: Raw
    watchdog_s: float
    key: str = ""
    """The turn's name: the same however often it is tried."""
    steps: tuple[Raw, ...] = ()
    """The steps that earlier tries took."""
    kept: tuple[tuple[str, KeptTurn], ...] = ()
    """By their names, what earlier turns did that ended without their answers."""
    purse: Purse = EMPTY_PURSE
    stream_to: str | None = None
    trace: dict[str, str] = {}
    """The context that it runs in where turns are not traced, as headers."""
    attempt: TurnAttempt | None = None
    """Where turns are traced: what is known of its span."""
    awaited_until: float | None = None
    """When the caller's wait ends, in seconds since the epoch; None where it waits without end, or nobody does."""

    @property
    def context(self) -> TraceContext | None:
        """The attempt's own context, where turns are traced."""
        return None if self.attempt is None else self.attempt.context


class KillTurn(msgspec.Struct, frozen=True):
    """End the prompt task, and everything that it has started."""

    number: int


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Append a record and feed `Committed` back; if it cannot be appended, the owner ends."""

    kind: RecordKind
    change: Change
    effects: tuple[Effect, ...] = ()
    done: tuple[str, ...] = ()
    turn: TurnInfo | None = None
    attempt: TurnInfo | None = None
    handled: tuple[Handled, ...] = ()
    snapshot: Ledger | None = None
    trace: dict[str, str] = {}


class Perform(msgspec.Struct, frozen=True):
    """Perform these effects, which are committed now, in order."""

    effects: tuple[tuple[str, Open], ...]


class Emit(msgspec.Struct, frozen=True):
    """A fact for telemetry."""

    kind: str
    fields: dict[str, Any] = {}
    turn: int | None = None
    """The turn that it is about, if the ledger does not have it (a tombstone has none)."""


TO_PROCESSING = Emit("state_changed", {"from": "idle", "to": "processing"})
TO_IDLE = Emit("state_changed", {"from": "processing", "to": "idle"})


class AnswerControl(msgspec.Struct, frozen=True):
    """Answer the control request that came with `token`."""

    token: str
    body: dict[str, Any]


class Wake(msgspec.Struct, frozen=True):
    """Feed `Tick` at this time (seconds since the epoch)."""

    at: float


class AwaitPermit(msgspec.Struct, frozen=True):
    """Feed `Cleared` once no other agent of this node handles a suspect input; from then on none may until `ReturnPermit`."""


class ReturnPermit(msgspec.Struct, frozen=True):
    """The suspect input is handled."""


class Backoff(msgspec.Struct, frozen=True):
    """Make a new instance of the agent, and feed `BackoffOver` after `seconds`."""

    seconds: float


class SetStatus(msgspec.Struct, frozen=True):
    """Show the agent's status in the registry."""

    status: AgentStatus
    reason: ErrorBody | None = None


class Sweep(msgspec.Struct, frozen=True):
    """Read the lanes up to their last sequences (from the leader), feed their mail, then `Swept`."""


type Command = (
    RunCallback | CancelCallback | RunTurn | KillTurn | Append | Perform | Emit | AnswerControl | Wake | Backoff | SetStatus
    | Sweep | AwaitPermit | ReturnPermit | StepTaken | WaitOver
)  # fmt: skip


# --- the machine's state ------------------------------------------------------------------------------------------
class Active(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt being handled: where it came from, where its outcome goes, and how far it has got."""

    ref: str
    key: str
    """The key of this input in the ledger's counters of crashes and takeovers."""
    number: int
    text: str
    started: float
    original: str = ""
    mail: Mail | None = None
    queued: Queued | None = None
    slot: Literal["mail", "next", "queue"] = "mail"
    caller: Caller | None = None
    label: str | None = None
    sender: str | None = None
    metadata: dict[str, Any] = {}
    attachments: tuple[Attachment, ...] = ()
    trace: dict[str, str] = {}
    """Its prompt's context, as headers: it runs in that where turns are not traced."""
    attempt: TurnAttempt | None = None
    """Where turns are traced, from its beginning on: what is known of its span."""
    inner: tuple[Inner, ...] = ()
    refused: bool = False
    response: Response | None = None
    error: ErrorBody | None = None
    usage: dict[str, Any] | None = None  # of a turn that failed
    unsaid: str | None = None
    """The answer of a turn that was interrupted behind it: its caller does not get it."""
    tools: tuple[ToolRun, ...] = ()
    outcome: Outcome | None = None
    choice: Choice | None = None

    def request(self) -> Request:
        if self.caller is None:
            return Request(self.ref, self.label, self.sender, self.metadata, self.attachments)
        chain = whole(self.caller.chain, self.sender) if self.sender is not None or self.caller.chain else UNKNOWN
        return Request(self.ref, self.label, self.sender, self.metadata, self.attachments, chain)


type Then = Literal["go_on", "activate", "boot", "failed", "after_crash", "sweep", "swept", "over", "configured", "handed_on"]
"""What follows when a record is committed."""


class Inflight(msgspec.Struct, frozen=True, kw_only=True):
    """The record in flight. `side`: it was written in mid-turn, and the turn's draft goes on."""

    kind: RecordKind
    effects: tuple[Effect, ...]
    done: tuple[str, ...]
    base: Ledger
    then: Then = "go_on"
    turn: TurnInfo | None = None
    snapshot: bool = False
    side: bool = False


class Core(msgspec.Struct, kw_only=True):
    """All that an owner knows of its agent. Treated as a value: `advance` changes a copy.

    `ledger` is what the journal says; `work` is the draft of the next record, whose effects are `effects`.
    """

    config: Config
    ledger: Ledger
    work: Ledger
    phase: Phase = Phase.BOOT
    now: float = 0.0
    """The time of the latest input (seconds since the epoch)."""
    prompts: tuple[Mail, ...] = ()
    events: tuple[Mail, ...] = ()
    high: int = 0
    """Highest sequence of `MESH_MAIL` seen: the mailbox's tail."""
    active: Active | None = None
    effects: tuple[Effect, ...] = ()
    asks: tuple[Ask, ...] = ()
    emits: tuple[Emit, ...] = ()
    drains: int = 0
    """Events that the draft may still handle."""
    withdrawals: tuple[Mail, ...] = ()
    """Withdrawals of requests that are not consumed yet (agentmesh.turn.withdrawal)."""
    spent: dict[str, Any] | None = None
    """What the running turn had spent when the newest withdrawal came."""
    ended: frozenset[str] = frozenset()
    """Refs of requests that have ended in any way but their answer since the draft was begun."""
    answering: Delegated | None = None
    """The request whose answer `handle_event` is given, if it was made on behalf of another."""
    answered: tuple[Mail, ...] = ()
    """Answers to questions of turns: of one that waits for them, or of one that is over (agentmesh.turn.steps)."""
    answers: tuple[AnswerControl | StepTaken | WaitOver, ...] = ()
    done: tuple[str, ...] = ()
    inflight: Inflight | None = None
    stash: tuple[Input, ...] = ()
    cut: ErrorBody | None = None
    """The callback that runs was interrupted: what it returns is thrown away, and the turn's error is this."""
    configuring: Configure | None = None
    """The change that the backend checks now."""
    reason: ErrorBody | None = None
    """Why the agent crashes, ends or has failed."""
    record: RecordKind | None = None
    """Kind of the newest record."""
    records: int = 0
    bytes: int = 0
    swept: bool = False
    wary: bool = False
    """The previous owner died with its node: inputs are named in a record before they begin."""
    cleared: bool = False
    """This agent may handle a suspect input."""
    retiring: bool = False
    """Nothing new begins: the agent is about to be handed over."""
    trace: dict[str, str] = {}
    """Trace context of the event being handled."""
    context: TraceContext | None = None
    """The same where turns are traced: that of its own span."""
    handling: Handled | None = None
    """Its span, if it has one."""
    chain: Chain = ()
    """On whose behalf it came."""
    handled: tuple[Handled, ...] = ()
    """The messages that the draft consumes without a turn, where turns are traced."""
    attempted: TurnInfo | None = None
    """The attempt that the draft ends without a turn of the history."""
    writes: int = RECORD_VERSION
    """The newest version of records that may be written now: what needs more is done as the build before did it."""
