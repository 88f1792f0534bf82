"""What the registry holds: specs of agents, leases, placements (docs/protocol.md#the-registry)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from agentmesh.formats import FIRST
from agentmesh.wire import ErrorBody, _encoder, encode

type AgentStatus = Literal["wanted", "running", "failed", "stopping", "stopped"]
type RestartPolicy = Literal["permanent", "transient", "temporary"]


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """How often an agent whose own code crashes is restarted (as OTP's supervisors do)."""

    policy: RestartPolicy = "permanent"
    max: int = 5
    within_s: float = 60.0


class By(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that last changed a spec by an effect, and the effect's origin."""

    sender: str
    origin: str


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Registry `agents.<agent>`: what should run."""

    kind: str
    incarnation: str
    status: AgentStatus = "wanted"
    backend: str | None = None
    options: dict[str, Any] = {}
    labels: dict[str, str] = {}
    restart: Restart = Restart()
    watchdog_s: float | None = None
    budget: dict[str, Any] | None = None
    parent: str | None = None
    """With `link=True`: the agent whose end also ends this one."""
    parent_life: str | None = None
    """The parent's incarnation: another agent of its name is not its parent."""
    by: By | None = None
    reason: ErrorBody | None = None
    """Why it is `failed`, `stopping`, `stopped`, or still `wanted`."""
    since: str | None = None
    """When `status` was set (RFC 3339)."""
    ran: bool = False
    """An owner has shown it as running in this life, so its journal cannot be empty."""
    backend_options: dict[str, Any] | None = None
    """What the start asks of the backend, over what `init_agent` chooses. Once `mesh set` has changed the agent's configuration,
    the backend options in force."""
    sets: int = 0
    """How many changes of the configuration the fields above show; the journal decides what is in force."""
    move_to: str | None = None
    """The node that an operator has ordered it to move to. The leader clears it once the agent is there, or cannot be."""
    answer_schema: dict[str, Any] | None = None
    """JSON schema of its answers, where its class declares their type. Its owner writes it."""
    turn_code: str | None = None
    """The version of the code with which the turn began that its last owner has handed on, if other nodes serve it, but not all.
    The leader clears it when it has placed the agent."""


def parent_sign(parent: str) -> bytes:
    """What `encode` writes into each spec whose agent is linked to `parent`: looking for it costs less than decoding.

    It may stand in other specs too (in their options), so one that has it must be decoded all the same.
    """
    return b'"parent":' + encode(parent)


_SPEC_FIELDS = frozenset(Spec.__struct_fields__)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def unknown_fields(value: bytes | None) -> dict[str, msgspec.Raw]:
    """What a stored spec has beyond what this build knows: a newer one has put it there."""
    if value is None:
        return {}
    return {name: raw for name, raw in _fields_decoder.decode(value).items() if name not in _SPEC_FIELDS}


def encode_spec(spec: Spec, over: bytes | Mapping[str, msgspec.Raw] | None = None) -> bytes:
    """JSON of a spec, which is to replace the stored one `over` (or one with these unknown fields) of the same life: what this
    build does not know of that stays as it is."""
    body = _encoder.encode(spec)
    unknown = over if isinstance(over, Mapping) else unknown_fields(over)
    return body[:-1] + b"," + _encoder.encode(unknown)[1:] if unknown else body


class NodeLease(msgspec.Struct, frozen=True, kw_only=True):
    """Registry `nodes.<id>`: a node that is alive. The key has a TTL."""

    boot: str
    kinds: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    capacity: int = 0
    """Most agents it takes; 0 is no bound."""
    agents: int = 0
    version: str = ""
    started: str = ""
    draining: bool = False
    cordoned: bool = False
    reads: int = FIRST
    """The newest version of records that the process reads; absent in the first build."""
    facts: str = "off"
    """Which facts of traces it publishes: `off`, `attempts` or `all`."""
    waiting: dict[str, int] = {}
    """By the first token of agents' names: the messages that wait for the agents it runs, where they are many."""
    by_operation: bool = False
    """Its agents take control requests whose subject names the operation (`agentmesh.control_operations`)."""
    code: dict[str, str] = {}
    """By kind: the version of its code, a hash of the sources of the package in which it lies, where that can be told."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Registry `placements.<node>.<agent>`: the node runs the agent. The key's revision is the generation."""

    incarnation: str
    since: str = ""


class SupervisorLease(msgspec.Struct, frozen=True, kw_only=True):
    """Registry `supervisor`: the leader. The key has a TTL."""

    id: str
    since: str = ""
    reads: int = FIRST
    """As in `NodeLease`."""
