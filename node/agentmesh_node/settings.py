"""Settings of a node and of a supervisor: times and bounds."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.trace.spans import TraceFacts
from agentmesh_node.telemetry.events import FactHandler

STALL_LIMIT_S = 60.0
"""After this long without a turn of its main loop a process ends: a hang is a death too (docs/architecture.md#poison)."""


class ModelServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server of models that stands behind the agents of a node (`--model`). Addresses are as the SDKs take them.

    Its key, where it has one, is the variable MESH_MODEL_KEY of the node's environment and stands nowhere else.
    """

    model: str
    """The model that is asked where an agent names none of the server's."""
    messages: str | None = None
    """Where it speaks the Messages API; None where it does not."""
    chat: str | None = None
    """Where it speaks Chat Completions."""
    responses: str | None = None
    """Where it speaks Responses."""
    models: tuple[str, ...] = ()
    """The models that it lists."""
    context: int | None = None
    """Tokens of the model's context, where the server says so."""
    most_tokens: int | None = None
    """Most tokens of one answer."""
    most_answers: int | None = None
    """Most answers in one turn."""

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self.messages or self.chat or self.responses or ""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node runs. Times are in seconds."""

    node_id: str
    agents: dict[str, type[Agent[Any]]]
    """The kinds that it serves, by name."""
    code: dict[str, str] = {}
    """By kind: the version of its code (`agentmesh_node.process.code_versions`)."""
    labels: dict[str, str] = {}
    capacity: int = 0
    """Most agents; 0 is no bound."""
    root: str = "mesh"
    lease_ttl_s: int = 3
    """How long the node's lease outlives its last renewal; renewed every third of it."""
    drain_s: float = 20.0
    """Longest that a running turn may hold up a drain."""
    rest_s: float = 1.0
    """Idle time after which a `rest` record is written."""
    passivate_s: float = 300.0
    """Idle time after which an agent sleeps: only its subscription is kept."""
    stall_limit_s: float = STALL_LIMIT_S
    """How long the loop may hang until the process ends itself."""
    awake: int = 5000
    """Most agents that should be loaded (some 20 kB each); if more are, idle ones sleep almost at once."""
    activations: int = 64
    """Most agents that are activated at the same time."""
    children: int = 0
    """Most child processes (Claude Code, Codex) of one backend that run at the same time; 0 is no bound. Further turns wait, and
    their watchdogs run meanwhile. A turn that asks another agent keeps its slot: with fewer slots than such turns, they wait for
    one another until they time out."""
    mcp_children: int = 64
    """Most MCP servers that run as child processes at the same time. For another one, one that no call uses is ended; if there is
    none the call waits for half a minute, and fails."""
    callers_waiting: int = 10_000
    """Most messages from other accounts that may wait for the agents of one prefix, where this process takes them."""
    callers_rate: float = 0.0
    """Most messages from other accounts a second that this process takes for the agents of one prefix; 0 is no bound."""
    snapshot_records: int = 256
    """Records of a journal after which the next one is a snapshot: the most that a recovery reads."""
    history: int = 32
    """Turns that an agent's journal shows at least, once it has had so many. A journal also has those since its last snapshot."""
    wait_patience_s: float = 10.0
    """How long a turn waits for an agent that is halted, or that no node runs; never less than a takeover may take."""
    mailbox_limit: int = 1000
    """Most messages that are stored in a mail lane, as its stream has it. Half of them may be consumed and not purged yet: what a
    lane always takes is half as many that wait."""
    content: bool = False
    """Whether lifecycle facts on the wire include prompts, events and states."""
    trace_facts: TraceFacts = "attempts"
    metrics_agents: bool = False
    """Whether metrics of turns bear the agents' names: a set of numbers for each agent, and not only for each kind."""
    model: ModelServer | None = None
    """What agents of the backends `scripted`, `anthropic` and `openai` ask in place of what their environment names."""
    files: str = ""
    """Directory under which backends keep their agents' files, each node in a part of its own; by default one of this user's
    under the system's temporary directory."""
    handlers: tuple[FactHandler, ...] = ()
    """Called in this process for each lifecycle fact (agentmesh_node.telemetry.events), without content."""


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a supervisor. docs/operations.md#times says what other values cost."""

    lease_ttl_s: int = 3
    """TTL of the leader's lease, whole seconds (the server knows no shorter), renewed every third of it."""
    hang_s: float = 5.0
    """A supervisor gives the lead back when its main loop has not turned for so long, or its connection has carried nothing."""
    stall_limit_s: float = STALL_LIMIT_S
    """After this long without a turn of its main loop the process ends."""
    ping_period_s: float = 0.1
    """Time between two pings of each node (and, by the standbys, of the leader)."""
    grace_s: float = 0.25
    """How long *no responders* must last until a process counts as dead."""
    settle_s: float = 3.0
    """After an election or a cut-off, how long a node that still answers may be without a lease: a node's lease TTL."""
    replan_s: float = 5.0
    """Time between two plans of everything although nothing seems to have changed."""
    reason_delay_s: float = 0.25
    """How long an agent must have waited before the reason is written to its spec: most waits are shorter."""
    writes_in_flight: int = 64
    """Most registry writes under way at one time."""
    callers_waiting: int = 10_000
    """Most messages from other accounts that may wait for the agents of one prefix, where this process takes them."""
    callers_rate: float = 0.0
    """Most messages from other accounts a second that this process takes for the agents of one prefix; 0 is no bound."""
    unclaimed_age_s: float = 3600.0
    """How long mail for a name that no agent has is kept; then it becomes dead letters."""
    unclaimed_names: int = 10_000
    """Most such names for which mail is kept; beyond, the oldest mail is ended first."""
    unclaimed_bytes: int = 64 << 20
    """Most bytes of such mail."""
