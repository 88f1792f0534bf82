"""What stops all agents at once is said once, with what to do about it, and once when it is over."""

from __future__ import annotations

import json
import logging

from agentmesh.edge.stream_configs import purpose
from agentmesh_node.host.stream_health import LOOK_S, StreamHealth
from node.simulated import SimulatedNode, simulate
from support import replaced

PERIOD_S = 2.0
ROUND_S = 7 * (PERIOD_S + 1)
"""Within which every stream is looked at."""


def full(stream: str) -> bytes:
    """What a server whose disk is full says of a write."""
    return json.dumps({"error": {"code": 500, "err_code": 10047, "description": f"{stream}: no space left on device"}}).encode()


def told(node: SimulatedNode, text: str) -> list[str]:
    """The streams of which the log says `text`, at a level that operators see."""
    return [record.__dict__["stream"] for record in node.logged(text, logging.WARNING)]


def test_healthy_streams_are_no_trouble_and_those_that_all_needs_come_first() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        node.transport.requests.clear()
        assert health.trouble is None
        health.start()
        await node.pass_time(ROUND_S)
        await health.close()
        assert health.trouble is None and node.logged("the store") == []
        asked = [subject.removeprefix("$JS.API.STREAM.") for subject in node.transport.requests]
        looks = [call.rpartition(".")[2] for call in asked if call.startswith("INFO.")]
        assert looks[:3] == [node.subjects.stream(role) for role in ("registry", "mail", "journal")]
        needed = [name for name in node.server.streams if not name.startswith("OBJ_") and purpose(node.subjects, name) is None]
        assert sorted(set(looks)) == sorted(needed), "a mesh may lack what came later, and is well all the same"
        written = {call.rpartition(".")[2] for call in asked if call.startswith("PURGE.")}
        assert written == {node.subjects.stream("mail"), node.subjects.stream("journal")}

    simulate(story)


def test_one_stream_is_looked_at_in_each_period() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        node.transport.requests.clear()
        health.start()
        await node.pass_time(PERIOD_S / 2)
        assert node.transport.requests == []
        await node.pass_time(PERIOD_S)
        assert node.transport.requests == [f"$JS.API.STREAM.INFO.{node.subjects.stream('registry')}"]
        await health.close()

    simulate(story)


def test_looking_whether_a_stream_can_be_written_changes_nothing() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.mail("a")
        await node.record("a")
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        health.start()
        await node.pass_time(ROUND_S)
        await health.close()
        assert len(node.stored(node.subjects.inbox("a"))) == len(node.stored(node.subjects.journal("a"))) == 1

    simulate(story)


def test_a_stream_that_is_gone_is_told_once_and_so_is_its_return() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        name = node.subjects.stream("mail")
        stream = node.server.streams.pop(name)
        health.start()
        await node.until(lambda: health.trouble, "the trouble is seen", seconds=ROUND_S)
        assert name in str(health.trouble)
        await node.pass_time(2 * ROUND_S)
        assert told(node, "cannot be used") == [name]
        assert len(node.logged("cannot be used")) > 1, "looked at again, and said to nobody"
        node.server.streams[name] = stream
        await node.until(lambda: health.trouble is None, "it is over", seconds=ROUND_S)
        await node.pass_time(ROUND_S)
        assert told(node, "can be used again") == [name]
        await health.close()

    simulate(story)


def test_a_stream_that_answers_and_cannot_be_written_is_trouble() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        name = node.subjects.stream("journal")
        node.transport.inject(f"$JS.API.STREAM.PURGE.{name}", replaced(full(name)))
        health.start()
        await node.until(lambda: health.trouble, "the trouble is seen", seconds=ROUND_S)
        assert "free space" in str(health.trouble)
        await node.until(lambda: health.trouble is None, "the next look finds it well", seconds=ROUND_S)
        await health.close()

    simulate(story)


def test_another_trouble_of_the_same_stream_is_told_too() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        name = node.subjects.stream("mail")
        node.transport.inject(f"$JS.API.STREAM.PURGE.{name}", replaced(full(name)), replaced(full(name)))
        health.start()
        await node.until(lambda: len(node.logged("cannot be used")) == 2, "it is full twice", seconds=2 * ROUND_S)
        node.faults.leaderless.add(name)
        await node.until(lambda: "leader" in str(health.trouble), "it has no leader", seconds=ROUND_S)
        assert [record.__dict__["code"] for record in node.logged("cannot be used", logging.WARNING)] == [
            "store_full",
            "no_leader",
        ]
        await health.close()

    simulate(story)


def test_while_one_stream_is_well_again_the_other_is_still_trouble() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        mail, dead = node.subjects.stream("mail"), node.subjects.stream("dead")
        node.faults.leaderless |= {mail, dead}
        health.start()
        await node.until(lambda: sorted(told(node, "cannot be used")) == sorted([mail, dead]), "both", seconds=ROUND_S)
        assert mail in str(health.trouble)
        node.faults.leaderless.discard(mail)
        await node.until(lambda: dead in str(health.trouble), "the other is left", seconds=ROUND_S)
        await health.close()

    simulate(story)


def test_a_lost_connection_is_no_streams_fault() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        await node.stop_server()
        health.start()
        await node.pass_time(ROUND_S)
        assert health.trouble is None and node.logged("the store") == []
        await health.close()

    simulate(story)


def test_a_server_that_does_not_answer_holds_up_the_looks_for_a_while_only() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        health.start()
        node.net.cut_off("n1")
        await node.until(lambda: health.trouble, "no answer is trouble", seconds=PERIOD_S + LOOK_S + 0.1)
        await health.close()

    simulate(story)


def test_closed_it_looks_no_more() -> None:
    async def story(node: SimulatedNode) -> None:
        health = StreamHealth(node.transport, node.subjects, period_s=PERIOD_S)
        await health.close()  # before it has begun: nothing
        health.start()
        await node.pass_time(PERIOD_S + 0.5)
        await health.close()
        asked = len(node.transport.requests)
        await node.pass_time(ROUND_S)
        assert len(node.transport.requests) == asked

    simulate(story)
