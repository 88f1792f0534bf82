"""The journal's records: the only truth about an agent (docs/architecture.md#one-turn-one-record).

A record holds a change to the ledger, new effects, and the origins of effects that are now known to be done. It is JSON, one
tagged union, with `v` on every record; readers accept all versions, writers write the newest. Golden bytes of each version stay
in tests/compat for ever.

Version ledger:
    1  first
    2  has what the build before would lose (agentmesh.formats, docs/compatibility.md)

A record bears the least version whose readers lose nothing of it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType, structs

from agentmesh.budget import Limits
from agentmesh.errors import UnreadableRecord
from agentmesh.formats import FIRST, RECORD_VERSION, needed_by
from agentmesh.registry_values import Restart
from agentmesh.tool_runs import Counts
from agentmesh.wire import Attachment, ErrorBody, Outcome, PromptBody

NOTHING = Raw(b"")
"""No value (a `Raw` cannot stand in a union with null)."""


# --- effects ------------------------------------------------------------------------------------------------------
class Resolve(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="resolve", tag_field="t"):
    """Store a request's outcome, and publish it to the caller if it waits on a subject."""

    outcome: Outcome
    reply_to: str | None = None
    stream_to: str | None = None


class SendMail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="mail", tag_field="t"):
    """Mail to another agent: a prompt, an event, or the outcome of its request."""

    to: str
    lane: Literal["peer-inbox", "peer-notify", "peer-answer"]
    prompt: PromptBody | None = None
    event: Any = None
    outcome: Outcome | None = None
    tag: str | None = None
    life: str | None = None
    """The incarnation that is meant; None: the one that the registry shows when it is sent."""
    path: tuple[str, ...] = ()
    """The agents that now wait up the chain, the sender last: a request with a path is a wait inside a turn
    (docs/architecture.md#waits)."""
    wait: str | None = None
    """The sender's name of that wait. The request's tag is then its origin, by which the answer is matched."""
    deadline: float | None = None
    """The request's turn must not begin later than this (seconds since the epoch)."""
    budget: Limits | None = None
    """What the request may cost."""
    trace: dict[str, str] = {}
    end_by: float | None = None
    """The request ends at this time, with or without an answer (seconds since the epoch)."""
    root: str | None = None
    """The request of a client that it is for in the end: `<agent>/<ref>`."""
    request: str | None = None
    """The ref of the sender's request on whose behalf this is sent, if that request outlives the record."""


class StartAgent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="start", tag_field="t"):
    """Create an agent's spec."""

    name: str
    kind: str
    backend: str | None = None
    options: dict[str, Any] = {}
    labels: dict[str, str] = {}
    restart: Restart | None = None
    watchdog_s: float | None = None
    use: bool = False
    """If the name is taken, use the agent that has it."""
    link: bool = False


class StopAgent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stop", tag_field="t"):
    """Ask for an agent's end."""

    name: str


class SetTimer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="set_timer", tag_field="t"):
    """Send `event` to the agent itself at `due` (seconds since the epoch), then every `every` seconds."""

    id: str
    due: float
    every: float | None = None
    event: Any = None


class CancelTimer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="cancel_timer", tag_field="t"):
    """Remove a timer older than this effect."""

    id: str


class Echo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="echo", tag_field="t"):
    """Give a request the outcome of an earlier one: it repeats that one's `Nats-Msg-Id`."""

    ref: str
    of: str
    reply_to: str | None = None
    stream_to: str | None = None
    msg_id: str | None = None
    """The id that both have."""
    stored: str | None = None
    """When the repetition was stored, in the server's words."""


class Bury(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="bury", tag_field="t"):
    """Make an input a dead letter. Its body is read from its lane, by sequence, when this effect is performed."""

    lane: str
    seq: int
    reason: ErrorBody
    text: str | None = None


type Effect = Resolve | SendMail | StartAgent | StopAgent | SetTimer | CancelTimer | Bury | Echo


def target_of(effect: Effect) -> str:
    """What `effect` acts on. Effects of one target go strictly in order; targets do not wait for each other."""
    match effect:
        case SendMail():
            return "agent:" + effect.to
        case StartAgent() | StopAgent():
            return "agent:" + effect.name
        case Resolve():
            return "result:" + effect.outcome.ref
        case Echo():
            return "result:" + effect.ref
        case SetTimer() | CancelTimer():
            return "timer:" + effect.id
        case Bury():
            return "dead"


class Open(msgspec.Struct, frozen=True, omit_defaults=True):
    """An effect that the server has not acknowledged, as far as the journal knows.

    `nonce` is the id of the record that called for it: random, so that a stranger cannot guess the `Nats-Msg-Id`
    that is made of it.
    """

    effect: Effect
    nonce: str
    at: float


