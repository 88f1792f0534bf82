"""A server that takes connections and says nothing is waited for longer than one that is not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmesh.edge.connection import connect
from agentmesh.errors import Unavailable
from support import Server, eventually, run

SOON_S = 0.3
LATER_S = 60.0


def halted(server: Server) -> bool:
    return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_frozen_server_is_waited_for(fresh_server: Server) -> None:
    async def main() -> None:
        fresh_server.freeze()
        try:
            await eventually(lambda: halted(fresh_server), what="the server's halt")
            opening = asyncio.create_task(connect(fresh_server.url, name="test", connect_timeout=5.0, silent_timeout=LATER_S))
            hasty = asyncio.create_task(connect(fresh_server.url, name="hasty", connect_timeout=SOON_S))
            with pytest.raises(Unavailable):
                await hasty
            await asyncio.wait((opening,), timeout=6.0)  # longer than it would wait for one that is not there
            assert not opening.done()
        finally:
            fresh_server.thaw()
        transport = await opening
        assert transport.connected
        await transport.close()

    run(main(), 90)


def test_one_that_is_not_there_is_not(fresh_server: Server) -> None:
    async def main() -> None:
        url = fresh_server.url
        await asyncio.to_thread(fresh_server.stop)
        with pytest.raises(Unavailable, match="start one"):
            await connect(url, name="test", connect_timeout=SOON_S, silent_timeout=LATER_S)

    run(main(), 30)
