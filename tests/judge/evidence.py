"""What a run leaves behind, and what the verdict rests on.

A simulated run and a real one record it in ways of their own, but both record the same: each call of a client, each message
that a stream ever stored (what was purged or rolled up later too), each outcome that was told to a caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from agentmesh.records import Record
from agentmesh.trace.spans import Began, ToldSpan
from agentmesh.wire import Outcome, decode_outcome


class State(msgspec.Struct):
    """What an agent of a run knows.

    `log` has one entry for each thing consumed, `<kind>|<sender>|<label>`. An agent may forget the oldest, so that long runs do
    not grow its state: `dropped` says how many, and the journal's earlier records have them. `count` is the agent's own count of
    prompts, events and timers.
    """

    next: str = ""
    count: int = 0
    log: list[str] = []
    dropped: int = 0
    pad: str = ""
    """Weight: with it a record may be larger than a message."""


class Operation(msgspec.Struct):
    """One call of a client. `ref`: it was accepted. Neither `ref` nor `error`: it was under way when the client ended."""

    client: str
    kind: str
    agent: str
    label: str
    began: float
    ended: float | None = None
    ref: str | None = None
    outcome: Outcome | None = None
    error: str | None = None
    user: str = ""
    """Whose it is, of a request that came from another account."""
    key: str = ""
    """Its key, if it has one."""


class Letter(msgspec.Struct, frozen=True):
    """One stored message of a mail lane. `text` is a prompt's text, or "" """

    seq: int
    lane: str
    agent: str
    text: str
    label: str
    headers: Mapping[str, str]
    at: float = 0.0
    """When it was stored, by the run's clock."""

    @property
    def is_prompt(self) -> bool:
        return self.lane in ("inbox", "peer-inbox")


OWN_POLL, OTHERS_POLL, OTHERS_CANCEL = "own poll", "others' poll", "others' cancel"
"""Kinds of operations: who has sent a request with a key polls it with that; somebody polls or cancels it without it, or with
another. `error` is None where that was told or did something."""
OTHERS = frozenset((OTHERS_POLL, OTHERS_CANCEL))


class Call(msgspec.Struct, frozen=True):
    """A call of a model, as it began."""

    agent: str
    ref: str
    node: str
    at: float
    chain: str = ""
    """On whose behalf its turn said that it runs (`agentmesh.identity.told`)."""


class TurnCall(msgspec.Struct):
    """A call of a model, or a run of a tool, in a turn that tells of its calls."""

    agent: str
    turn: str
    """The turn's name (`Steps.key`): the same over all its owners."""
    what: str
    """Which call of the turn it is: the same for each owner that makes it."""
    node: str
    at: float
    end: Literal["open", "done", "failed", "cut"] = "open"
    """`done`: its step is committed. `failed`: by itself. `cut`: somebody else ended it."""


class LiveMessage(msgspec.Struct, frozen=True):
    """A live event, as an owner sent it."""

    reader: str
    """The subject that it went to."""
    type: str
    seq: int
    owner: int
    run: str
    step: int
    text: str = ""
    restart: bool = False


class Payment(msgspec.Struct, frozen=True):
    """What a `once` tool has done, as it was done."""

    agent: str
    tool: str
    """`pay` is done as often as it is called; `transfer` once for each key."""
    to: str
    key: str
    node: str
    at: float


class Evidence(msgspec.Struct):
    """All that the verdict rests on."""

    operations: Sequence[Operation] = ()
    letters: Sequence[Letter] = ()
    journals: Mapping[str, Sequence[tuple[int, Record]]] = {}
    """Every record ever appended, by agent."""
    results: Sequence[Outcome] = ()
    """Every outcome ever stored."""
    told: Sequence[Outcome] = ()
    """Every outcome that was published to a caller."""
    calls: Sequence[Call] = ()
    payments: Sequence[Payment] = ()
    turn_calls: Sequence[TurnCall] = ()
    live: Sequence[LiveMessage] = ()
    """Every live event that was sent, for simulated runs."""
    recorded: Mapping[int, float] = {}
    """By sequence, for simulated runs: when each record was stored."""
    decided: Sequence[Call] = ()
    """The turns that agents decided, each as its agent saw it."""
    stored: Mapping[tuple[str, str], float] = {}
    """When each outcome was stored, by agent and ref, for simulated runs."""
    epoch: float = 0.0
    """When the run's clock began, in seconds since the epoch."""
    owners: Mapping[str, Sequence[tuple[float, str]]] = {}
    """By agent, for simulated runs: when each `activated` record was stored, and of which node."""
    begun: Sequence[Began] = ()
    """Every fact that an attempt began, as the stream of facts got it."""
    spans: Sequence[ToldSpan] | None = None
    """Every span that a fact has told, likewise; None: the run has not recorded that stream."""
    calm: float | None = None
    """When the last fault was over, if that is known."""


WITHDRAWS = "=-"
"""How the label of a withdrawal begins; the request's origin follows."""


def letter_of(seq: int, lane: str, agent: str, body: bytes, headers: Mapping[str, str], *, at: float = 0.0) -> Letter:
    """A stored message of a lane, as the agents of a run write it: a prompt is `<verb> <label> ...`; an event is an object with a
    label, the outcome of a request of another agent, or the withdrawal of one."""
    if lane in ("inbox", "peer-inbox"):
        text = body.decode()
        return Letter(seq, lane, agent, text, text.split()[1], headers, at)
    value = msgspec.json.decode(body)
    if "withdraws" in value:
        return Letter(seq, lane, agent, "", f"{WITHDRAWS}{value['withdraws']}", headers, at)
    label = value["label"] if "label" in value else f"={value['ref']}"
    return Letter(seq, lane, agent, "", label, headers, at)


def live_in(reader: str, body: bytes) -> LiveMessage | None:
    """The live event in a message that went to `reader`; None, if it is something else."""
    if b'"run":' not in body:
        return None
    try:
        value = msgspec.json.decode(body)
        return msgspec.convert({**value, "reader": reader}, LiveMessage)
    except (msgspec.MsgspecError, TypeError):
        return None


def outcome_of(body: bytes) -> Outcome | None:
    """The outcome in what a caller was sent; None, if it is something else, as a live event is."""
    if b'"run":' in body and live_in("", body) is not None:
        return None
    try:
        outcome = decode_outcome(body)
    except msgspec.DecodeError:
        return None
    return outcome if outcome.ref else None
