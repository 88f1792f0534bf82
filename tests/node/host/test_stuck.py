"""Agents that cannot be run: said in the spec until the registry has it, by readiness, and to every requester."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.control_values import ControlRequest
from agentmesh.edge.transport import Message
from agentmesh.errors import UnreadableRecord
from agentmesh.registry_values import AgentStatus, Spec, unknown_fields
from agentmesh.subjects import spec_key
from agentmesh.wire import ErrorBody, encode
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.host.stuck import MOST_NAMED, StuckAgents
from node.simulated import SimulatedNode, simulate

NEWER = UnreadableRecord("record 7 is of version 9: upgrade this node")


def stuck_agents(node: SimulatedNode) -> StuckAgents:
    return StuckAgents(node.services, lambda spec: spec.backend or "scripted")


def placed(name: str = "a") -> PlacedAgent:
    return PlacedAgent(name, 7, "life")


async def shown(node: SimulatedNode, status: AgentStatus, code: str) -> Spec:
    found: list[Spec] = []

    async def read() -> None:
        spec = await node.read_spec("a")
        if spec is not None:
            found.append(spec)

    def says() -> bool:
        node.world.process("others").spawn(read())
        return bool(found) and found[-1].status == status and found[-1].reason is not None and found[-1].reason.code == code

    await node.until(says, f"the spec says {status}")
    return found[-1]


def test_a_loss_makes_the_spec_failed_with_the_record_that_is_gone() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running", options={"depth": 3})
        one = placed()
        stuck_agents(node).lost(one, "record 9 is gone", 9)
        spec = await shown(node, "failed", "store_lost")
        assert spec.reason == ErrorBody(code="store_lost", message="record 9 is gone", details={"record": 9, "epoch": 1})
        assert (spec.options, spec.ran, one.broken) == ({"depth": 3}, True, True)
        assert len(node.logged("the store has lost data")) == 1

    simulate(story)


def test_a_record_that_cannot_be_read_makes_the_spec_wanted_and_is_said_once() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running")
        agents, one = stuck_agents(node), placed()
        for _ in range(3):
            agents.unreadable(one, NEWER)
        spec = await shown(node, "wanted", "unreadable_record")
        assert spec.reason is not None and "upgrade" in spec.reason.message
        assert len(node.logged("the agent waits")) == 1
        assert not one.broken and agents.trouble([one]) is None, "the node is ready"
        agents.runs(one)
        assert one.stuck is None
        assert len(node.logged("the agent goes on")) == 1

    simulate(story)


def test_what_a_newer_build_has_put_into_the_spec_stays() -> None:
    async def story(node: SimulatedNode) -> None:
        spec = Spec(kind="Doll", incarnation="life", status="running")
        await node.write_spec("a", encode(spec)[:-1] + b',"newer":[1]}')
        stuck_agents(node).unreadable(placed(), NEWER)
        await shown(node, "wanted", "unreadable_record")
        (stored,) = node.stored(node.subjects.registry_key(spec_key("a")))
        assert unknown_fields(stored.data) == {"newer": msgspec.Raw(b"[1]")}

    simulate(story)


def test_a_stop_that_is_under_way_stays_one() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="stopping")
        stuck_agents(node).lost(placed(), "gone")
        await shown(node, "stopping", "store_lost")

    simulate(story)


def test_another_life_and_one_that_is_over_are_left_alone() -> None:
    async def story(node: SimulatedNode) -> None:
        for fields in ({"status": "running", "incarnation": "next"}, {"status": "stopped"}):
            written: dict[str, Any] = fields
            spec = await node.spec("a", **written)
            stuck_agents(node).lost(placed(), "gone")
            await node.pass_time(5.0)
            assert await node.read_spec("a") == spec

    simulate(story)


def test_it_is_said_when_the_registry_can_be_written_again() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running")
        node.faults.leaderless.add(node.subjects.stream("registry"))
        stuck_agents(node).lost(placed(), "gone")
        await node.pass_time(5.0)
        node.faults.leaderless.clear()
        await shown(node, "failed", "store_lost")

    simulate(story)


def test_readiness_names_the_first_and_says_what_to_do() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = [placed(f"a{number}") for number in range(MOST_NAMED + 2)]
        stuck = stuck_agents(node)
        assert stuck.trouble(agents) is None
        for one in agents:
            stuck.lost(one, "gone")
        text = stuck.trouble(agents)
        assert text is not None and "a0, a1, a2, a3, a4 and 2 more" in text and "mesh stop" in text

    simulate(story)


def test_every_request_is_answered_at_once() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running", kind="Doll", backend="anthropic")
        stuck, one = stuck_agents(node), placed()
        heard: list[dict[str, Any]] = []
        await node.others.subscribe("replies.*", lambda message: heard.append(msgspec.json.decode(message.data)))
        await node.others.flush()

        def ask(body: bytes, reply: str = "replies.1") -> None:
            stuck.answer(one, Message("mesh.live.control.a", body, {}, reply))

        stuck.lost(one, "gone", 9)
        for body in (encode(ControlRequest(op="status")), encode(ControlRequest(op="resume")), b"{", b"[" * 5000):
            ask(body)
        ask(encode(ControlRequest(op="status")), "mesh.inbox.b")  # into the mesh's own subjects nothing is sent
        await node.until(lambda: len(heard) == 4, "the answers")
        status = next(body for body in heard if "kind" in body)
        assert (status["backend"], status["state"], status["generation"], status["failed"]["code"]) == (
            "anthropic", "idle", 7, "store_lost",
        )  # fmt: skip
        assert sorted(body["error"]["code"] for body in heard if "kind" not in body) == [
            "bad_request",
            "bad_request",
            "store_lost",
        ]
        assert node.stored("mesh.inbox.b") == []

        heard.clear()
        stuck.unreadable(one, NEWER)
        ask(encode(ControlRequest(op="status")))
        ask(encode(ControlRequest(op="resume")))
        await node.until(lambda: len(heard) == 2, "the answers")
        status = next(body for body in heard if "kind" in body)
        assert (status["failed"], status["waiting"]["code"]) == (None, "unreadable_record")

    simulate(story)


def test_requests_that_waited_for_an_owner_are_answered() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running")
        heard: list[dict[str, Any]] = []
        await node.others.subscribe("replies.*", lambda message: heard.append(msgspec.json.decode(message.data)))
        await node.others.flush()
        one = placed()
        one.waiting = (("control", Message("mesh.live.control.a", b'{"op":"resume"}', {}, "replies.1")),)
        stuck_agents(node).lost(one, "gone")
        await node.until(lambda: heard, "the answer")
        assert heard[0]["error"]["code"] == "store_lost"
        assert not one.waiting

    simulate(story)
