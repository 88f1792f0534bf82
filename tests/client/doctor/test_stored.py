"""What a mesh has stored that no process can use: found by a look at the registry and at the ends of the journals."""

from __future__ import annotations

import pytest

from agentmesh import registry_values, wire
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry
from agentmesh.edge.results import OlderMail, store_outcome
from agentmesh.edge.streams import ensure
from agentmesh.registry_values import AgentStatus, Spec
from agentmesh.subjects import EPOCH_KEY, Subjects, node_key, placement_key, spec_key
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_client.doctor import stored
from agentmesh_client.doctor.stored import StoredFacts, StuckAgent, look
from support import Server, connected, record, run


def spec(status: AgentStatus = "running", reason: ErrorBody | None = None) -> bytes:
    return wire.encode(Spec(kind="Coder", incarnation="life", status=status, reason=reason))


def test_a_mesh_in_order_shows_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            assert await look(t, subjects) == StoredFacts()
            await Registry(t, subjects).create(spec_key("a"), spec())
            await Registry(t, subjects).create(spec_key("b"), spec("wanted"))
            await Registry(t, subjects).create(
                placement_key("n1", "b"), wire.encode(registry_values.Placement(incarnation="life"))
            )
            await Registry(t, subjects).create(node_key("n1"), wire.encode(registry_values.NodeLease(boot="b")))
            await store(t, subjects.journal("a"), record("r1"), headers={RECORD: "r1"})
            await store(t, subjects.journal("b"), record("r1"))  # of an early program
            assert await look(t, subjects) == StoredFacts()

    run(main())


@pytest.mark.case(335)
def test_agents_that_no_live_node_has_are_found_with_the_reason(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            registry = Registry(t, subjects)
            no_node = ErrorBody(code="unavailable", message="no live node serves the kind Coder")
            await registry.create(spec_key("a"), spec("wanted", no_node))
            await registry.create(spec_key("b"), spec("wanted"))
            await registry.create(placement_key("dead", "b"), wire.encode(registry_values.Placement(incarnation="life")))
            for name, status in (("c", "running"), ("d", "stopped"), ("e", "failed")):
                await registry.create(spec_key(name), spec(status))  # type: ignore[arg-type]
            assert (await look(t, subjects)).waiting == [
                StuckAgent("a", "unavailable", "no live node serves the kind Coder"),
                StuckAgent("b", "unavailable", "no supervisor has placed it yet"),
            ]

    run(main())


def test_each_kind_is_found_and_of_stopped_agents_nothing_is_asked(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "GROUP", 2)

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            registry = Registry(t, subjects)
            for name in ("a", "b", "c", "d", "e"):
                await registry.create(spec_key(name), spec("stopped" if name == "b" else "running"))
                await store(t, subjects.journal(name), b"not the mesh's")
            await registry.create(spec_key("lost"), spec("failed", ErrorBody(code="store_lost", message="gone")))
            await registry.create(spec_key("newer"), spec("wanted", ErrorBody(code="unreadable_record", message="old")))
            for key in (spec_key("typo"), "nodes.x", "placements.n.a", "supervisor"):
                await registry.create(key, b"{")
            entry = await registry.get(EPOCH_KEY)
            assert entry is not None
            await registry.update(EPOCH_KEY, b'"two"', entry.revision)
            found = await look(t, subjects)
            assert found.stuck == [StuckAgent("lost", "store_lost", "gone"), StuckAgent("newer", "unreadable_record", "old")]
            assert found.foreign == ["a", "c", "d", "e"]
            assert sorted(found.malformed) == sorted((spec_key("typo"), "nodes.x", "placements.n.a", "supervisor", EPOCH_KEY))

    run(main())


def test_mail_that_is_older_than_the_results_is_found(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await store(t, subjects.inbox("a"), b"hello")
            await store_outcome(t, subjects, Outcome(agent="a", ref="1", ok=True))
            assert (await look(t, subjects)).older_mail is None
            await store_outcome(t, subjects, Outcome(agent="a", ref="2", ok=True))
            assert (await look(t, subjects)).older_mail == OlderMail(answered=2, end=1)

    run(main())


def test_without_streams_nothing_is_known(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            assert await look(t, subjects) == StoredFacts()

    run(main())
