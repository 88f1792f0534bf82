"""Times and switches that an operator may set, by environment variables, with their bounds (docs/operations.md has the table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agentmesh.errors import BadRequest


class Setting(NamedTuple):
    """One number: the field of the settings, the variable that sets it, and its bounds."""

    field: str
    variable: str
    low: float
    high: float
    whole: bool = False
    """Whole numbers only: the server counts TTLs in seconds."""


NODE = (
    Setting("lease_ttl_s", "MESH_LEASE_TTL_S", 1, 60, whole=True),
    Setting("drain_s", "MESH_DRAIN_S", 0, 3600),
    Setting("rest_s", "MESH_REST_S", 0.1, 60),
    Setting("passivate_s", "MESH_PASSIVATE_S", 0.5, 86_400),
    Setting("awake", "MESH_AWAKE", 0, 1_000_000, whole=True),
    Setting("activations", "MESH_ACTIVATIONS", 1, 1024, whole=True),
    Setting("children", "MESH_CHILDREN", 0, 10_000, whole=True),
    Setting("stall_limit_s", "MESH_STALL_LIMIT_S", 1, 3600),
)
SUPERVISOR = (
    Setting("lease_ttl_s", "MESH_LEADER_TTL_S", 1, 60, whole=True),
    Setting("hang_s", "MESH_LEADER_HANG_S", 1, 60),
    Setting("stall_limit_s", "MESH_STALL_LIMIT_S", 1, 3600),
    Setting("ping_period_s", "MESH_PING_PERIOD_S", 0.02, 10),
    Setting("grace_s", "MESH_GRACE_S", 0.05, 30),
    Setting("settle_s", "MESH_SETTLE_S", 0.5, 120),
)
RESULTS = (
    Setting("results_age_s", "MESH_RESULTS_AGE_S", 1, 30 * 86_400),
    Setting("results_bytes", "MESH_RESULTS_BYTES", 1 << 20, 1 << 44, whole=True),
)
"""How long and how much of outcomes is kept, where this process is the one that makes the streams."""
STREAMS = (*RESULTS, Setting("duplicate_window_s", "MESH_DUPLICATE_WINDOW_S", 1, 86_400))
"""All that this process would make the streams with. Where they exist they must agree with it."""


def read(settings: tuple[Setting, ...], environ: Mapping[str, str]) -> dict[str, float]:
    """The fields that `environ` sets.

    Raises:
        BadRequest: a value is no number, or out of bounds.
    """
    found: dict[str, float] = {}
    for setting in settings:
        text = environ.get(setting.variable)
        if not text:
            continue
        try:
            value = int(text) if setting.whole else float(text)
        except ValueError:
            kind = "a whole number" if setting.whole else "a number"
            raise BadRequest(f"{setting.variable}={text} is not {kind}") from None
        if not setting.low <= value <= setting.high:
            raise BadRequest(f"{setting.variable}={text} is out of bounds: from {setting.low:g} to {setting.high:g}")
        found[setting.field] = value
    return found


def flag(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether `environ` sets a switch: 1 or 0, true or false, yes or no.

    Raises:
        BadRequest: it says something else.
    """
    text = environ.get(variable, "").strip().lower()
    if text not in ("", "0", "1", "true", "false", "yes", "no"):
        raise BadRequest(f"{variable}={text} is not a switch: write 1 or 0")
    return text in ("1", "true", "yes")
