"""What each stream and bucket of a mesh is configured as. Pure.

Durations are nanoseconds, as the server's API wants them. Why each stream is as it is stands in
docs/protocol.md#streams: mail refuses when a lane is full; timers need message schedules, which exclude that on one stream
(docs/nats.md#schedules-and-discard-new); journals never drop anything by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentmesh.edge.registry import MARKER_TTL_S
from agentmesh.subjects import StreamRole, Subjects
from agentmesh.wire import MAIL_ROOM

RESULTS_BYTES = 512 << 20
"""How much of outcomes is kept by default. The server sets this aside on its disk when it makes the stream."""
TRACE_AGE_S = 7 * 86400.0
"""How long facts of traces are kept by default."""
TRACE_BYTES = 256 << 20
"""How much of them is kept by default."""
SESSION_MESSAGES = 100_000
"""Most messages in one part of a backend's session: what would come behind them is refused."""
DUPLICATE_WINDOW_S = 120.0
"""How long a stream drops repetitions of a message id by default."""
LATER: dict[str, str] = {"trace": "facts of traces, for mesh trace and mesh graph"}
"""What came after the first build, by the stream's role, or as `role.field` where its stream has been there: each with what it is
for, in words. A mesh that has not been set up since lacks it, and its processes work without that."""

_SECOND = 1_000_000_000
_BOUNDS = frozenset(
    ("duplicate_window", "max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size", "subject_delete_marker_ttl")
)
"""Fields that bound what a stream keeps or takes."""
_OWN_OPTIONS = {
    "_MAIL": {"max_msgs_per_subject": "mailbox_limit"},
    "_RESULT": {"max_age": "results_age_s", "max_bytes": "results_bytes"},
    "_TRACE": {"max_age": "trace_age_s", "max_bytes": "trace_bytes"},
}
"""By the end of a stream's name: the fields that may be chosen of this one alone, with the names of the choices."""


def stream_configs(
    subjects: Subjects,
    *,
    replicas: int,
    max_payload: int,
    mailbox_limit: int = 1000,
    results_age_s: float = 3600,
    results_bytes: int = RESULTS_BYTES,
    duplicate_window_s: float = DUPLICATE_WINDOW_S,
    trace_age_s: float = TRACE_AGE_S,
    trace_bytes: int = TRACE_BYTES,
) -> dict[str, dict[str, Any]]:
    """The exact JSON of each stream's creation, by stream name.

    Args:
        max_payload: the server's limit, in bytes.
        mailbox_limit: most messages in one lane of one agent.
        results_age_s: how long outcomes are kept, at most.
        results_bytes: how much of them is kept; the oldest go first.
        duplicate_window_s: how long repetitions of a message id are dropped.
        trace_age_s: how long facts of traces are kept, at most.
        trace_bytes: how much of them is kept; the oldest go first.
    """
    s, window = subjects, int(duplicate_window_s * _SECOND)
    mail = {
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": mailbox_limit,
        # No max_bytes and no max_msgs: a stranger's flood on one lane must not fill the others.
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": max_payload - MAIL_ROOM,
        # Otherwise anyone's `Nats-Rollup: all` would empty the stream.
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
    }
    # The server needs rollups for schedules, and turns them on by itself.
    timer = {"discard": "old", "allow_msg_schedules": True, "allow_rollup_hdrs": True}
    age = int(results_age_s * _SECOND)
    # By age and by size, not by number (case 27). The server wants no window that is longer than the age.
    result = {"discard": "old", "max_age": age, "max_bytes": results_bytes, "duplicate_window": min(window, age)}
    journal = {"discard": "new", "allow_rollup_hdrs": True, "allow_msg_ttl": True}
    registry = {
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": MARKER_TTL_S * _SECOND,
    }
    extras: dict[StreamRole, dict[str, Any]] = {
        "mail": mail,
        "timer": timer,
        "result": result,
        "journal": journal,
        "dead": {"discard": "old"},
        # Transcripts stay until their agent stops or moves on to a later session: neither age nor size may cut one.
        "session": {"discard": "new", "discard_new_per_subject": True, "max_msgs_per_subject": SESSION_MESSAGES},
        "trace": {
            "discard": "old",
            "max_age": int(trace_age_s * _SECOND),
            "max_bytes": trace_bytes,
            "duplicate_window": min(window, int(trace_age_s * _SECOND)),
        },
        "registry": registry,
    }
    common = _common(replicas, window)
    configs = {s.stream(role): _config(s, role, common, extra) for role, extra in extras.items()}
    blobs = {"name": s.blob_stream, "subjects": s.blob_subjects(), "discard": "new", "allow_rollup_hdrs": True}
    configs[s.blob_stream] = {**common, **blobs}
    return configs


def _common(replicas: int, window: int) -> dict[str, Any]:
    return {
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_consumers": -1,
        "allow_direct": True,
        "duplicate_window": window,
    }


def _config(s: Subjects, role: StreamRole, common: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    # The fields that are special to this stream come first: a mismatch is reported for the first field that differs.
    config = {"name": s.stream(role), "subjects": s.stream_subjects(role), **extra, **common, **extra}
    republished = s.republished(role)
    if republished is not None:
        source, destination = republished
        config["republish"] = {"src": source, "dest": destination}
    return config


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where a stream's configuration differs: (field, wanted value, found value)."""
    for field, value in wanted.items():
        there = found.get(field)
        if field == "republish" and isinstance(there, dict):
            there = {"src": there.get("src"), "dest": there.get("dest")}
        if field == "subjects" and set(value) <= set(there or ()):
            continue  # a newer build's stream may take more
        # The server leaves fields out that are at their zero.
        if (there or False) != (value or False):
            yield field, value, there


def purpose(subjects: Subjects, stream: str, field: str = "") -> str | None:
    """What a stream, or a field of it, is for that an older mesh may lack; None for what every mesh has."""
    for key, text in LATER.items():
        role, _, later = key.partition(".")
        if subjects.stream(role) == stream and later in ("", field):  # type: ignore[arg-type]  # the keys are roles
            return text
    return None


def options(stream: str) -> dict[str, str]:
    """The fields of a stream that operators may choose, each with the name of the choice in `StreamSettings`."""
    own = next((_OWN_OPTIONS[end] for end in _OWN_OPTIONS if stream.endswith(end)), {})
    return {"num_replicas": "replicas", "duplicate_window": "duplicate_window_s", **own}


def addition(field: str, wanted: Any, found: Any) -> Any:
    """The value that `field` gets so that the stream has what is wanted and keeps all that it has; None if none does both."""
    if field == "subjects":
        return [*found, *(subject for subject in wanted if subject not in found)]
    if field in _BOUNDS and isinstance(wanted, int):
        unbounded = wanted <= 0
        return wanted if unbounded or 0 < (found or 0) < wanted else None
    if isinstance(wanted, bool) or field == "republish":
        return wanted if wanted and not found else None
    return None