# --- parts of the ledger --------------------------------------------------------------------------------------------
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
    attempt: int = 1


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


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step as its backend gave it. (A struct, because null in a change means that a key goes.)"""

    value: Raw = NOTHING

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


class Seen(msgspec.Struct, frozen=True):
    """A message that was purged within the duplicate window, and when."""

    ref: str
    at: float


class TurnInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `mesh history` shows of a turn."""

    number: int
    ref: str
    started: float
    ended: float
    node: str
    generation: int
    sender: str | None = None
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


type LifePhase = Literal["new", "init", "ready", "stopped", "over"]


class Ledger(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state that an agent's records build up.

    `new`: activated, not initialised; `init`: initialised, `pre_run` still to run; `ready`; `stopped`: its end is being
    finished; `over`: a tombstone.
    """

    incarnation: str
    epoch: int = 1
    generation: int = 0
    node: str = ""
    boot: str = ""

    phase: LifePhase = "new"
    state: Raw = NOTHING
    state_version: int = 1
    halted: bool = False
    failed: ErrorBody | None = None
    """Why it has failed; or, of a life that has ended without a stop request, why it has ended."""
    backend_options: dict[str, Any] = {}
    session: Raw = NOTHING
    turn: int = 0
    minted: int = 0
    """Refs given to prompts that are not mail."""
    usage: dict[str, Any] = {}
    restarts: tuple[float, ...] = ()
    """When the agent's own code crashed, within the restart window."""
    next: Queued | None = None
    queue: tuple[Queued, ...] = ()
    notices: tuple[Notice, ...] = ()
    trying: str | None = None
    """The input that an owner names in a record before trying it again after the death of a node."""

    positions: dict[str, int] = {}
    """Per lane: everything up to this sequence is consumed."""
    taken: dict[str, tuple[int, ...]] = {}
    """Per lane: sequences beyond the position that are consumed out of order."""
    origins: dict[str, str] = {}
    """Per `<sender>/<lane>`: the newest origin consumed."""
    deferred: dict[str, Deferred] = {}
    attempts: dict[str, int] = {}
    takeovers: dict[str, int] = {}
    timers: dict[str, TimerEntry] = {}
    awaiting: dict[str, Awaited] = {}
    turning: Turning | None = None
    """The turn that has taken steps, until its input is dealt with."""
    steps: dict[str, Step] = {}
    """Its steps, by index: a record that adds one says nothing of the others."""
    waits: dict[str, Wait] = {}
    """Its waits, by name."""
    delegated: dict[str, Delegated] = {}
    """By origin: what was asked of others on behalf of open requests, beside the waits of a running turn; and what was withdrawn
    and is to come back."""
    kept: dict[str, KeptTurn] = {}
    """What turns did that ended without their answers, and that the session does not have; by the turns' names, oldest first."""
    seen: dict[str, Seen] = {}
    """By digest of a `Nats-Msg-Id`: mail that was purged while a repetition of it might still come."""
    effects: dict[str, Open] = {}
    history: tuple[TurnInfo, ...] = ()
    history_limit: int = 32
    """Turns that `history` keeps: a setting of the nodes, in the journal so that all who read it keep the same ones."""
    spec: Raw = NOTHING
    """The spec as JSON, without its status (`agentmesh.ownership.kept_spec`): what the registry's is restored from if a message
    that is not the mesh's replaces it."""
    overrides: Overrides = Overrides()
    """What was changed of the configuration since the start, except for `backend_options`."""
    sets: tuple[SetInfo, ...] = ()
    """The newest of these changes (`agentmesh.configuration.KEPT`)."""


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change to a ledger: fields left out are unchanged; in the maps, null removes a key."""

    phase: LifePhase | UnsetType = UNSET
    state: Raw | UnsetType = UNSET
    state_version: int | UnsetType = UNSET
    halted: bool | UnsetType = UNSET
    failed: ErrorBody | UnsetType | None = UNSET
    backend_options: dict[str, Any] | UnsetType = UNSET
    session: Raw | UnsetType = UNSET
    turn: int | UnsetType = UNSET
    minted: int | UnsetType = UNSET
    usage: dict[str, Any] | UnsetType = UNSET
    restarts: tuple[float, ...] | UnsetType = UNSET
    next: Queued | UnsetType | None = UNSET
    queue: tuple[Queued, ...] | UnsetType = UNSET
    notices: tuple[Notice, ...] | UnsetType = UNSET
    trying: str | UnsetType | None = UNSET
    turning: Turning | UnsetType | None = UNSET
    history_limit: int | UnsetType = UNSET
    spec: Raw | UnsetType = UNSET
    overrides: Overrides | UnsetType = UNSET
    sets: tuple[SetInfo, ...] | UnsetType = UNSET

    positions: dict[str, int | None] | UnsetType = UNSET
    taken: dict[str, tuple[int, ...] | None] | UnsetType = UNSET
    origins: dict[str, str | None] | UnsetType = UNSET
    deferred: dict[str, Deferred | None] | UnsetType = UNSET
    attempts: dict[str, int | None] | UnsetType = UNSET
    takeovers: dict[str, int | None] | UnsetType = UNSET
    timers: dict[str, TimerEntry | None] | UnsetType = UNSET
    awaiting: dict[str, Awaited | None] | UnsetType = UNSET
    steps: dict[str, Step | None] | UnsetType = UNSET
    waits: dict[str, Wait | None] | UnsetType = UNSET
    kept: dict[str, KeptTurn | None] | UnsetType = UNSET
    seen: dict[str, Seen | None] | UnsetType = UNSET
    delegated: dict[str, Delegated | None] | UnsetType = UNSET


type RecordKind = Literal[
    "activated", "init", "ready", "turn", "event", "control", "refused", "step", "crashed", "gave_up",
    "rest", "trying", "stopped", "swept", "tombstone", "set",
]  # fmt: skip


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record. `id` is random: it answers "is the newest record mine?".

    With `snapshot`, the record is the whole ledger (before its own effects and change count) and was written with
    `Nats-Rollup: sub`, which drops the older ones atomically.
    """

    kind: RecordKind
    id: str
    at: float
    incarnation: str
    epoch: int
    generation: int
    node: str
    boot: str
    change: Change = Change()
    effects: tuple[Effect, ...] = ()
    done: tuple[str, ...] = ()
    turn: TurnInfo | None = None
    snapshot: Ledger | None = None
    trace: dict[str, str] = {}
    step: Any = None
    """Nothing writes this: steps are part of the ledger, so they stand in `change`."""
    positions: dict[str, int] | None = None
    """`rest`: every lane's position, so that a new owner sees from this record alone whether there is work."""
    placed: float | None = None
    """`activated`: when the owner was given the agent, in seconds since the epoch. Mail that is older has met a takeover."""
    v: int = FIRST
    """The version that a reader must know: at least the one that its content needs, and that of the record before it."""


_NEEDED = needed_by(Record)
_FIRST_HEAD = b'{"v":1,'
_KIND = b'{"kind":'
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class _RecordHead(msgspec.Struct):
    v: int = FIRST


_head_decoder = msgspec.json.Decoder(_RecordHead)


def version_of(record: Record) -> int:
    """The version that a record bears: its `v`, or more if its content needs more."""
    return max(record.v, _NEEDED(record))


def encode_record(record: Record, version: int | None = None) -> bytes:
    """JSON of a record, with its version written out. `version` is what `version_of` says, where that is known already."""
    if version is None:
        version = version_of(record)
    if version == FIRST:
        return _FIRST_HEAD + _encoder.encode(record)[1:]
    body = _encoder.encode(structs.replace(record, v=FIRST))
    # Written so that the first build, which looks at bytes before it decodes, takes it neither for a `rest` nor for a tombstone
    # that it knows: an agent that it cannot read must not hold up the others (docs/compatibility.md#what-the-first-build-does).
    return b'{"v":%d,"blob":0,"kind": ' % version + body.removeprefix(_KIND)


def decode_record(body: bytes) -> Record:
    """The record in `body`.

    Raises:
        msgspec.DecodeError: it is no record.
        ValueError: a newer version wrote it.
    """
    try:
        record = _decoder.decode(body)
    except msgspec.ValidationError:
        _check_version(version_in(body))  # a newer record may well have another form
        raise
    _check_version(record.v)
    return record


def version_in(body: bytes) -> int:
    """The version of the record in `body`, which may be one that this build does not read.

    Raises:
        msgspec.DecodeError: it is no record.
    """
    return _head_decoder.decode(body).v


def _check_version(version: int) -> None:
    if version > RECORD_VERSION:
        raise ValueError(
            f"the journal holds a record of version {version}; this program reads up to {RECORD_VERSION}: upgrade it"
        )


def is_rest(body: bytes) -> bool:
    """Whether `body` may be a record of the kind `rest`: cheaper than decoding all others."""
    return b'"kind":"rest"' in body or b'"kind": "rest"' in body[:48]


def record_in(body: bytes, *, marked: bool) -> Record | None:
    """The record in a message of a journal; None if that message is not the mesh's.

    Args:
        marked: whether the message bears the header that every record bears. One without it may be of an early program, and is
            known by its form.

    Raises:
        UnreadableRecord: it is the mesh's, and this program cannot read it.
    """
    try:
        return decode_record(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        if not marked:
            return None
        raise UnreadableRecord(
            f"cannot be read ({error}): a newer program has written it, or it is damaged; start a node of the newest version, or "
            "restore the store from its backup",
            details=_version_details(body),
        ) from None


def _version_details(body: bytes) -> dict[str, Any]:
    """The version of a record that cannot be read, if that can be told."""
    try:
        return {"version": version_in(body)}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}
