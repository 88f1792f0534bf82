"""What waits for the agents of one prefix is bounded, and counted without a request (case 626)."""

from __future__ import annotations

import pytest

from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.errors import MailboxFull
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import WAYS, Subjects, node_key
from agentmesh.wire import encode
from agentmesh_node.gateway.prefix_bounds import LEASES_S, PrefixBounds
from node.gateway.served import served
from support import Faulty, Server, connected, eventually, run


@pytest.mark.case(626)
def test_leases_tell_what_waits_and_what_was_taken_since_is_counted_here(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            registry, now = Registry(t, subjects), 100.0
            bounds = PrefixBounds(registry, 5, lambda: now)
            await bounds.start()
            for _ in range(5):
                bounds.take("team-a.coder")
            with pytest.raises(MailboxFull) as full:
                bounds.take("team-a.other")
            assert full.value.details == {"prefix": "team-a", "waiting": 5, "limit": 5}
            bounds.take("team-b.coder")
            now += LEASES_S
            assert bounds.waiting("team-a") == 5, "a lease may not tell of them yet"
            now += LEASES_S
            assert bounds.waiting("team-a") == 0
            lease = NodeLease(boot="b", waiting={"team-a": 3})
            revision = await registry.create(node_key("n1"), encode(lease))
            second = await registry.create(node_key("n2"), encode(NodeLease(boot="c", waiting={"team-a": 2})))
            await eventually(lambda: bounds.waiting("team-a") == 5)
            with pytest.raises(MailboxFull):
                bounds.take("team-a")
            await registry.update(node_key("n1"), encode(NodeLease(boot="b")), revision)
            await eventually(lambda: bounds.waiting("team-a") == 2)
            await registry.delete(node_key("n2"), second)
            await eventually(lambda: bounds.waiting("team-a") == 0)
            await bounds.close()

    run(main())


@pytest.mark.case(626)
def test_the_gateway_refuses_what_came_through_an_import_and_asks_nobody_for_each(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        lines: list[Faulty] = []

        def noted(t: object) -> Faulty:
            lines.append(Faulty(t))  # type: ignore[arg-type]
            return lines[0]

        async with served(server, subjects, noted, callers_waiting=3) as at:
            for _ in range(3):
                assert "ref" in await at.request(subjects.caller("tell", "coder"))
            before = list(lines[0].requests)
            for way in WAYS[:3]:
                refused = await at.request(subjects.caller(way, "coder"), b'{"n":1}' if way == "event-to" else b"x")
                assert refused["error"]["code"] == "mailbox_full", (way, refused)
            assert "ref" in await at.request(subjects.tell("coder")), "who is in the mesh's account is bounded by the lane alone"
            asked = lines[0].requests[len(before) :]
            assert all("STREAM.INFO" not in subject for subject in asked), asked
            assert len(await at.mail()) == 4

    run(main())
