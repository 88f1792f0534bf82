"""A node and a supervisor know the servers' time whatever their own clock says, and whichever server leads."""

from __future__ import annotations

import logging

import pytest

from agentmesh.edge.server_time_keeper import ServerTime
from agentmesh.edge.transport import Message
from agentmesh.errors import NotPermitted
from agentmesh.server_clock import WINDOW_S
from node.simulated import NODE, SimulatedNode, simulate


def asked(node: SimulatedNode) -> list[str]:
    return [r.rpartition(".")[2] for r in node.transport.requests if r.startswith("$JS.API.STREAM.INFO.")]


@pytest.mark.parametrize("own", [-3600.0, -90.0, 90.0, 3600.0])
def test_it_is_known_when_the_start_returns(own: float) -> None:
    async def story(node: SimulatedNode) -> None:
        node.world.ahead[NODE] = own
        kept = ServerTime(node.transport, node.subjects, node.world.ambient(NODE))
        await kept.start()
        assert kept.clock.now() == pytest.approx(node.server.wall(), abs=0.1)
        (line,) = node.logged("synchronise", logging.WARNING)
        assert line.__dict__["ahead_s"] == pytest.approx(own, abs=0.1)
        await kept.close()

    simulate(story)


def test_all_streams_are_asked_at_once_and_again_within_the_window() -> None:
    async def story(node: SimulatedNode) -> None:
        kept = ServerTime(node.transport, node.subjects, node.world.ambient(NODE))
        node.transport.requests.clear()
        await kept.start()
        streams = sorted(name for name in node.server.streams if not name.startswith("OBJ_"))
        assert sorted(asked(node)) == streams
        node.transport.requests.clear()
        await node.pass_time(WINDOW_S)
        assert sorted(set(asked(node))) == streams and len(asked(node)) <= 2 * len(streams)
        await kept.close()

    simulate(story)


@pytest.mark.parametrize("ahead", [90.0, 3600.0])
def test_a_server_that_is_ahead_and_leads_all_streams_but_one_moves_nothing(ahead: float) -> None:
    async def story(node: SimulatedNode) -> None:
        streams = sorted(name for name in node.server.streams if not name.startswith("OBJ_"))
        kept = ServerTime(node.transport, node.subjects, node.world.ambient(NODE))
        await kept.start()
        for right in streams * 2:
            node.server.ahead = dict.fromkeys(streams, ahead) | {right: 0.0}
            await node.pass_time(WINDOW_S / 2)
            assert abs(kept.clock.now() - node.server.wall()) < 0.1
        await kept.close()

    simulate(story)


def test_what_cannot_be_asked_now_is_asked_later() -> None:
    async def story(node: SimulatedNode) -> None:
        node.faults.leaderless |= set(node.server.streams)
        node.world.ahead[NODE] = 90.0
        kept = ServerTime(node.transport, node.subjects, node.world.ambient(NODE))
        await kept.start()
        assert not kept.clock.known
        node.faults.leaderless.clear()
        await node.until(lambda: kept.clock.known, "a leader is there")
        assert abs(kept.clock.now() - node.server.wall()) < 0.1
        await kept.close()

    simulate(story)


def forbidden(reply: Message | None) -> Message:
    raise NotPermitted("this user may not do that")


def test_what_may_not_be_asked_is_not_asked_again_and_said_once() -> None:
    async def story(node: SimulatedNode) -> None:
        dead, mail = node.subjects.stream("dead"), node.subjects.stream("mail")
        kept = ServerTime(node.transport, node.subjects, node.world.ambient(NODE))
        node.transport.inject(f"$JS.API.STREAM.INFO.{dead}", forbidden)
        await kept.start()
        node.transport.requests.clear()
        await node.pass_time(WINDOW_S)
        assert dead not in asked(node) and mail in asked(node)
        assert len(node.logged("cannot be asked", logging.WARNING)) == 1
        await kept.close()

    simulate(story)
