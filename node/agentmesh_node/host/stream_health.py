"""Whether the mesh's streams exist and can be written, for the node's log and readiness.

An owner that cannot append waits and tries again, and reports that only for its own agent. A fault that stops all owners at once
is logged here once, and once more when it is over.
"""

from __future__ import annotations

import asyncio
import logging
from typing import get_args

from agentmesh.edge.diagnosis import explain
from agentmesh.edge.stream_configs import LATER
from agentmesh.edge.tasks import Background
from agentmesh.edge.transport import Transport
from agentmesh.errors import MeshError
from agentmesh.subjects import PROBE, StreamRole, Subjects

log = logging.getLogger("agentmesh.node")

PERIOD_S = 2.0
"""Time between two checks, each of one stream: more would burden the server's API."""
_FIRST: tuple[StreamRole, ...] = ("registry", "mail", "journal")
"""Every turn needs these."""
_ROLES: tuple[StreamRole, ...] = (
    *_FIRST,
    *(role for role in get_args(StreamRole.__value__) if role not in _FIRST and role not in LATER),
)
"""Not what an older mesh may lack: its nodes work without that."""
LOOK_S = 5.0
"""Wait for one answer."""


class StreamHealth:
    """Checks the streams of a mesh one after another, between `start` and `close`."""

    def __init__(self, transport: Transport, subjects: Subjects, *, period_s: float = PERIOD_S) -> None:
        self._t = transport
        self._subjects = subjects
        self._period_s = period_s
        # For the streams that every turn needs it is also checked whether they can be written.
        self._probes = {"mail": subjects.inbox(PROBE), "journal": subjects.journal(PROBE)}
        self._troubles: dict[str, MeshError] = {}
        self._looking = Background("look at the streams")

    @property
    def trouble(self) -> str | None:
        """What is wrong and what to do about it, or None."""
        return next((str(error) for error in self._troubles.values()), None)

    def start(self) -> None:
        """Begin to check."""
        self._looking.begin(self._run())

    async def close(self) -> None:
        """Stop checking."""
        await self._looking.close()

    async def _run(self) -> None:
        while True:
            for role in _ROLES:
                await asyncio.sleep(self._period_s)
                await self._check(self._subjects.stream(role), self._probes.get(role))

    async def _check(self, stream: str, probe: str | None) -> None:
        if not self._t.connected:
            return  # that is reported already, and is no fault of a stream
        trouble = await explain(self._t, stream, probe=probe, timeout=LOOK_S)
        known = self._troubles.pop(stream, None)
        if trouble is not None:
            self._troubles[stream] = trouble
            level = logging.WARNING if known is None or known.code != trouble.code else logging.DEBUG
            log.log(level, "the store cannot be used: %s", trouble, extra={"stream": stream, "code": trouble.code})
        elif known is not None:
            log.warning("the store can be used again", extra={"stream": stream})
