"""Answers as late as they come, by a real clock: one second less than the watchdog lets a turn be, and some sooner.

Not a part of `make test`, since it takes ten minutes: `make test-long-answers`. All waits run at once.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import agentmesh_client
from access_kit.long_waits import answer, ask_late
from access_kit.place import place, secured_mesh
from access_kit.raw import Raw, raw
from agentmesh import Agent
from support import eventually, run

WAITS_S = (1.0, 150.0, 300.0, Agent.watchdog_s - 1.0)
LONG_S = 900.0


@pytest.mark.timeout(LONG_S)
@pytest.mark.processes
def test_answers_arrive_however_long_a_turn_may_take(tmp_path: Path) -> None:
    async def one(servers: int) -> list[str]:
        folder = tmp_path / str(servers)
        folder.mkdir()
        with place(servers) as there:
            async with (
                secured_mesh(there, "n1", "n2"),
                agentmesh_client.connect(there.url("operator")) as operator,
                raw(there.url("patient", 0)) as caller,
            ):
                caller.subscribe("_INBOX.patient.>")
                await caller.flush()
                told = await asyncio.gather(*(each(operator, caller, folder, servers, wait_s) for wait_s in WAITS_S))
            assert not there.violations()
            return [line for lines in told for line in lines]

    async def each(operator: agentmesh_client.Mesh, caller: Raw, folder: Path, servers: int, wait_s: float) -> list[str]:
        agent = f"team-a.after-{wait_s:.0f}"
        await operator.start_agent(agent, kind="Recorder", timeout=60)
        late = await ask_late(caller, agent, folder / agent)
        await asyncio.sleep(late.asked + wait_s - time.monotonic())
        late.gate.touch()
        lines = []
        for way, inbox in late.inboxes.items():
            await eventually(lambda inbox=inbox: answer(caller, inbox), 30, f"the answer to {way} of {agent}")
            found = answer(caller, inbox) or {}
            assert found.get("text") == "late" or found.get("set") is True, found
            lines.append(f"{servers} server(s), {way}: answered after {time.monotonic() - late.asked:.1f} s")
        return lines

    async def main() -> None:
        for lines in await asyncio.gather(one(1), one(3)):
            print("\n".join(lines))

    run(main(), timeout=LONG_S)
