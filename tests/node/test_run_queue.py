"""Work in rounds: each stage for all agents before the next, prefixes in turn, and nothing lost when a piece fails."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest

from agentmesh_node.run_queue import SLICE, RunQueue, RunShare
from node.reads import Reads
from support import eventually, run


def _rounds() -> tuple[RunShare, Reads]:
    reads = Reads()
    return RunQueue(reads).share("team.a"), reads


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
        reads, done = Reads(), list[str]()
        queue = RunQueue(reads)
        queue.close()
        reads.read(lambda: queue.share("a").put(done.append, "late"))
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


class Chain:
    """An agent whose work never ends: each piece puts the next."""

    def __init__(self, share: RunShare, name: str, done: list[str], length: int) -> None:
        self._share, self._name, self._done = share, name, done
        self.left = length

    def begin(self) -> None:
        self._share.put(self._piece, None)

    def _piece(self, _: None) -> None:
        self._done.append(self._name)
        self.left -= 1
        if self.left:
            self._share.put(self._piece, None)


def begin(agents: list[Chain]) -> None:
    for agent in agents:
        agent.begin()


@pytest.mark.case(700)
def test_prefixes_have_their_pieces_done_in_turn_however_many_agents_of_one_have_work() -> None:
    async def main() -> None:
        reads, done = Reads(), list[str]()
        queue = RunQueue(reads)
        flood = [Chain(queue.share(f"flood.{number}"), "flood", done, 3) for number in range(20)]
        quiet = Chain(queue.share("quiet.a"), "quiet", done, 4)

        reads.read(lambda: begin([*flood, quiet]))
        assert done[:8] == ["flood", "quiet"] * 4
        await eventually(lambda: len(done) == 64)
        assert done[8:] == ["flood"] * 56

    run(main())


@pytest.mark.case(700)
def test_what_is_read_for_another_prefix_waits_for_a_slice_and_not_for_all_that_waits() -> None:
    async def main() -> None:
        reads, done = Reads(), list[str]()
        queue = RunQueue(reads)
        flood = [Chain(queue.share(f"flood.{number}"), "flood", done, 100) for number in range(10)]
        quiet = Chain(queue.share("quiet.a"), "quiet", done, 2)
        reads.read(lambda: begin(flood))
        assert done == ["flood"] * SLICE
        reads.read(quiet.begin)
        await asyncio.sleep(0)
        assert done[SLICE:] == ["flood", "quiet"] * 2 + ["flood"] * (2 * SLICE - 4), "a slice for each of the two"
        for turn in range(4, 7):
            await asyncio.sleep(0)
            assert len(done) == turn * SLICE, "one slice in each iteration of the loop"
        await eventually(lambda: len(done) == 1002)
        assert not any(agent.left for agent in flood)

    run(main())


@pytest.mark.case(700)
def test_agents_of_one_prefix_alone_are_not_held_up_by_slices() -> None:
    async def main() -> None:
        reads, done = Reads(), list[str]()
        queue = RunQueue(reads)
        agents = [Chain(queue.share(f"team.{number}"), "team", done, 100) for number in range(10)]
        queue.share("gone.a").leave()
        reads.read(lambda: begin(agents))
        assert len(done) == 1000

    run(main())


@pytest.mark.case(700)
def test_many_prefixes_with_little_work_each_go_through_their_stages_together() -> None:
    async def main() -> None:
        reads, done = Reads(), list[str]()
        queue = RunQueue(reads)
        agents = [Chain(queue.share(f"agent{number}"), str(number), done, SLICE) for number in range(20)]
        reads.read(lambda: begin(agents))
        assert done == [str(number) for number in range(20)] * SLICE

    run(main())
