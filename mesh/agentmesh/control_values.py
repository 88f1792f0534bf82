"""Requests to an agent or a node that are answered at once, and what they answer (docs/protocol.md#control-requests)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentmesh.registry_values import Restart
from agentmesh.wire import VERSION, ErrorBody


class Probe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Looks for a circle of waits (agentmesh.turn.wait_cycles)."""

    id: str
    """Random: only the agent that sent it recognises it when it comes back."""
    root: str
    """The agent that sent it; `since` and `origin` tell for which of its waits."""
    since: float
    origin: str
    sender: str
    """The agent that handed it on: it waits for the outcome of `request`, an origin."""
    request: str


class Adjustment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a `set` request changes of an agent's configuration; None leaves a part as it is."""

    backend_options: dict[str, Any] = {}
    """Merged into those in force, key by key; null removes a key."""
    budget: dict[str, Any] | None = None
    """The whole budget of each turn; empty: no bounds."""
    watchdog_s: float | None = None
    restart: Restart | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force for an agent. `tag` names these very values: a `set` that expects it fails if they have changed."""

    backend_options: dict[str, Any] | None
    """None: too large to be shown (`MAX_SHOWN`)."""
    budget: dict[str, Any]
    watchdog_s: float
    restart: Restart
    labels: dict[str, str]
    """The spec's, without those of the mesh's own."""
    sets: int
    """How often it was changed in this life."""
    tag: str


MAX_SHOWN = 64 << 10
"""Most bytes of backend options, as JSON, that a status shows."""


class ControlRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request to `mesh.live.control.<agent>` or `mesh.node.<id>`; to `mesh.live.control-<op>.<agent>` `op` may be left out."""

    op: str = ""
    ref: str | int | None = None
    """A ref is a sequence, so it may be a number as well as a text; `ref_of` gives the text."""
    content: bool = False
    id: str | None = None
    text: str | None = None
    """`reply`: the answer."""
    event: Any = None
    at: str | None = None
    after_s: float | None = None
    every_s: float | None = None
    on: bool = True
    agents: tuple[str, ...] = ()
    probe: Probe | None = None
    set: Adjustment | None = None
    tree: bool = False
    """`cancel`: end the request also if it runs or is open."""
    sender: str | None = None
    """`open`: the agent that has sent a request, and `origin`, by which it is known."""
    origin: str | None = None
    expect: str | None = None
    """`set`: the tag that the configuration must have (`Configuration.tag`)."""
    node: str | None = None
    """`move`: where the agents are to go."""
    any_turn: bool = False
    """`release`: also agents in turns that tell of no calls. Such a turn ends, or is cut off as by a drain."""


def ref_of(request: ControlRequest) -> str | None:
    """The ref that a request names, as text."""
    return None if request.ref is None else str(request.ref)


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deferred request that is open."""

    ref: str
    sender: str | None = None
    """The agent that asked; None for the world outside."""
    since: str | None = None
    """When it was deferred (RFC 3339); None if a build did that which did not say."""
    deadline: str | None = None
    """When it ends with `expired` (RFC 3339), by the request's deadline or the agent's `defer_s`."""
    exclusive: bool = False
    """Prompts wait for it."""


MAX_OPEN = 100
"""Most open requests that a status shows, the oldest ones."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to `status`. `agent_state` only where content is asked for."""

    v: int = VERSION
    name: str
    kind: str
    backend: str
    state: Literal["idle", "processing"]
    halted: bool
    queued: int
    current_request: str | None
    node: str
    incarnation: str
    generation: int
    turn: int
    usage: dict[str, Any]
    failed: ErrorBody | None = None
    waiting: ErrorBody | None = None
    """Why it cannot be run where it is placed, and waits."""
    configuration: Configuration | None = None
    """What is in force; an owner of an older build does not tell."""
    since: str | None = None
    """When the running turn began (RFC 3339)."""
    sender: str | None = None
    """The agent that the running turn is for; None for the outside, and for the agent itself."""
    tool: str | None = None
    """The tool that the running turn waits for."""
    callback: str | None = None
    """The callback that runs: of a turn, or of a start, an event or an end. None while none runs."""
    open: tuple[OpenRequest, ...] = ()
    """The deferred requests that are open, the oldest first (`MAX_OPEN` at most)."""
    open_more: int = 0
    """How many more there are."""
    agent_state: Any = msgspec.UNSET


class Activity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent that is loaded is doing: a part of a node's reply to `agents`. Those that sleep have no such part."""

    name: str
    state: Literal["idle", "processing"]
    halted: bool = False
    queued: int = 0
    open: int = 0
    """Deferred requests that are open."""
    since: str | None = None
    """This, `sender` and `tool` as in `Status`."""
    sender: str | None = None
    tool: str | None = None
    steps: int = 0
    """Steps that the running turn has taken."""
    usd: float = 0.0
    """What the agent has cost in this life, the running turn and the agents that it asked included."""


class Activities(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of a node to `agents`."""

    v: int = VERSION
    agents: tuple[Activity, ...] = ()
    more: int = 0
    """Further agents that are loaded, for which there was no room; those in a turn, and those with a queue, come first."""


class NodeStats(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of a node to `ping`."""

    v: int = VERSION
    node: str
    boot: str
    agents: int
    running: int
    lag_ms: float
    draining: bool
    awake: int = 0
    """Agents that are loaded; of each other agent there is only a subscription."""
    busy: tuple[str, ...] = ()
    """Some of the agents that are in a turn, if the ping asks for content: should the node die, they are placed first."""
    time: str | None = None
    """The process's own clock, if the request is `stats`."""
    server_time: str | None = None
    """The servers' time as the process estimates it, at the same moment."""
    dropped: int = 0
    """Live events and facts that the process could not send and has dropped since it began."""
