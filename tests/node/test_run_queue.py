"""Work in rounds: each stage for all agents before the next, and nothing lost when a piece fails."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from agentmesh_node.run_queue import RunQueue
from node.reads import Reads
from support import run


def _rounds() -> tuple[RunQueue, Reads]:
    reads = Reads()
    return RunQueue(reads), reads


def test_each_stage_is_done_for_all_before_the_next() -> None:
    async def main() -> None:
        rounds, reads = _rounds()
        done: list[str] = []

        def stage(number: int) -> Callable[[str], None]:
            def work(agent: str) -> None:
                done.append(f"{agent}{number}")
                if number < 3:
                    rounds.put(stage(number + 1), agent)

            return work

        def deliver() -> None:
            for agent in "abc":
                rounds.put(stage(1), agent)
            assert done == []

        reads.read(deliver)
        assert done == ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]

    run(main())


def test_what_is_put_outside_a_read_is_done_soon() -> None:
    async def main() -> None:
        rounds, reads = _rounds()
        done: list[str] = []
        rounds.put(done.append, "late")
        assert done == []
        await asyncio.sleep(0)
        assert done == ["late"]
        reads.read(lambda: rounds.put(done.append, "read"))
        assert done == ["late", "read"]

    run(main())


def test_no_piece_sees_the_context_of_who_put_another() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody's")

    async def main() -> None:
        rounds, _ = _rounds()
        seen: list[str] = []

        async def turn() -> None:
            tenant.set("a's")
            rounds.put(lambda agent: seen.append(f"{agent} {tenant.get()}"), "a")

        await asyncio.create_task(turn())
        rounds.put(lambda agent: seen.append(f"{agent} {tenant.get()}"), "b")
        await asyncio.sleep(0)
        assert seen == ["a nobody's", "b nobody's"]

    run(main())


def test_closed_it_does_nothing_at_the_end_of_reads() -> None:
    async def main() -> None:
        rounds, reads = _rounds()
        done: list[str] = []
        rounds.close()
        reads.read(lambda: rounds.put(done.append, "late"))
        assert done == []

    run(main())


def test_what_waits_is_done_by_a_read_that_comes_first() -> None:
    async def main() -> None:
        rounds, reads = _rounds()
        done: list[str] = []
        rounds.put(done.append, "waits")
        reads.read(lambda: rounds.put(done.append, "read"))
        assert done == ["waits", "read"]
        await asyncio.sleep(0)
        assert done == ["waits", "read"]

    run(main())


def test_a_piece_that_fails_holds_up_no_other() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(str(context["exception"])))
        rounds, _ = _rounds()
        failed: list[str] = []
        done: list[str] = []

        def fail(what: str) -> None:
            raise RuntimeError(what)

        rounds.put(fail, "a defect")
        rounds.put(done.append, "next")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rounds.put(done.append, "later")
        await asyncio.sleep(0)
        assert (failed, done) == (["a defect"], ["next", "later"])

    run(main())
