"""Why the store does not take a write: in words, for callers, logs and health checks."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.failures import ApiError, explained
from agentmesh.edge.manage import purge
from agentmesh.edge.transport import Transport
from agentmesh.errors import MeshError, NoLeader, NotPermitted, StoreFull, Unavailable

_NO_SPACE = "no space left"


async def explain(t: Transport, stream: str, *, probe: str | None = None, timeout: float = 1.0) -> MeshError | None:
    """Why writes to `stream` get no answer: an error that says what to do, or None if nothing is wrong with the stream.

    Args:
        probe: a subject of the stream that nobody uses. Purging it changes nothing, and shows whether the stream can still be
            written: a stream whose disk has failed still answers queries, but acknowledges no write.
    """
    try:
        info: dict[str, Any] = msgspec.json.decode(await call_api(t, f"STREAM.INFO.{stream}", timeout=timeout))
    except ApiError as error:
        return explained(error, stream, clustered=t.clustered)
    except (Unavailable, NotPermitted) as error:
        return error
    cluster = info.get("cluster") or {}
    if not cluster or cluster.get("leader"):
        return None if probe is None else await _written(t, stream, probe, timeout)
    replicas = cluster.get("replicas") or []
    away = ", ".join(sorted(replica["name"] for replica in replicas if replica.get("offline")))
    return NoLeader(
        f"stream {stream} has no leader: {away or 'too many of its servers'} cannot be reached; bring them back",
        details={"stream": stream},
    )


async def _written(t: Transport, stream: str, probe: str, timeout: float) -> MeshError | None:
    """The server's reason for not writing to `stream`, or None if it writes."""
    try:
        await purge(t, stream, probe, timeout=timeout)
    except ApiError as error:
        full = _NO_SPACE in error.description
        kind = StoreFull if full else Unavailable
        cure = "free space on its server's disk" if full else "mend its server's disk"
        return kind(
            f"stream {stream} cannot be written ({error.description}); {cure}, and restart that server",
            details={"stream": stream, "err_code": error.err_code},
        )
    except (Unavailable, NotPermitted) as error:
        return error
    return None
