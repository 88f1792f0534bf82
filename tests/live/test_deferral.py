"""A deferred request that its agent has forgotten, end to end."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.errors import Cancelled
from agentmesh.subjects import Subjects
from agentmesh_client import ClosedRequest
from live.mesh import local_mesh
from live.test_between_agents import do, events_of, start
from live.test_history import command
from support import Server, run


@pytest.mark.case(446)
@pytest.mark.case(447)
def test_a_forgotten_deferral_is_seen_and_ended_from_outside(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "desk")
            first = asyncio.create_task(mesh.client.ask("desk", do(["then", {"decision": "exclusive"}])))
            await mesh.saw("prompt_stop", "desk")
            second = asyncio.create_task(mesh.client.ask("desk", do(["then", {"decision": "exclusive"}])))
            await mesh.saw("mailbox_queued", "desk", depth=1)
            (opened,) = (await mesh.client.status("desk")).open
            assert opened.exclusive and opened.since is not None and opened.deadline is not None and opened.sender is None
            (entry,) = await mesh.client.history("desk")
            assert entry.deferred == opened and entry.ref == opened.ref
            (listed,) = await mesh.client.list_agents(activity=True)
            assert listed.activity is not None and listed.activity.open == 1
            shown = [await command(mesh, verb, *([] if verb == "ps" else ["desk"])) for verb in ("status", "history", "ps")]
            assert f"request {opened.ref} of outside, deferred" in shown[0]
            assert f"deferred, exclusive until {opened.deadline}" in shown[1] and "idle, 1 open" in shown[2]
            assert await command(mesh, "reply", "desk", opened.ref, "enough") == "replied\n"
            assert (await first).text == "enough"
            await mesh.saw("prompt_stop", "desk", 2)
            (other,) = (await mesh.client.status("desk")).open
            assert await mesh.client.cancel("desk", other.ref)
            with pytest.raises(Cancelled):
                await second
            assert not await mesh.client.reply("desk", other.ref, "late") and not (await mesh.client.status("desk")).open
            answered, cancelled = await mesh.client.history("desk", content=True)
            assert answered.closed == ClosedRequest(answer="enough") and answered.deferred is None
            assert cancelled.closed is not None and cancelled.closed.error is not None and cancelled.closed.answer is None
            assert cancelled.closed.error.code == "cancelled"
            shown = (await command(mesh, "history", "desk", "--content")).splitlines()
            assert "deferred, then answered" in shown[1] and "enough" in shown[1]
            assert "deferred, then cancelled" in shown[2]
            told = [{"closed": opened.ref, "how": "replied"}, {"closed": other.ref, "how": "cancelled"}]
            assert await events_of(mesh, "desk", 2) == told

    run(main(), 110)
