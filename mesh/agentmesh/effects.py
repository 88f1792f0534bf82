"""What a committed record calls for (docs/architecture.md#effects): one tagged union, as it stands in journals."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentmesh.budget import Limits
from agentmesh.identity import Party
from agentmesh.registry_values import Restart
from agentmesh.wire import ErrorBody, Outcome, PromptBody


class Resolve(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="resolve", tag_field="t"):
    """Store a request's outcome, and publish it to the caller if it waits on a subject."""

    outcome: Outcome
    reply_to: str | None = None
    stream_to: str | None = None
    key: str | None = None
    """The digest of the request's key (agentmesh.keys), which the stored outcome bears."""


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
    chain: tuple[Party, ...] = ()
    """On whose behalf this is sent, the sender last; empty where no user is known (agentmesh.identity)."""


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
    trace: dict[str, str] = {}
    """The context of what set it, as the headers of its ticks."""


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
    key: str | None = None
    """The digest of the repetition's key (agentmesh.keys): without the first one's key it gets `not_permitted`."""


class Bury(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="bury", tag_field="t"):
    """Make an input a dead letter. Its body is read from its lane, by sequence, when this effect is performed."""

    lane: str
    seq: int
    reason: ErrorBody
    text: str | None = None
    trace: dict[str, str] = {}
    """The context of what it was, as headers: what is sent again goes on below it."""


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
