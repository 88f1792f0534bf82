"""A tenant that floods the gateway waits for its own requests alone (cases 627, 702 and 718)."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.errors import MailboxFull
from agentmesh_node.gateway.requesters import Requester
from agentmesh_node.gateway.shares import ASKED_S, AT_ONCE, MOST, NOBODYS, TOGETHER, Shares, _Caller
from support import eventually, run

FLOOD, OTHER, THIRD = (Requester("CALLERS", name) for name in ("flood", "other", "third"))


class Served:
    """Requests as they get their places; each leaves when the test lets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shares = Shares(lambda: self.now)
        self.order: list[tuple[str, int]] = []
        self._gates: dict[tuple[str, int], asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, requester: Requester, numbers: range, prefix: str = "team") -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._serve(requester, number, prefix)) for number in numbers]
        self._tasks += tasks
        return tasks

    async def _serve(self, requester: Requester, number: int, prefix: str) -> None:
        key = str(requester.user), number
        gate = self._gates[key] = asyncio.Event()
        async with self.shares.place(prefix, requester):
            self.order.append(key)
            await gate.wait()

    async def answer(self, requester: Requester, number: int) -> None:
        """Let one go, and return when what follows from that has happened."""
        self._gates[str(requester.user), number].set()
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for gate in self._gates.values():
            gate.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def unused(self) -> bool:
        return not self.shares._callers and not self.shares._prefixes


class Making(dict[Requester, _Caller]):
    """The callers of `Shares`, made by a class of the test."""

    def __init__(self, make: type[_Caller]) -> None:
        super().__init__()
        self._make = make

    def setdefault(self, requester: Requester, _: object = None) -> _Caller:
        return super().setdefault(requester, self._make())


def of(name: str, *numbers: int) -> list[tuple[str, int]]:
    return [(name, number) for number in numbers]


@pytest.mark.case(627)
def test_of_one_caller_some_are_served_at_a_time_and_others_find_their_places() -> None:
    async def main() -> None:
        served = Served()
        flood = served.ask(FLOOD, range(MOST))
        await eventually(lambda: len(served.order) == AT_ONCE)
        served.ask(OTHER, range(1))
        await eventually(lambda: len(served.order) == AT_ONCE + 1)
        assert served.order == [*of("flood", *range(AT_ONCE)), ("other", 0)]
        with pytest.raises(MailboxFull):
            await served._serve(FLOOD, MOST, "team")
        flood[AT_ONCE].cancel()
        await asyncio.sleep(0)
        await served.end()
        assert [number for name, number in served.order if name == "flood"] == [n for n in range(MOST) if n != AT_ONCE]
        assert served.unused(), "who asks nothing takes no room"

    run(main())


@pytest.mark.case(702)
def test_with_the_flood_of_one_prefix_waiting_a_request_for_another_is_served_at_once() -> None:
    async def main() -> None:
        served = Served()
        served.ask(FLOOD, range(100), "flooded")
        await eventually(lambda: len(served.order) == AT_ONCE)
        served.ask(OTHER, range(20, 21), "quiet")
        await eventually(lambda: served.order[AT_ONCE:] == [("other", 20)])
        part = TOGETHER // 2
        for number in range(AT_ONCE - part):
            await served.answer(FLOOD, number)
        assert served.order[AT_ONCE + 1 :] == [], "two prefixes have a half each, and the flood has no less than that"
        await served.answer(FLOOD, AT_ONCE - part)
        assert served.order[AT_ONCE + 1 :] == [("flood", AT_ONCE)]
        served.ask(OTHER, range(21, 30), "quiet")
        await eventually(lambda: len(served.order) == AT_ONCE + 2 + part - 1)
        await served.answer(OTHER, 20)
        assert served.order[AT_ONCE + 2 :] == of("other", *range(21, 21 + part))
        await served.end()
        assert len(served.order) == 110 and served.unused()

    run(main())


