"""Looking after what a stream holds: its state, counting, deleting, purging. Functions, no state."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.failures import ApiError
from agentmesh.edge.transport import Transport
from agentmesh.wire import parse_time

_NOT_DELETED = (10043, 10057)


class StreamState(NamedTuple):
    """What the leader says of a stream."""

    messages: int
    first_seq: int
    last_seq: int
    config: dict[str, Any]
    last_time: float = 0.0
    """When its newest message was stored, in seconds since 1970; 0: it never had one."""


async def stream_state(t: Transport, stream: str, *, timeout: float = 5.0) -> StreamState:
    """Sequences and configuration of `stream`, from its leader.

    Raises:
        ApiError: no such stream (`err_code` 10059).
        Unavailable: see `call_api`.
    """
    info: dict[str, Any] = msgspec.json.decode(await call_api(t, f"STREAM.INFO.{stream}", timeout=timeout))
    state = info["state"]
    last_time = parse_time(state["last_ts"]) if state["last_seq"] and "last_ts" in state else 0.0
    return StreamState(state["messages"], state["first_seq"], state["last_seq"], info["config"], last_time)


async def purge(t: Transport, stream: str, filter: str, *, below: int | None = None, timeout: float = 5.0) -> int:
    """Remove the messages of `filter`, only those with a sequence under `below` if it is given. Idempotent.

    Returns: how many were removed.

    Raises:
        ApiError, Unavailable: see `call_api`.
    """
    body: dict[str, Any] = {"filter": filter}
    if below is not None:
        if below <= 1:  # the server takes 0 for "all"
            return 0
        body["seq"] = below
    reply = msgspec.json.decode(await call_api(t, f"STREAM.PURGE.{stream}", body, timeout=timeout))
    return int(reply.get("purged", 0))


async def count(t: Transport, stream: str, filter: str, *, timeout: float = 5.0) -> dict[str, int]:
    """How many messages each subject that matches `filter` has. Few must match: the server gives 100,000 at most.

    Raises:
        ApiError, Unavailable: see `stream_state`.
    """
    counts, _ = await count_up_to_now(t, stream, filter, timeout=timeout)
    return counts


async def count_up_to_now(t: Transport, stream: str, filter: str, *, timeout: float = 5.0) -> tuple[dict[str, int], int]:
    """`count`, and the last sequence of the stream at that moment: what has a larger one is not counted."""
    body = {"subjects_filter": filter}
    info: dict[str, Any] = msgspec.json.decode(await call_api(t, f"STREAM.INFO.{stream}", body, timeout=timeout))
    return dict(info["state"].get("subjects") or {}), int(info["state"]["last_seq"])


class SubjectCounts(NamedTuple):
    """Every subject of a stream that holds messages, with their number. `time`: when the stream's leader said so, by its clock
    (seconds since 1970). `last_seq`: the stream's last sequence when the count began."""

    subjects: dict[str, int]
    time: float
    config: dict[str, Any]
    last_seq: int


async def count_all(t: Transport, stream: str, *, timeout: float = 10.0) -> SubjectCounts:
    """All subjects of `stream`. The server counts 100,000 of them in some 150 ms, and gives so many at a time: subjects that come
    or go between two of these answers may be missing.

    Raises:
        ApiError, Unavailable: see `stream_state`.
    """
    found: dict[str, int] = {}
    offset = last_seq = 0
    while True:
        body = {"subjects_filter": ">", "offset": offset}
        info: dict[str, Any] = msgspec.json.decode(await call_api(t, f"STREAM.INFO.{stream}", body, timeout=timeout))
        last_seq = last_seq if found else int(info["state"]["last_seq"])
        page = info["state"].get("subjects") or {}
        found.update(page)
        offset += len(page)
        if not page or offset >= info.get("total", 0):
            return SubjectCounts(found, parse_time(info["ts"]), info["config"], last_seq)


async def delete(t: Transport, stream: str, seq: int, *, timeout: float = 5.0) -> bool:
    """Remove one message. False if there is none of that sequence (any more).

    Raises:
        ApiError, Unavailable: see `call_api`.
    """
    try:
        await call_api(t, f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True}, timeout=timeout)
    except ApiError as error:
        if error.err_code in _NOT_DELETED:
            return False
        raise
    return True
