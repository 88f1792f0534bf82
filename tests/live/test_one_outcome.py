"""One request has one outcome: in the reply, as stored, in the live stream and by `poll`, whatever its size."""

from __future__ import annotations

from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from agentmesh.outcomes import outcome_limit
from agentmesh.subjects import Subjects
from live.agents import Recorder
from live.mesh import PATIENCE_S, local_mesh
from live.test_plain_nats import Plain, decoded
from support import Server, eventually, run

MAX_PAYLOAD = 1 << 20


class Loud(Recorder):
    """Answers with as many letters as it is asked for."""

    @staticmethod
    def script(prompt: str) -> str:
        return "x" * int(prompt)


async def _told(plain: Plain, size: int) -> list[dict[str, Any]]:
    """What each way shows of one request: the reply, the live stream's last message, the stored result, `poll`."""
    inbox = plain.nc.new_inbox()
    seen: list[dict[str, Any]] = []

    async def take(message: Msg) -> None:
        seen.append(decoded(message))

    subscription = await plain.nc.subscribe(inbox, cb=take)
    await plain.nc.flush()
    reply = await plain.ask("loud", str(size).encode(), Mesh_Stream_To=inbox)
    await eventually(lambda: any(event["type"] == "outcome" for event in seen), PATIENCE_S, "the last live event")
    polled = await plain.control("loud", op="poll", ref=reply["ref"])
    await subscription.unsubscribe()
    assert polled["status"] == "completed"
    return [reply, seen[-1]["outcome"], await plain.result("loud", int(reply["ref"])), polled["outcome"]]


@pytest.mark.case(26)
@pytest.mark.case(220)
@pytest.mark.case(243)
@pytest.mark.parametrize("size", [900_000, 985_000, 1_047_900, 1_060_000])
def test_a_large_answer_is_the_same_everywhere(server: Server, subjects: Subjects, size: int) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Loud": Loud}) as mesh:
            await mesh.client.start_agent("loud", kind="Loud")
            nc = await nats.connect(server.url)
            try:
                first, *others = await _told(Plain(nc, mesh), size)
            finally:
                await nc.close()
            fits = size < outcome_limit(MAX_PAYLOAD)
            assert first["ok"] is fits
            assert fits or first["error"]["code"] == "too_large"
            assert [other == first for other in others] == [True] * 3

    run(main())


@pytest.mark.case(318)
def test_an_outcome_that_is_too_large_says_the_number_that_counts(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Loud": Loud}) as mesh:
            await mesh.client.start_agent("loud", kind="Loud")
            refused = await mesh.client.ask_outcome("loud", "1047000")
            assert refused.error is not None and refused.error.code == "too_large"
            size, limit = refused.error.details["size"], refused.error.details["limit"]
            assert (limit, size > limit) == (outcome_limit(MAX_PAYLOAD), True)
            assert str(limit) in refused.error.message
            most = 1_047_000 - (size - limit) - 50  # the other fields of the next outcome are about as long as this one's
            assert (await mesh.client.ask_outcome("loud", str(most))).ok
            assert not (await mesh.client.ask_outcome("loud", str(most + 100))).ok

    run(main())
