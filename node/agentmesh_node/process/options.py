"""What an operator may set of a node, a supervisor and their streams: by option, else by environment variable, within bounds.

An option is named as its variable: `--lease-ttl` and MESH_LEASE_TTL_S. What other values cost: docs/operations.md#times. Nothing
but the parser is imported here, for `mesh --help` reads this. A test compares the defaults with `agentmesh_node.settings`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

MOST = 1_000_000
"""Agents on one node: far more than its loop could serve."""
TIMES = Group("Times and bounds", sort_key=99)


def _unless_empty(_: Any, value: str, delimiter: str | None = None) -> list[str]:
    """A variable that is empty is not set."""
    return [value] if value else []


def _whole(_: type, tokens: Sequence[Token]) -> int:
    """The parser would round what is no whole number."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text} is no whole number.") from None


class _Within(Number):
    """A range that says of "not a number" that it is none."""

    def __call__(self, type_: Any, value: Any) -> None:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"Must be a number from {self.gte} to {self.lte}.")
        super().__call__(type_, value)


def within(low: float, high: float, text: str, *, whole: bool = True) -> Parameter:
    """An option without a variable: a number from `low` to `high`. `text` is its help."""
    return Parameter(validator=_Within(gte=low, lte=high), converter=_whole if whole else None, help=text)


def _bounded(variable: str, low: float, high: float, text: str, *, whole: bool = False) -> Parameter:
    name = variable.removeprefix("MESH_").removesuffix("_S").lower().replace("_", "-")
    return Parameter(
        name=f"--{name}",
        env_var=variable,
        env_var_split=_unless_empty,
        converter=_whole if whole else None,
        validator=_Within(gte=low, lte=high),
        group=TIMES,
        help=f"{text} [{low} to {high}]",
    )


_TraceFacts = Annotated[
    Literal["off", "attempts", "all"],
    Parameter(
        env_var="MESH_TRACE_FACTS",
        env_var_split=_unless_empty,
        help="Facts of traces that it publishes: none, of turns that last, or all, which `mesh graph` needs.",
    ),
]


_LOGIN = Group("Who connects, and whom it believes", sort_key=98)


