"""A client process of either build: it sends each control request that both builds know, and prints what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import agentmesh_client
from agentmesh.errors import MeshError

WAIT_S = 20.0
"""No request waits longer, whichever builds meet."""


async def verbs(mesh: Any, agent: str, ref: str | None = None) -> AsyncIterator[tuple[str, Awaitable[Any]]]:
    """Each request by its name, to be awaited before the next one. `ref`: what is polled; None: something new."""
    yield "status", mesh.status(agent, timeout=WAIT_S)
    yield "state", mesh.status(agent, content=True, timeout=WAIT_S)
    ref = ref or await mesh.tell(agent, "add verbs")
    yield "poll", mesh.poll(agent, ref, timeout=WAIT_S)
    yield "interrupt", mesh.interrupt(agent, "99999999", timeout=WAIT_S)
    yield "cancel", mesh.cancel(agent, "99999999", timeout=WAIT_S)
    yield "resume", mesh.resume(agent, timeout=WAIT_S)
    yield "set_timer", mesh.set_timer(agent, "t", {"label": "t"}, after_s=600, timeout=WAIT_S)
    yield "cancel_timer", mesh.cancel_timer(agent, "t", timeout=WAIT_S)


async def main(agent: str, url: str, root: str) -> None:
    """Send them all, one after another."""
    async with agentmesh_client.connect(url, root=root) as mesh:
        await mesh.start_agent(agent, kind="Cell", options={"next": ""}, restart="permanent", timeout=30.0)
        await mesh.ask(agent, "add first", timeout=30.0)
        said: dict[str, str] = {}
        async for name, request in verbs(mesh, agent):
            try:
                said[name] = type(await request).__name__
            except MeshError as error:
                said[name] = error.code
        print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
