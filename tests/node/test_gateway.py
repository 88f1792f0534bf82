"""The gateway puts a prompt into its agent's mailbox once, whatever becomes of the acknowledgements."""

from __future__ import annotations

import asyncio

from agentmesh.edge import jetstream
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import Spec, encode
from agentmesh_node.gateway import Gateway
from support import Fault, Faulty, Server, connected, eventually, replaced, reply_lost, run

IN_PROCESS = replaced(b'{"error":{"code":400,"err_code":10158,"description":"duplicate message id is in process"}}')


async def _asked(server: Server, subjects: Subjects, *faults: Fault) -> tuple[int, int]:
    """How many tries a prompt took that met `faults`, and how many copies of it are stored."""
    async with connected(server.url) as t, asyncio.TaskGroup() as group:
        await ensure(t, subjects)
        registry = Registry(t, subjects)
        await registry.create(spec_key("coder"), encode(Spec(kind="Coder", incarnation="i1", status="running")))
        line = Faulty(t)
        line.inject(subjects.inbox("coder"), *faults)
        gateway = Gateway(line, subjects, registry, token=lambda: "once", spawn=lambda work: _spawn(group, work))
        await gateway.start()
        await t.publish(subjects.ask("coder"), b"hello", reply=t.new_inbox())
        stored = subjects.inbox("coder")
        await eventually(lambda: line.requests.count(stored) > len(faults))
        await eventually(lambda: jetstream.get_last(t, subjects.stream("mail"), stored))
        await gateway.close()
        return line.requests.count(stored), len(await jetstream.read_all(t, subjects.stream("mail"), stored))


def _spawn(group: asyncio.TaskGroup, work: object) -> None:
    assert asyncio.iscoroutine(work)
    group.create_task(work)


def test_a_prompt_whose_first_try_is_still_being_stored_is_tried_again(server: Server, subjects: Subjects) -> None:
    assert run(_asked(server, subjects, IN_PROCESS, IN_PROCESS)) == (3, 1)


def test_a_prompt_whose_acknowledgement_is_lost_is_stored_once(server: Server, subjects: Subjects) -> None:
    assert run(_asked(server, subjects, reply_lost)) == (2, 1)
