"""Counting and deleting single messages of a stream; the errors and wire forms are those of `jetstream`."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.edge.jetstream import ApiError, api
from agentmesh.edge.transport import Transport

_NOT_DELETED = (10043, 10057)


async def count(t: Transport, stream: str, filter: str, *, timeout: float = 5.0) -> dict[str, int]:
    """How many messages each subject that matches `filter` has. Few must match: the server gives 100,000 at most.

    Raises:
        ApiError, Unavailable: see `stream_state`.
    """
    body = {"subjects_filter": filter}
    info: dict[str, Any] = msgspec.json.decode(await api(t, f"STREAM.INFO.{stream}", body, timeout=timeout))
    return dict(info["state"].get("subjects") or {})


async def delete(t: Transport, stream: str, seq: int, *, timeout: float = 5.0) -> bool:
    """Remove one message. False if there is none of that sequence (any more).

    Raises:
        ApiError, Unavailable: see `api`.
    """
    try:
        await api(t, f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True}, timeout=timeout)
    except ApiError as error:
        if error.err_code in _NOT_DELETED:
            return False
        raise
    return True
