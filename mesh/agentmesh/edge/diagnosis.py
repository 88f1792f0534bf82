"""Why the store does not do what it is asked: said in words, for callers, logs and health."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.edge.jetstream import NO_STREAM, ApiError, api, missing
from agentmesh.edge.transport import Transport
from agentmesh.errors import NoLeader, Unavailable


async def explain(t: Transport, stream: str, *, timeout: float = 1.0) -> Unavailable | None:
    """Why nobody takes what belongs in `stream`: an error that says what to do, or None if nothing is wrong with the stream."""
    try:
        info: dict[str, Any] = msgspec.json.decode(await api(t, f"STREAM.INFO.{stream}", timeout=timeout))
    except ApiError as error:
        return missing(stream) if error.err_code == NO_STREAM else Unavailable(f"stream {stream}: {error}")
    except Unavailable as error:
        return error
    cluster = info.get("cluster") or {}
    if not cluster or cluster.get("leader"):
        return None
    replicas = cluster.get("replicas") or []
    away = ", ".join(sorted(replica["name"] for replica in replicas if replica.get("offline")))
    return NoLeader(
        f"stream {stream} has no leader: {away or 'too many of its servers'} cannot be reached; bring them back",
        details={"stream": stream},
    )