@pytest.mark.case(702)
def test_a_prefix_that_is_asked_nothing_more_has_no_part() -> None:
    async def main() -> None:
        served = Served()
        served.ask(OTHER, range(1), "quiet")
        served.ask(FLOOD, range(100), "flooded")
        await eventually(lambda: len(served.order) == 1 + TOGETHER // 2)
        await served.answer(OTHER, 0)
        assert len(served.order) == 1 + TOGETHER // 2
        served.now = 2 * ASKED_S
        served.ask(FLOOD, range(100, 101), "flooded")
        await eventually(lambda: len(served.order) == 1 + AT_ONCE)
        await served.end()

    run(main())


@pytest.mark.case(702)
def test_callers_of_one_prefix_have_its_places_in_turn() -> None:
    async def main() -> None:
        served = Served()
        served.ask(THIRD, range(1), "quiet")
        served.ask(FLOOD, range(20), "flooded")
        await eventually(lambda: len(served.order) == 3)
        late = served.ask(OTHER, range(20, 23), "flooded")
        await asyncio.sleep(0)
        late[0].cancel()
        await asyncio.sleep(0)
        for number in range(4):
            await served.answer(FLOOD, number)
        assert served.order[3:] == [("flood", 2), ("other", 21), ("flood", 3), ("other", 22)]
        await served.end()
        assert served.unused()

    run(main())


@pytest.mark.case(702)
def test_a_request_that_is_cancelled_as_it_gets_its_place_gives_it_to_the_next() -> None:
    async def main() -> None:
        served, gate = Served(), asyncio.Event()

        async def leaves() -> None:
            async with served.shares.place("team", FLOOD):
                await gate.wait()
            waits[0].cancel()  # in the very step that has given it the place

        leaving = asyncio.create_task(leaves())
        served.ask(FLOOD, range(AT_ONCE - 1))
        waits = served.ask(FLOOD, range(AT_ONCE, AT_ONCE + 2))
        await eventually(lambda: len(served.order) == AT_ONCE - 1)
        gate.set()
        await leaving
        await eventually(lambda: served.order[AT_ONCE - 1 :] == [("flood", AT_ONCE + 1)])
        await served.end()
        assert served.unused()

    run(main())


@pytest.mark.case(718)
def test_requests_for_agents_that_do_not_exist_make_no_tenants_part_smaller() -> None:
    async def main() -> None:
        served = Served()
        served.ask(OTHER, range(100, 120), NOBODYS)
        served.ask(THIRD, range(100, 120), NOBODYS)
        await eventually(lambda: len(served.order) == 2 * AT_ONCE)
        served.ask(FLOOD, range(20), "real")
        await eventually(lambda: len(served.order) == 3 * AT_ONCE)
        assert served.order[2 * AT_ONCE :] == of("flood", *range(AT_ONCE))
        for number in range(100, 100 + AT_ONCE):
            await served.answer(OTHER, number)
            await served.answer(THIRD, number)
        waiting = 20 - AT_ONCE
        assert len(served.order) < 3 * AT_ONCE + 2 * waiting, "those have one part, all together"
        await served.end()
        assert len(served.order) == 60 and served.unused()

    run(main())


@pytest.mark.case(702)
def test_a_caller_that_uses_all_its_places_gets_the_next_one_where_it_has_fewest() -> None:
    async def main() -> None:
        served = Served()
        prefixes = [f"p{number}" for number in range(AT_ONCE)]
        for number, prefix in enumerate(prefixes):
            served.ask(FLOOD, range(number, number + 1), prefix)
        await eventually(lambda: len(served.order) == AT_ONCE)
        served.ask(FLOOD, range(10, 12), "p0")
        served.ask(FLOOD, range(20, 22), "late")
        served.ask(OTHER, range(30, 31), "late")
        await eventually(lambda: served.order[AT_ONCE:] == [("other", 30)])
        await served.answer(FLOOD, 1)
        assert served.order[AT_ONCE + 1 :] == [], "the other caller has the one place there"
        await served.answer(OTHER, 30)
        assert served.order[AT_ONCE + 1 :] == [("flood", 20)]
        await served.answer(FLOOD, 0)
        assert served.order[AT_ONCE + 2 :] == [("flood", 10)]
        await served.end()
        assert served.unused()

    run(main())


def test_a_place_costs_no_look_at_all_those_that_wait() -> None:
    async def looks(callers: int) -> int:
        """At how many callers is looked, while all are served one after the other."""
        served = Served()
        seen = 0

        class Counted(_Caller):
            @property
            def served(self) -> int:
                nonlocal seen
                seen += 1
                return self._served

            @served.setter
            def served(self, served: int) -> None:
                self._served = served

        served.shares._callers = Making(Counted)
        served.ask(OTHER, range(1), "quiet")
        flood = [Requester("CALLERS", f"c{number}") for number in range(callers)]
        for requester in flood:
            served.ask(requester, range(1), "flooded")
        await eventually(lambda: len(served.order) == 1 + TOGETHER // 2)
        await served.end()
        assert len(served.order) == 1 + callers
        return seen

    async def main() -> None:
        assert await looks(400) < 5 * await looks(100)

    run(main())
