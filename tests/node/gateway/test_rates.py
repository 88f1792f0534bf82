"""A process takes so many requests of callers a second for one prefix, and the next ones wait for their time (case 703)."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.subjects import Subjects
from agentmesh_node.gateway.rates import AHEAD_S, PrefixRates
from node.gateway.served import served
from sim.loop import SimLoop, run_sim
from support import Server, eventually, run

pytestmark = pytest.mark.case(703)


def test_a_flood_gets_its_rate_and_what_comes_for_others_waits_for_nothing() -> None:
    async def main(loop: SimLoop) -> None:
        rates = PrefixRates(100.0)
        taken: list[float] = []
        began = loop.time()

        async def one(prefix: str) -> None:
            await rates.turn(prefix)
            taken.append(loop.time() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(510):
                group.create_task(one("flood"))
        first = [at for at in taken if at == 0.0]
        assert len(first) == 100 * AHEAD_S, "few requests wait for nothing"
        assert taken[-1] == pytest.approx(5.0), "and the others come at the rate"
        before = loop.time()
        await rates.turn("other")
        assert loop.time() == before
        await asyncio.sleep(2.0)
        before = loop.time()
        for _ in range(10):
            await rates.turn("flood")
        assert loop.time() == before, "who has waited has as many at once again, and no more than that"
        await rates.turn("flood")
        assert loop.time() > before

    run_sim(main)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_no_rate_holds_nothing_and_a_slow_one_takes_the_first_request_at_once(rate: float) -> None:
    async def main(loop: SimLoop) -> None:
        rates, began = PrefixRates(rate), loop.time()
        for _ in range(3):
            await rates.turn("team-a")
        assert loop.time() - began == pytest.approx(4.0 if rate else 0.0)

    run_sim(main)


def test_a_request_that_is_given_up_while_it_waits_leaves_the_others_their_time() -> None:
    async def main(loop: SimLoop) -> None:
        rates, began = PrefixRates(1.0), loop.time()
        await rates.turn("team-a")
        second = asyncio.ensure_future(rates.turn("team-a"))
        third = asyncio.ensure_future(rates.turn("team-a"))
        await asyncio.sleep(0.5)
        second.cancel()
        await third
        assert loop.time() - began == pytest.approx(2.0) and second.cancelled()

    run_sim(main)


def test_the_gateway_holds_to_it_for_callers_of_other_accounts_alone(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        due, held = asyncio.Event(), list[str]()

        async def turn(rates: PrefixRates, prefix: str) -> None:
            held.append(prefix)
            await due.wait()

        monkeypatch.setattr(PrefixRates, "turn", turn)
        async with served(server, subjects) as at:
            waiting = asyncio.ensure_future(at.request(subjects.caller("tell", "coder")))
            await eventually(lambda: held == ["coder"], what="the request that waits for its time")
            for _ in range(3):
                assert "ref" in await at.request(subjects.tell("coder"))
            assert not waiting.done() and len(await at.mail()) == 3
            due.set()
            assert "ref" in await waiting

    run(main())
