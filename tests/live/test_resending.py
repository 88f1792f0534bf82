"""A dead letter that is sent again comes from whom it came from."""

from __future__ import annotations

import pytest

from agentmesh.errors import NotFound
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, local_mesh
from live.test_between_agents import do, events_of, start, state_of
from support import Server, eventually, run


@pytest.mark.case(210)
def test_a_dead_letter_from_another_agent_is_sent_again_in_that_agent_s_name(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss", "worker")
            crash = do(["raise", {"message": "poison"}])
            await mesh.client.ask("boss", do(["tell", {"target": "worker", "prompt": crash, "tag": "t"}]))
            told = await events_of(mesh, "boss", 1)
            assert (told[0]["answer"], told[0]["code"]) == ("t", "failed")
            (letter,) = await mesh.client.dead_letters("worker")
            assert (letter.lane, letter.sender) == ("peer-inbox", "boss")
            ref = await mesh.client.retry_dead_letter("worker", letter.seq, timeout=PATIENCE_S)

            async def again() -> bool:
                letters = await mesh.client.dead_letters("worker")
                return [(one.sender, one.ref) for one in letters] == [("boss", ref)]

            await eventually(again, PATIENCE_S, "its second end as a dead letter, still from boss")
            assert len((await state_of(mesh, "boss"))["events"]) == 1, "its sender was told the first time"
            with pytest.raises(NotFound):
                await mesh.client.retry_dead_letter("worker", letter.seq)

    run(main(), 110)
