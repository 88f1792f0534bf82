"""A supervisor's decisions: logged at once, published soon, and never in the way."""

from __future__ import annotations

import asyncio
import json
import logging

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Message
from agentmesh_node.supervisor.decision_log import DecisionLog
from node.simulated import SimulatedNode, simulate


def test_a_decision_is_a_log_line_at_once_and_an_event_soon() -> None:
    async def story(node: SimulatedNode) -> None:
        heard: list[Message] = []
        await node.others.subscribe(node.subjects.event("_supervisor", "*"), heard.append)
        await node.others.flush()
        decisions = DecisionLog(node.transport, node.subjects, "s1", node.services.now)
        running = asyncio.ensure_future(decisions.run())
        decisions.add("node_gone", "no responders", level=logging.WARNING, node="n1")
        (line,) = node.logged("node_gone", logging.WARNING)
        assert vars(line)["reason"] == "no responders"
        assert vars(line)["supervisor"] == "s1"
        await node.until(lambda: heard, "the event")
        event = json.loads(heard[0].data)
        assert event.pop("time")
        assert event == {"v": 1, "kind": "node_gone", "node": "n1", "reason": "no responders", "supervisor": "s1"}
        await cancel_and_wait(running)

    simulate(story)


def test_without_a_connection_events_are_dropped_and_nothing_fails() -> None:
    async def story(node: SimulatedNode) -> None:
        heard: list[Message] = []
        await node.others.subscribe(node.subjects.event("_supervisor", "*"), heard.append)
        decisions = DecisionLog(node.transport, node.subjects, "s1", node.services.now)
        await node.stop_server()
        decisions.add("leading", "first")
        decisions.add("leading", "second")
        await decisions.flush()
        await node.start_server()
        decisions.add("leading", "third")
        await decisions.flush()
        await node.until(lambda: heard, "the event")
        assert [json.loads(message.data)["reason"] for message in heard] == ["third"]
        assert len(node.logged("leading")) == 3

    simulate(story)
