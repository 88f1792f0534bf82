"""A caller's deadline is what it means by its own clock, said in the servers' time."""

from __future__ import annotations

import pytest

from agentmesh.edge.transport import Message
from agentmesh.errors import NotPermitted
from agentmesh.wire import MAX_TIME, format_time, parse_time
from agentmesh_client.server_time import FRESH_S, UNKNOWN_S, CallersClock
from node.simulated import SimulatedNode, simulate


def clock_of(node: SimulatedNode, ahead: float) -> CallersClock:
    node.world.ahead["c1"] = ahead
    return CallersClock(node.transport, node.subjects, node.world.ambient("c1"))


@pytest.mark.parametrize("ahead", [-3600.0, -90.0, 90.0, 3600.0])
def test_a_deadline_by_a_wrong_clock_is_put_right(ahead: float) -> None:
    async def story(node: SimulatedNode) -> None:
        clock = clock_of(node, ahead)
        meant = node.server.wall() + 30
        assert parse_time(await clock.by_the_servers(format_time(meant + ahead))) == pytest.approx(meant, abs=0.1)
        assert await clock.now() == pytest.approx(node.server.wall(), abs=0.1)

    simulate(story)


@pytest.mark.parametrize("ahead", [-0.4, 0.0, 0.4])
def test_a_deadline_by_a_right_clock_stays_as_it_is(ahead: float) -> None:
    async def story(node: SimulatedNode) -> None:
        clock = clock_of(node, ahead)
        for moment in (format_time(node.server.wall()), "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"):
            assert await clock.by_the_servers(moment) == moment

    simulate(story)


@pytest.mark.parametrize(("moment", "said"), [("9999-12-31T23:59:59Z", MAX_TIME), ("0001-01-01T00:00:00Z", 0.0)])
def test_a_time_of_any_year_can_be_put_right(moment: str, said: float) -> None:
    async def story(node: SimulatedNode) -> None:
        assert parse_time(await clock_of(node, 90.0).by_the_servers(moment)) == said

    simulate(story)


def test_one_comparison_serves_for_a_while_and_a_failed_one_too() -> None:
    async def story(node: SimulatedNode) -> None:
        clock, asked = clock_of(node, 90.0), node.transport.requests
        asked.clear()
        for _ in range(3):
            await clock.now()
        assert len(asked) == 2, "the leaders of two streams"
        await node.pass_time(FRESH_S + 1)
        await clock.now()
        assert len(asked) == 4
        node.faults.leaderless |= set(node.server.streams)
        await node.pass_time(FRESH_S + 1)
        for _ in range(3):
            assert await clock.now() == pytest.approx(node.server.wall(), abs=0.1), "what was known stays"
            await node.pass_time(UNKNOWN_S / 4)
        assert len(asked) == 6

    simulate(story)


def test_a_caller_who_gets_no_answer_goes_by_its_own_clock() -> None:
    async def story(node: SimulatedNode) -> None:
        node.faults.leaderless |= set(node.server.streams)
        clock = clock_of(node, 90.0)
        moment = format_time(node.server.wall())
        assert await clock.by_the_servers(moment) == moment
        assert await clock.now() == pytest.approx(node.server.wall() + 90.0, abs=0.1)

    simulate(story)


def forbidden(reply: Message | None) -> Message:
    raise NotPermitted("this user may not do that")


def test_a_caller_who_may_not_ask_does_not_ask_again() -> None:
    async def story(node: SimulatedNode) -> None:
        clock, asked = clock_of(node, 90.0), node.transport.requests
        for role in ("mail", "result"):
            node.transport.inject(f"$JS.API.STREAM.INFO.{node.subjects.stream(role)}", forbidden)
        asked.clear()
        for _ in range(3):
            assert await clock.now() == pytest.approx(node.server.wall() + 90.0, abs=0.1)
            await node.pass_time(UNKNOWN_S + 1)
        assert len(asked) == 2

    simulate(story)
