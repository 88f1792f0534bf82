"""The gateway puts a prompt into its agent's mailbox once, whatever becomes of the acknowledgements."""

from __future__ import annotations

import asyncio

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_last, read_all
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Disconnected, Handler, Subscription
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import MSG_ID, Outcome, encode, encode_outcome
from agentmesh_node.gateway.gateway import Gateway
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
        gateway = Gateway(line, subjects, registry, now=SYSTEM.now, token=lambda: "once", spawn=lambda work: _spawn(group, work))
        await gateway.start()
        await t.publish(subjects.ask("coder"), b"hello", reply=t.new_inbox())
        stored = subjects.inbox("coder")
        await eventually(lambda: line.requests.count(stored) > len(faults))
        await eventually(lambda: get_last(t, subjects.stream("mail"), stored))
        await gateway.close()
        return line.requests.count(stored), len(await read_all(t, subjects.stream("mail"), stored))


def _spawn(group: asyncio.TaskGroup, work: object) -> None:
    assert asyncio.iscoroutine(work)
    group.create_task(work)


def test_a_prompt_whose_first_try_is_still_being_stored_is_tried_again(server: Server, subjects: Subjects) -> None:
    assert run(_asked(server, subjects, IN_PROCESS, IN_PROCESS)) == (3, 1)


def test_a_prompt_whose_acknowledgement_is_lost_is_stored_once(server: Server, subjects: Subjects) -> None:
    assert run(_asked(server, subjects, reply_lost)) == (2, 1)


class Cut(Faulty):
    """A connection that ends while the gateway begins to listen for an outcome."""

    cuts = 0

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        if ".done." in subject and not self.cuts:
            self.cuts += 1
            raise Disconnected
        return await super().subscribe(subject, handler, queue=queue)


def test_a_repeated_ask_that_meets_a_cut_is_left_and_the_next_one_is_answered(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t, asyncio.TaskGroup() as group:
            await ensure(t, subjects)
            registry = Registry(t, subjects)
            await registry.create(spec_key("coder"), encode(Spec(kind="Coder", incarnation="i1", status="running")))
            line = Cut(t)
            gateway = Gateway(
                line, subjects, registry, now=SYSTEM.now, token=lambda: "once", spawn=lambda work: _spawn(group, work)
            )
            await gateway.start()
            headers = {MSG_ID: "coder.order-7"}
            first = await store(t, subjects.inbox("coder"), b"hello", headers=headers)
            await t.publish(subjects.ask("coder"), b"hello", headers=headers, reply=t.new_inbox())
            await eventually(lambda: line.cuts, what="the cut")
            outcome = encode_outcome(Outcome(agent="coder", ref=str(first.seq), ok=True, text="hello to you"))
            await store(t, subjects.result("coder", str(first.seq)), outcome)
            answer = await t.request(subjects.ask("coder"), b"hello", headers=headers, timeout=30)
            assert answer.data == outcome
            await gateway.close()

    run(main())
