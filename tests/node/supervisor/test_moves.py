"""Orders to move, as the leader takes and follows them; its nodes are only a lease and an answer to requests."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentmesh.errors import BadRequest, Conflict, MeshError, NotFound, Stopped, Unavailable
from agentmesh.planner import Depart, Plan
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, placement_key, spec_key
from agentmesh.wire import encode, encode_failure
from agentmesh_client.admin import Operator
from agentmesh_node.supervisor import moves
from supervised import Mesh, running
from support import Server, eventually, run


async def homed(mesh: Mesh, agent: str, node: str) -> None:
    await mesh.want(agent)
    await mesh.placed(agent, node)


async def given_up(mesh: Mesh, agent: str, node: str) -> None:
    """The node gives up the agent, as it does between two calls of its turn."""
    entry = await mesh.registry.get(placement_key(node, agent))
    assert entry is not None
    await mesh.registry.delete(entry.key, entry.revision)


@pytest.mark.case(710)
def test_an_agent_that_is_ordered_to_a_node_goes_there_and_the_order_ends(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            n1 = await mesh.node("n1")
            await homed(mesh, "a", "n1")
            for name in ("n2", "n3"):
                await mesh.node(name)
            await mesh.want("b")
            await mesh.until(lambda: bool(mesh.homes("b")))
            operator = Operator(mesh.transport, mesh.subjects)
            target = mesh.homes("b")[0]  # the other one is empty
            assert await operator.move("a", target)
            assert await operator.move("a", target), "the same once more changes nothing"
            await mesh.until(lambda: bool(n1.asked))
            assert (n1.asked[0].agents, n1.asked[0].any_turn) == (("a",), True)
            assert mesh.spec("a").move_to == target
            await given_up(mesh, "a", "n1")
            await operator.arrived("a", target, 10)
            await mesh.until(lambda: mesh.spec("a").move_to is None)
            assert mesh.homes("a") == [target]
            assert not await operator.move("a", target), "it is there"

    run(scenario())


@pytest.mark.case(711)
def test_an_order_that_cannot_be_followed_is_refused_with_the_reason(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("n1")
            await homed(mesh, "a", "n1")
            await mesh.node("other", kinds=("B",))
            await mesh.node("bare", kinds=("A", "C"))
            await mesh.node("leaving", draining=True)
            await mesh.node("shut", cordoned=True)
            await mesh.want("ended", status="stopped")
            await mesh.want("labelled", kind="C", labels={"gpu": "yes"})
            operator = Operator(mesh.transport, mesh.subjects)
            for agent, node, kind, words in (
                ("nobody", "n1", NotFound, "no agent is called nobody"),
                ("a", "nowhere", NotFound, "no node called nowhere is live"),
                ("a", "other", BadRequest, "does not serve kind A"),
                ("labelled", "bare", BadRequest, "does not have its labels"),
                ("a", "leaving", Conflict, "is draining"),
                ("a", "shut", Conflict, "is cordoned"),
                ("ended", "n1", Stopped, "ended is stopped"),
            ):
                with pytest.raises(kind, match=words):
                    await operator.move(agent, node)
            assert mesh.spec("a").move_to is None
            for body in ({}, {"agents": ["a"]}, {"agents": ["a", "b"], "node": "n1"}, {"agents": ["a b"], "node": "n1"}):
                assert (await asked(mesh, "s1", **body))["error"]["code"] in ("bad_request", "invalid_agent"), body

    run(scenario())


async def asked(mesh: Mesh, process: str, **fields: Any) -> dict[str, Any]:
    reply = await mesh.transport.request(mesh.subjects.node(process), json.dumps({"op": "move", **fields}).encode(), timeout=5)
    found: dict[str, Any] = json.loads(reply.data)
    return found


@pytest.mark.case(711)
def test_an_order_ends_when_its_node_takes_no_more(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("n1")
            await homed(mesh, "a", "n1")
            n2 = await mesh.node("n2")
            operator = Operator(mesh.transport, mesh.subjects)
            assert await operator.move("a", "n2")
            await n2.renew(draining=True)
            with pytest.raises(Conflict, match="cannot take it any more"):
                await operator.arrived("a", "n2", 10)
            assert mesh.homes("a") == ["n1"]

    run(scenario())


@pytest.mark.case(712)
def test_an_order_outlives_the_leader(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            first = await mesh.leading("s1")
            await mesh.node("n1")
            await homed(mesh, "a", "n1")
            await mesh.node("n2")
            await mesh.node("n3")
            second = await mesh.supervisor("s2")
            operator = Operator(mesh.transport, mesh.subjects)
            assert (await asked(mesh, "s2", agents=["a"], node="n3"))["error"]["code"] == "unavailable"
            assert await operator.move("a", "n3")
            await first.close()
            await given_up(mesh, "a", "n1")
            await mesh.until(lambda: second.leads)
            await operator.arrived("a", "n3", 20)

    run(scenario())


def test_without_a_leader_it_says_so(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            with pytest.raises(Unavailable, match="no supervisor leads"):
                await Operator(mesh.transport, mesh.subjects).move("a", "n1")

    run(scenario())


@pytest.mark.case(711)
def test_another_order_takes_the_place_of_the_first(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("n1")
            await homed(mesh, "a", "n1")
            for name in ("n2", "n3"):
                await mesh.node(name)
            operator = Operator(mesh.transport, mesh.subjects)
            assert await operator.move("a", "n2")
            assert await operator.move("a", "n3")
            with pytest.raises(Conflict, match="ordered to move to n3 meanwhile"):
                await operator.arrived("a", "n2", 10)
            with pytest.raises(MeshError, match="about to leave n1"):
                await operator.move("a", "n1")
            ending = msgspec.structs.replace(mesh.spec("a"), status="stopping")
            await mesh.registry.update(spec_key("a"), encode(ending), mesh.view.entries[spec_key("a")].revision)
            with pytest.raises(Stopped):
                await operator.arrived("a", "n3", 10)

    run(scenario())


@pytest.mark.case(710)
def test_a_node_that_still_has_the_agent_is_asked_again(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "_AGAIN_S", 0.05)

    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            n1 = await mesh.node("n1")
            await homed(mesh, "a", "n1")
            await mesh.node("n2")
            assert await Operator(mesh.transport, mesh.subjects).move("a", "n2")
            await mesh.until(lambda: len(n1.asked) > 2)
            await given_up(mesh, "a", "n1")
            await mesh.until(lambda: mesh.homes("a") == ["n2"] and mesh.spec("a").move_to is None)

    run(scenario())


def test_what_is_due_of_a_supervisor_that_may_not_act_holds_no_loop() -> None:
    looked: list[bool] = []

    def may_act() -> bool:
        looked.append(True)
        return False

    async def scenario() -> None:
        nothing: Any = None
        subject = moves.Moves(nothing, Subjects(), nothing, nothing, nothing, may_act=may_act, wake=lambda: None)
        subject.note({"a"}, Plan(depart=(Depart("a", "n1", "n2"),)))
        task = asyncio.create_task(subject.run())
        for _ in range(200):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    assert looked == [True]


def test_a_node_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is due, and for a rebalance."""
    full = {"n1": tuple("abc"), "n2": tuple("def")}
    monkeypatch.setattr(moves, "surplus", lambda world: full)

    class Line:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def request(self, subject: str, data: bytes, *, timeout: float) -> None:
            self.asked.append(subject)
            if len(self.asked) == 1:
                await asyncio.Event().wait()

    async def scenario() -> None:
        nothing: Any = SimpleNamespace(copy=lambda: None, add=lambda *_, **__: None)
        for ask in (moves.Moves.run, moves.Moves.rebalance):
            line: Any = Line()
            subject = moves.Moves(line, Subjects(), nothing, nothing, nothing, may_act=lambda: True, wake=lambda: None)
            subject.note({"a", "d"}, Plan(depart=(Depart("a", "n1", "n3"), Depart("d", "n2", "n3"))))
            task = asyncio.create_task(ask(subject))
            await eventually(lambda line=line: len(line.asked) == 2, what="the second node is asked, too")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(scenario())


@pytest.mark.parametrize("known", ["ping, stats and rebalance", "ping, stats, rebalance and more"])
def test_a_leader_of_the_build_before_is_named(server: Server, subjects: Subjects, known: str) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            said = encode_failure(BadRequest(f"a supervisor knows the requests {known}"))
            await mesh.registry.create(SUPERVISOR_KEY, encode(SupervisorLease(id="s0")))
            older = await mesh.connect("s0")
            await older.subscribe(subjects.node("s0"), lambda message: older.post(message.reply, said))
            await older.flush()
            with pytest.raises(BadRequest, match="s0, which leads, is of a build that does not know `move`"):
                await Operator(mesh.transport, mesh.subjects).move("a", "n1")

    run(scenario())
