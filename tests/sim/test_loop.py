"""The loop with virtual time: what is due when, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from sim.loop import Deadlock, Process, SimLoop, run_sim


def test_timers_come_in_the_order_of_their_times_however_far_they_are() -> None:
    async def main(loop: SimLoop) -> list[tuple[float, int]]:
        came: list[tuple[float, int]] = []

        def note(number: int) -> None:
            came.append((loop.time(), number))

        for number, seconds in enumerate((700.0, 0.5, 3.0, 0.5, 90.0, 3.0, 0.0, 1.9, 2.0)):
            loop.call_later(seconds, note, number)
        gone = [loop.call_later(seconds, note, -1) for seconds in (0.7, 5.0, 800.0)]
        loop.call_later(4.0, lambda: loop.call_at(4.5, note, 99))
        for handle in gone:
            handle.cancel()
        await asyncio.sleep(1000.0)
        return came

    assert run_sim(main) == [
        (0.0, 6), (0.5, 1), (0.5, 3), (1.9, 7), (2.0, 8), (3.0, 2), (3.0, 5), (4.5, 99), (90.0, 4), (700.0, 0),
    ]  # fmt: skip


def test_what_is_to_be_called_next_is_called_behind_what_is_ready() -> None:
    async def main(loop: SimLoop) -> list[str]:
        called: list[str] = []
        process = Process(loop, "p")
        await asyncio.sleep(1.0)
        loop.call_soon(called.append, "ready")
        loop.call_next(process, called.append, "behind it")
        await asyncio.sleep(1.0)
        loop.call_next(process, called.append, "at once")
        called.append("then")
        process.freeze()
        loop.call_next(process, called.append, "when it goes on")
        await asyncio.sleep(1.0)
        called.append("it goes on")
        process.thaw()
        await asyncio.sleep(1.0)
        process.kill()
        loop.call_next(process, called.append, "never")
        await asyncio.sleep(1.0)
        return list(called)  # when the loop closes, what the dead have left is called too

    assert run_sim(main) == ["ready", "behind it", "at once", "then", "it goes on", "when it goes on"]


def test_an_error_in_a_callback_is_a_defect_of_the_run() -> None:
    async def main(loop: SimLoop) -> list[str]:
        loop.call_later(1.0, lambda: 1 / 0)
        await asyncio.sleep(2.0)
        return loop.defects

    (defect,) = run_sim(main)
    assert "ZeroDivisionError" in defect


def test_to_wait_for_what_never_comes_is_a_deadlock() -> None:
    async def main(loop: SimLoop) -> None:
        loop.call_later(50.0, lambda: None).cancel()
        await loop.create_future()

    with pytest.raises(Deadlock):
        run_sim(main)