def _login(text: str) -> Parameter:
    return Parameter(group=_LOGIN, negative="", show_default=False, help=text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LoginOptions:
    """Where to connect by a context of the NATS CLI, and the fields of `agentmesh.edge.login.Login` that are no secrets."""

    context: Annotated[str | None, _login("Context of the NATS CLI, a name or a path; else MESH_CONTEXT.")] = None
    creds: Annotated[str | None, _login("File with a user's credentials; else MESH_CREDS.")] = None
    nkey: Annotated[str | None, _login("File with the seed of a user's nkey; else MESH_NKEY.")] = None
    tls_ca: Annotated[str | None, _login("PEM file of the authorities to believe; else MESH_TLS_CA, else the system's.")] = None
    tls_cert: Annotated[str | None, _login("PEM file of this process's certificate; else MESH_TLS_CERT.")] = None
    tls_key: Annotated[str | None, _login("PEM file of its key; else MESH_TLS_KEY.")] = None
    tls_first: Annotated[bool, _login("Make TLS before the server speaks; else MESH_TLS_FIRST=1.")] = False
    inbox_prefix: Annotated[str | None, _login("Where answers are heard; else MESH_INBOX_PREFIX, else _INBOX.USER.")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Fields of `NodeSettings`."""

    capacity: Annotated[int, within(0, MOST, "Most agents it takes; 0 is no bound.")] = 0
    content: Annotated[
        bool,
        Parameter(
            negative="",
            env_var="MESH_CONTENT",
            env_var_split=_unless_empty,
            help="Put prompts, events and states into lifecycle events.",
        ),
    ] = False
    trace_facts: _TraceFacts = "attempts"
    metrics_agents: Annotated[
        bool,
        Parameter(
            negative="",
            env_var="MESH_METRICS_AGENTS",
            env_var_split=_unless_empty,
            help="Label the metrics of turns with the agents' names, not only with their kinds.",
        ),
    ] = False
    files: Annotated[
        str,
        Parameter(
            env_var="MESH_FILES",
            env_var_split=_unless_empty,
            show_default=False,
            help="Directory of the files of backends that run programs; by default under the system's temporary directory.",
        ),
    ] = ""
    lease_ttl_s: Annotated[
        int, _bounded("MESH_LEASE_TTL_S", 1, 60, "Seconds that its lease outlives the last renewal.", whole=True)
    ] = 3
    drain_s: Annotated[float, _bounded("MESH_DRAIN_S", 0, 3600, "Longest that a running turn may hold up a drain.")] = 20.0
    rest_s: Annotated[
        float, _bounded("MESH_REST_S", 0.1, 60, "Idle seconds after which an agent's journal says that nothing is left to do.")
    ] = 1.0
    passivate_s: Annotated[
        float, _bounded("MESH_PASSIVATE_S", 0.5, 86_400, "Idle seconds after which an agent sleeps: only a subscription is kept.")
    ] = 300.0
    awake: Annotated[
        int,
        _bounded("MESH_AWAKE", 0, 1_000_000, "Agents that may be loaded; beyond, idle ones sleep at once.", whole=True),
    ] = 5000
    activations: Annotated[
        int, _bounded("MESH_ACTIVATIONS", 1, 1024, "Agents that are activated at the same time, at most.", whole=True)
    ] = 64
    history: Annotated[
        int,
        _bounded("MESH_HISTORY", 1, 1000, "Turns of an agent that `mesh history` shows at least.", whole=True),
    ] = 32
    wait_patience_s: Annotated[
        float,
        _bounded("MESH_WAIT_PATIENCE_S", 1, 86_400, "Seconds that a turn waits for an agent that is halted or without a node."),
    ] = 10.0
    children: Annotated[
        int,
        _bounded("MESH_CHILDREN", 0, 10_000, "Child processes of one backend at a time, at most; 0 is no bound.", whole=True),
    ] = 0
    mcp_children: Annotated[
        int,
        _bounded("MESH_MCP_CHILDREN", 1, 10_000, "MCP servers that run as child processes at a time, at most.", whole=True),
    ] = 64


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UpOptions(NodeOptions):
    """Those of the node of `mesh up`."""

    trace_facts: _TraceFacts = "all"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """Fields of `SupervisorSettings`."""

    lease_ttl_s: Annotated[
        int, _bounded("MESH_LEADER_TTL_S", 1, 60, "Seconds that the leader's lease outlives the last renewal.", whole=True)
    ] = 3
    hang_s: Annotated[
        float,
        _bounded("MESH_LEADER_HANG_S", 1, 60, "Seconds that a leader may hang until it gives up the lead."),
    ] = 5.0
    ping_period_s: Annotated[
        float, _bounded("MESH_PING_PERIOD_S", 0.02, 10, "Seconds between two pings of a node, and of the leader.")
    ] = 0.1
    grace_s: Annotated[
        float, _bounded("MESH_GRACE_S", 0.05, 30, "Seconds without responders until a process counts as dead.")
    ] = 0.25
    settle_s: Annotated[
        float, _bounded("MESH_SETTLE_S", 0.5, 120, "Seconds after an election that a node may be without a lease.")
    ] = 3.0
    unclaimed_age_s: Annotated[
        float, _bounded("MESH_UNCLAIMED_AGE_S", 1, 30 * 86_400, "Seconds that mail for a name that no agent has is kept.")
    ] = 3600.0
    unclaimed_names: Annotated[
        int, _bounded("MESH_UNCLAIMED_NAMES", 0, 1_000_000, "Most such names for which mail is kept.", whole=True)
    ] = 10_000
    unclaimed_bytes: Annotated[int, _bounded("MESH_UNCLAIMED_BYTES", 0, 1 << 40, "Most bytes of such mail.", whole=True)] = (
        64 << 20
    )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Fields of `agentmesh.edge.streams.StreamSettings`. What is not set leaves what exists as it is."""

    duplicate_window_s: Annotated[
        float | None,
        _bounded("MESH_DUPLICATE_WINDOW_S", 1, 86_400, "Seconds that a message sent again is known; by default 120."),
    ] = None
    results_age_s: Annotated[
        float | None, _bounded("MESH_RESULTS_AGE_S", 1, 30 * 86_400, "Seconds that outcomes are kept; by default 3600.")
    ] = None
    results_bytes: Annotated[
        int | None,
        _bounded("MESH_RESULTS_BYTES", 1 << 20, 1 << 44, "Bytes of outcomes that are kept; by default 512 MiB.", whole=True),
    ] = None
    trace_age_s: Annotated[
        float | None, _bounded("MESH_TRACE_AGE_S", 1, 366 * 86_400, "Seconds that facts of traces are kept; by default 604800.")
    ] = None
    trace_bytes: Annotated[
        int | None,
        _bounded("MESH_TRACE_BYTES", 1 << 20, 1 << 44, "Bytes of facts of traces that are kept; by default 256 MiB.", whole=True),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What each process of a mesh has: bounds for its loop, and for what it takes from callers."""

    stall_limit_s: Annotated[
        float, _bounded("MESH_STALL_LIMIT_S", 1, 3600, "Seconds that the main loop may hang until the process ends itself.")
    ] = 60.0
    callers_waiting: Annotated[
        int,
        _bounded("MESH_CALLERS_WAITING", 1, 100_000_000, "Messages of other accounts that may wait for one prefix.", whole=True),
    ] = 10_000
    callers_rate: Annotated[
        float, _bounded("MESH_CALLERS_RATE", 0, 1_000_000, "Messages of other accounts a second for one prefix; 0 is no bound.")
    ] = 0.0
