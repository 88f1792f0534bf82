"""`start_agent`, `stop`, `whereis` and the lists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from agentmesh import wire
from agentmesh.edge.manage import stream_state
from agentmesh.errors import (
    AgentFailed,
    AlreadyStarted,
    BackendStartFailed,
    BadRequest,
    InitFailed,
    MeshError,
    NotFound,
    PreRunFailed,
    Stopped,
    Unavailable,
)
from agentmesh.registry_values import By, NodeLease, Restart, Spec
from agentmesh.subjects import Subjects, node_key, placement_key
from agentmesh.wire import MAX_DEPTH, ErrorBody
from agentmesh_client import connect
from agentmesh_client.lifecycle import new_spec
from client.fake_owner import place, world
from support import Server, eventually, run


@pytest.mark.case(2)
def test_a_start_returns_once_the_agent_runs_and_names_its_node(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.placer():
            assert await w.mesh.whereis("team.coder") is None
            agent = await w.mesh.start_agent(
                "team.coder",
                kind="Coder",
                backend="scripted",
                options={"depth": 3},
                labels={"gpu": "yes"},
                restart="transient",
                watchdog_s=5,
                budget={"tokens": 10},
            )
            assert (agent.name, agent.kind, agent.node, agent.status) == ("team.coder", "Coder", "n1", "running")
            assert await w.mesh.whereis("team.coder") == "n1"
            spec = await w.spec("team.coder")
            assert spec.incarnation == agent.incarnation
            assert (spec.backend, spec.options, spec.labels, spec.watchdog_s, spec.budget) == (
                "scripted",
                {"depth": 3},
                {"gpu": "yes"},
                5,
                {"tokens": 10},
            )
            assert spec.restart == Restart(policy="transient")

    run(scenario())


@pytest.mark.case(3)
def test_a_start_without_name_or_kind_writes_nothing(server: Server, subjects: Subjects) -> None:
    wrong: list[dict[str, Any]] = [
        {"name": None, "kind": "Coder"},
        {"name": "", "kind": "Coder"},
        {"name": "a b", "kind": "Coder"},
        {"name": "coder", "kind": None},
        {"name": "coder", "kind": ""},
        {"name": "coder", "kind": "two.tokens"},
        {"name": "coder", "kind": "Coder", "backend": ""},
        {"name": "coder", "kind": "Coder", "options": {"x": object()}},
        {"name": "coder", "kind": "Coder", "labels": {"gpu": 1}},
        {"name": "coder", "kind": "Coder", "restart": "sometimes"},
        {"name": "coder", "kind": "Coder", "watchdog_s": -1},
        {"name": "coder", "kind": "Coder", "timeout": 0},
    ]

    async def scenario() -> None:
        async with world(server, subjects) as w:
            before = (await stream_state(w.transport, subjects.stream("registry"))).last_seq
            for arguments in wrong:
                with pytest.raises(BadRequest):
                    await w.mesh.start_agent(**arguments)
            with pytest.raises(TypeError):
                await w.mesh.start_agent(kind="Coder")  # type: ignore[call-arg]
            with pytest.raises(TypeError):
                await w.mesh.start_agent("coder")  # type: ignore[call-arg]
            assert (await stream_state(w.transport, subjects.stream("registry"))).last_seq == before

    run(scenario())


@pytest.mark.case(4)
def test_a_taken_name_is_refused_naming_its_node(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            async with w.placer():
                await w.mesh.start_agent("coder", kind="Coder")
                with pytest.raises(AlreadyStarted, match="'n1'") as caught:
                    await w.mesh.start_agent("coder", kind="Coder")
                assert caught.value.details["node"] == "n1"
            await w.mesh.start_agent("waiting", kind="Coder", wait=False)
            with pytest.raises(AlreadyStarted, match="on no node yet"):
                await w.mesh.start_agent("waiting", kind="Coder")

    run(scenario())


@pytest.mark.case(4)
@pytest.mark.case(348)
def test_a_start_may_use_the_agent_that_is_there(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.placer():
            first = await w.mesh.start_agent("coder", kind="Coder", options={"depth": 1}, if_exists="use")
            assert not first.existed
            again = await w.mesh.start_agent("coder", kind="Coder", options={"depth": 2}, if_exists="use")
            assert again.existed and (again.incarnation, again.node) == (first.incarnation, first.node)
            assert (await w.spec("coder")).options == {"depth": 1}
            with pytest.raises(AlreadyStarted, match="of the kind 'Coder'") as caught:
                await w.mesh.start_agent("coder", kind="Other", if_exists="use")
            assert "--if-exists" not in caught.value.message, "it would not help"
            with pytest.raises(AlreadyStarted, match="take it as it is"):
                await w.mesh.start_agent("coder", kind="Coder")
            await w.mesh.stop("coder")
            assert not (await w.mesh.start_agent("coder", kind="Other", if_exists="use")).existed
            with pytest.raises(BadRequest):
                await w.mesh.start_agent("coder", kind="Other", if_exists="maybe")  # type: ignore[arg-type]

    run(scenario(), timeout=60)


def test_of_many_starts_of_one_name_one_wins(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.placer():
            starts = (w.mesh.start_agent("coder", kind="Coder") for _ in range(10))
            results = await asyncio.gather(*starts, return_exceptions=True)
            assert len([one for one in results if isinstance(one, AlreadyStarted)]) == 9
            assert len([one for one in results if not isinstance(one, BaseException)]) == 1

    run(scenario())


@pytest.mark.case(6)
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("failed", "init_failed", InitFailed),
        ("stopped", "backend_start_failed", BackendStartFailed),
        ("stopped", "pre_run_failed", PreRunFailed),
        ("failed", "task_crashed", AgentFailed),
        ("stopped", "stopped", Stopped),
    ],
)
def test_a_start_that_the_agent_refuses_raises_the_reason(
    server: Server, subjects: Subjects, status: Any, code: str, kind: type[MeshError]
) -> None:
    def refuse(spec: Spec) -> Spec:
        return msgspec.structs.replace(spec, status=status, reason=ErrorBody(code=code, message="because"))

    async def scenario() -> None:
        async with world(server, subjects) as w, w.placer(refuse):
            with pytest.raises(kind, match="because"):
                await w.mesh.start_agent("coder", kind="Coder")

    run(scenario())


@pytest.mark.case(221)
def test_an_agent_that_no_node_serves_stays_wanted_and_starts_later(server: Server, subjects: Subjects) -> None:
    def explain(spec: Spec) -> Spec:
        return msgspec.structs.replace(spec, reason=ErrorBody(code="no_node", message="no node serves Coder"))

    async def scenario() -> None:
        async with world(server, subjects) as w:
            async with w.placer(explain):
                with pytest.raises(Unavailable, match="no node serves Coder") as caught:
                    await w.mesh.start_agent("coder", kind="Coder", timeout=8)
            assert caught.value.details["status"] == "wanted"
            assert (await w.spec("coder")).status == "wanted"
            async with w.placer():

                async def runs() -> bool:
                    return await w.mesh.whereis("coder") == "n1"

                await eventually(runs)

    run(scenario())


@pytest.mark.case(97)
def test_a_stop_frees_the_name(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.placer():
            with pytest.raises(NotFound):
                await w.mesh.stop("coder")
            first = await w.mesh.start_agent("coder", kind="Coder")
            await w.mesh.stop("coder")
            assert await w.mesh.whereis("coder") is None
            with pytest.raises(NotFound):
                await w.mesh.stop("coder")
            second = await w.mesh.start_agent("coder", kind="Coder")
            assert second.incarnation != first.incarnation

    run(scenario())


def test_a_stop_that_nobody_finishes_says_so_and_is_joined_by_the_next(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder")
            with pytest.raises(Unavailable, match="stopping"):
                await w.mesh.stop("coder", timeout=8)
            await w.mesh.stop("coder", wait=False)
            stop = asyncio.create_task(w.mesh.stop("coder", timeout=60))
            start = asyncio.create_task(w.mesh.start_agent("coder", kind="Coder", timeout=60))
            await eventually(lambda: len(w.mesh._specs._known["coder"].waiters) == 2, what="both waiting for the end")
            async with w.placer():
                await stop
                assert (await start).node == "n1", "a start that meets a stop waits for the name"

    run(scenario())


def test_who_changed_a_spec_last_by_an_effect_outlives_the_life(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            by = By(sender="boss", origin="1.17.0")
            await w.write_spec("coder", status="stopped", by=by)
            await w.mesh.start_agent("coder", kind="Coder", wait=False)
            assert (await w.spec("coder")).by == by
            await w.mesh.stop("coder", wait=False)
            stopping = await w.spec("coder")
            assert (stopping.status, stopping.by) == ("stopping", by)

    run(scenario())


def test_the_newest_placement_of_this_life_counts(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder", incarnation="life2")
            await place(w.registry, "coder", "life2", node="n1")
            await place(w.registry, "coder", "life2", node="n2")
            await place(w.registry, "coder", "life1", node="n3")
            await place(w.registry, "coder.deeper", "life2", node="n4")
            assert await w.mesh.whereis("coder") == "n2"
            n2 = await w.registry.get(placement_key("n2", "coder"))
            assert n2 is not None
            await w.registry.delete(n2.key, n2.revision)
            assert await w.mesh.whereis("coder") == "n1"

    run(scenario())


def test_the_lists_show_agents_with_their_nodes(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("b.two")
            await w.write_spec("a", status="wanted")
            await w.write_spec("gone", status="stopped")
            await place(w.registry, "b.two", "life1")
            lease = NodeLease(boot="x", kinds=("Coder",), capacity=5, agents=1)
            await w.registry.create(node_key("n1"), wire.encode(lease))
            agents = await w.mesh.list_agents()
            assert [(one.name, one.spec.status, one.node) for one in agents] == [
                ("a", "wanted", None),
                ("b.two", "running", "n1"),
            ]
            assert [one.name for one in await w.mesh.list_agents(stopped=True)] == ["a", "b.two", "gone"]
            assert [(one.id, one.lease) for one in await w.mesh.nodes()] == [("n1", lease)]

    run(scenario())


def test_a_server_without_a_mesh_says_so(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with connect(server.url, root=subjects.root) as mesh:
            with pytest.raises(Unavailable, match="mesh up"):
                await mesh.list_agents()
            with pytest.raises(Unavailable):
                await mesh.start_agent("coder", kind="Coder", timeout=0.5)
            loop = asyncio.get_running_loop()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: mesh.ask("coder", "hello", timeout=600),
                lambda: mesh.tell("coder", "hello", timeout=600),
                lambda: mesh.status("coder", timeout=600),
                lambda: mesh.start_agent("coder", kind="Coder", timeout=600),
            ]
            for call in calls:
                began = loop.time()
                with pytest.raises(Unavailable, match="no such mesh"):
                    await call()
                assert loop.time() - began < 60, "a mesh that is not there is not waited for"

    run(scenario())


def test_options_nested_deeper_than_a_node_could_write_are_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"deeper": deep}
    with pytest.raises(BadRequest, match="nested deeper"):
        new_spec(kind="Coder", options=deep)
    assert new_spec(kind="Coder", options={"list": [[]] * 200}).options == {"list": [[]] * 200}, "wide is not deep"


def test_a_malformed_spec_is_reported_and_hangs_nobody(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.registry.create("agents.coder", b"not json")
            for call in (
                lambda: w.mesh.ask("coder", "hello"),
                lambda: w.mesh.stop("coder"),
                lambda: w.mesh.start_agent("coder", kind="Coder"),
            ):
                with pytest.raises(BadRequest, match="malformed"):
                    await call()

    run(scenario())
