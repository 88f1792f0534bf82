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

from agentmesh.effects import Bury, CancelTimer, Echo, Effect, Resolve, SendMail, SetTimer, StartAgent, StopAgent, target_of
from agentmesh.errors import UnreadableRecord
from agentmesh.formats import FIRST, RECORD_VERSION, needed_by
from agentmesh.ledger_entries import (
    NOTHING,
    Awaited,
    Caller,
    Deferred,
    Delegated,
    Derived,
    Handled,
    Inner,
    KeptTurn,
    Notice,
    Open,
    Overrides,
    Queued,
    Seen,
    SetInfo,
    Shown,
    Step,
    TimerEntry,
    Traced,
    TurnBefore,
    TurnInfo,
    Turning,
    Wait,
)
from agentmesh.wire import ErrorBody

__all__ = [
    "NOTHING",
    "Awaited",
    "Bury",
    "Caller",
    "CancelTimer",
    "Change",
    "Deferred",
    "Delegated",
    "Derived",
    "Echo",
    "Effect",
    "Handled",
    "Inner",
    "KeptTurn",
    "Ledger",
    "LifePhase",
    "Notice",
    "Open",
    "Overrides",
    "Queued",
    "Record",
    "RecordKind",
    "Resolve",
    "Seen",
    "SendMail",
    "SetInfo",
    "SetTimer",
    "Shown",
    "StartAgent",
    "Step",
    "StopAgent",
    "TimerEntry",
    "Traced",
    "TurnBefore",
    "TurnInfo",
    "Turning",
    "Wait",
    "decode_record",
    "encode_record",
    "is_rest",
    "record_in",
    "target_of",
    "version_in",
    "version_of",
]


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
    causes: tuple[str, ...] = ()
    """The spans of the events handled since the last turn began, as links have them: a prompt that `handle_event` makes links to
    them. At most `agentmesh.turn.tracing.MAX_CAUSES`."""


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
    causes: tuple[str, ...] | UnsetType = UNSET

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
    attempt: TurnInfo | None = None
    """An attempt that ended and is no turn of the history: it crashed and is tried again, `pre_turn` refused its prompt, or the
    agent's end cut it off."""
    handled: tuple[Handled, ...] = ()
    """The messages that it consumed without a turn, where turns are traced."""
    snapshot: Ledger | None = None
    trace: dict[str, str] = {}
    step: Any = None
    """Nothing writes this: steps are part of the ledger, so they stand in `change`."""
    positions: dict[str, int] | None = None
    """`rest`: every lane's position, so that a new owner sees from this record alone whether there is work."""
    placed: float | None = None
    """`activated`: when the owner was given the agent, in seconds since the epoch. Mail that is older has met a takeover."""
    open: int | None = None
    """`rest`: how many requests are open meanwhile, of others at this agent or of this one at others (`ledger.open_count`): while
    it is 0, nobody waits for the agent and it waits for nobody. None: a build that did not say."""
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
