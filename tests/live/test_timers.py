"""Timers: durable, once, not before their time."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

import nats
import pytest

from agentmesh.edge.read import read_all
from agentmesh.errors import BadRequest
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_between_agents import do, events_of, start, state_of
from support import Server, eventually, run

FAR_S = 3600.0


def ticks(events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, dict) and "timer" in event]


async def schedules(mesh: LocalMesh, agent: str) -> list[str]:
    """Subjects of the agent's timers that the server holds."""
    found = await read_all(mesh.transport, mesh.subjects.stream("timer"), mesh.subjects.timer(agent, "*"))
    return [message.subject for message in found]


@pytest.mark.case(231)
def test_a_timer_comes_once_and_not_before_its_time(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            began = time.time()
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": 1.2, "event": {"wake": 1}, "id": "t1"}]))
            at = began + 0.6
            await mesh.client.ask("alarm", do(["notify_at", {"time": at, "event": "sooner"}]))
            due = await mesh.saw("event_received", "alarm", lane="due")
            assert time.time() >= at, due
            await mesh.saw("event_received", "alarm", 2, lane="due")
            assert time.time() >= began + 1.2
            first, second = await events_of(mesh, "alarm", 2)
            assert first["event"] == "sooner"
            assert second == {"timer": "t1", "event": {"wake": 1}, "missed": 0}
            assert await schedules(mesh, "alarm") == []
            past = await mesh.client.set_timer("alarm", "past", "at once", at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
            assert past.due is not None
            assert (await events_of(mesh, "alarm", 3))[2]["event"] == "at once"

    run(main(), 110)


@pytest.mark.case(232)
@pytest.mark.case(236)
def test_a_timer_is_replaced_and_cancelled_by_its_id(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": FAR_S, "event": "old", "id": "t"}]))
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": 0.2, "event": "new", "id": "t"}]))
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": FAR_S, "event": "never", "id": "u"}]))
            assert await events_of(mesh, "alarm", 1) == [{"timer": "t", "event": "new", "missed": 0}]
            await mesh.client.ask("alarm", do(["cancel_timer", {"id": "u"}], ["cancel_timer", {"id": "unknown"}]))

            async def gone() -> bool:
                return await schedules(mesh, "alarm") == []

            await eventually(gone, PATIENCE_S, "the schedules' end")
            both = do(["notify_after", {"seconds": 0.1, "event": 1, "id": "v"}], ["cancel_timer", {"id": "v"}])
            await mesh.client.ask("alarm", both)
            await mesh.client.set_timer("alarm", "w", "from outside", after_s=0.3)
            assert (await events_of(mesh, "alarm", 2))[1]["event"] == "from outside"

    run(main(), 110)


@pytest.mark.case(232)
@pytest.mark.case(234)
def test_a_tick_in_mid_turn_is_deferred_and_a_cancelled_one_is_not_delivered(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            gate = tmp_path / "gate"
            set_two = (
                ["notify_after", {"seconds": 0.1, "event": "kept", "id": "kept"}],
                ["notify_after", {"seconds": 0.1, "event": "cancelled", "id": "cancelled"}],
            )
            # The second turn runs while both fire, and cancels one of them.
            await mesh.client.tell("alarm", do(*set_two, ["then", {"decision": "prompt", "text": f"gate:{gate} {cancel()}"}]))
            await mesh.saw("event_received", "alarm", 2, lane="due")
            assert (await state_of(mesh, "alarm"))["events"] == []
            gate.touch()
            assert await events_of(mesh, "alarm", 1) == [{"timer": "kept", "event": "kept", "missed": 0}]
            await mesh.client.ask("alarm", "one more turn")
            assert len((await state_of(mesh, "alarm"))["events"]) == 1

    def cancel() -> str:
        return do(["cancel_timer", {"id": "cancelled"}])

    run(main(), 110)


@pytest.mark.case(234)
def test_a_halted_agent_handles_its_ticks(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            halt = ["then", {"decision": "halt"}]
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": 0.2, "event": "tick", "id": "t"}], halt))
            assert (await mesh.client.status("alarm")).halted
            assert await events_of(mesh, "alarm", 1) == [{"timer": "t", "event": "tick", "missed": 0}]
            assert (await mesh.client.status("alarm")).halted

    run(main(), 110)


@pytest.mark.case(233)
def test_a_repeating_timer_merges_the_ticks_that_were_missed(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            began = time.time()
            await mesh.client.ask("alarm", do(["notify_after", {"seconds": 0.2, "event": "t", "id": "r", "every": 1}]))
            await events_of(mesh, "alarm", 1)
            gate = tmp_path / "gate"
            busy = asyncio.create_task(mesh.client.ask("alarm", f"gate:{gate} go"))
            await mesh.saw("event_received", "alarm", 2, lane="due")
            await eventually(lambda: time.time() > began + 3.5, PATIENCE_S, "ticks that are missed by the clock")
            gate.touch()
            await busy
            found = ticks(await events_of(mesh, "alarm", 3))
            elapsed = time.time() - began
            assert found[1]["missed"] >= 2, "those of the seconds in between"
            assert sum(1 + tick["missed"] for tick in found) <= elapsed + 1, "no tick twice"
            await mesh.client.ask("alarm", do(["cancel_timer", {"id": "r"}]))

            async def gone() -> bool:
                return await schedules(mesh, "alarm") == []

            await eventually(gone, PATIENCE_S, "the rhythm's end")

    run(main(), 110)


@pytest.mark.case(235)
def test_stopping_an_agent_removes_its_timers_and_its_successor_sees_none(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            timers = [
                ["notify_after", {"seconds": seconds, "event": "old life", "id": f"t{n}"}]
                for n, seconds in enumerate((0.6, FAR_S))
            ]
            await mesh.client.ask("alarm", do(*timers))
            await mesh.client.stop("alarm")
            assert await schedules(mesh, "alarm") == []
            await start(mesh, "alarm")
            await mesh.client.set_timer("alarm", "t1", "new life", after_s=0.8)
            assert await events_of(mesh, "alarm", 1) == [{"timer": "t1", "event": "new life", "missed": 0}]

    run(main(), 110)


@pytest.mark.case(236)
def test_any_client_sets_replaces_and_cancels_timers(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            nc = await nats.connect(server.url)

            async def control(**request: Any) -> Any:
                reply = await nc.request(mesh.subjects.control("alarm"), json.dumps(request).encode(), timeout=PATIENCE_S)
                return json.loads(reply.data)

            try:
                far = await control(op="set_timer", id="t", event={"n": 1}, after_s=FAR_S)
                assert far["set"] is True
                assert dt.datetime.fromisoformat(far["due"]) > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=FAR_S / 2)
                at = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)).isoformat()
                assert (await control(op="set_timer", id="t", event={"n": 2}, at=at))["set"] is True
                assert await events_of(mesh, "alarm", 1) == [{"timer": "t", "event": {"n": 2}, "missed": 0}]
                assert await control(op="cancel_timer", id="t") == {"v": 1, "cancelled": False}
                await control(op="set_timer", id="u", event=None, after_s=FAR_S, every_s=60)
                assert await control(op="cancel_timer", id="u") == {"v": 1, "cancelled": True}
                assert await mesh.client.cancel_timer("alarm", "u") is False
            finally:
                await nc.close()

    run(main(), 110)


@pytest.mark.case(231)
@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 1, "event": 1, "id": "_deadline-7"},
        {"seconds": 1, "event": 1, "id": "a.b"},
        {"seconds": 1, "event": 1, "every": 0.5},
        {"seconds": 1e300, "event": 1},
        {"seconds": 1, "event": 1, "every": 1e300},
    ],
)
def test_a_timer_that_cannot_be_is_refused_where_it_is_asked_for(
    server: Server, subjects: Subjects, wrong: dict[str, Any]
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "alarm")
            await mesh.client.notify("alarm", {"do": [["notify_after", wrong]]})
            assert (await mesh.client.ask("alarm", "fine")).text == "fine"
            assert (await state_of(mesh, "alarm"))["events"] == [], "the callback raised"
            with pytest.raises(BadRequest):
                await mesh.client.set_timer("alarm", "_deadline-7", 1, after_s=1)

    run(main(), 110)


@pytest.mark.case(231)
@pytest.mark.case(233)
def test_timers_outlive_their_node(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1") as mesh:
            await start(mesh, "alarm")
            timers = (
                ["notify_after", {"seconds": 1.0, "event": "once", "id": "once"}],
                ["notify_after", {"seconds": 1.1, "event": "again", "id": "again", "every": 1}],
            )
            await mesh.client.ask("alarm", do(*timers))

            async def stored(subject: str) -> int:
                return len(await read_all(mesh.transport, mesh.subjects.stream("timer"), subject))

            async def is_set() -> bool:
                # The answer does not wait for the record's other effects.
                return await stored(mesh.subjects.timer("alarm", "*")) + await stored(mesh.subjects.due("alarm")) >= 2

            await eventually(is_set, PATIENCE_S, "both schedules")
            await mesh.nodes["n1"].close()

            async def fired() -> bool:
                return await stored(mesh.subjects.due("alarm")) >= 2

            await eventually(fired, PATIENCE_S, "both timers, with nobody there")
            await mesh.node("n2")
            first, second, third = (await events_of(mesh, "alarm", 3))[:3]
            assert first == {"timer": "once", "event": "once", "missed": 0}
            assert (second["timer"], third["timer"]) == ("again", "again")

    run(main(), 110)
