"""Tasks beside their owner: their end, the caller's own cancellation, and what is heard of errors."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from agentmesh.edge import tasks
from agentmesh.edge.tasks import Background, cancel_and_wait, first_of, wait_for
from agentmesh.errors import Unavailable
from sim.loop import SimLoop, run_sim
from support import run


async def forever() -> None:
    await asyncio.Event().wait()


def begun(work: Coroutine[Any, Any, None], name: str = "work") -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=name)


def runs(background: Background) -> bool:
    """`running`, which a type checker takes for constant."""
    return background.running


def reports() -> list[dict[str, Any]]:
    """What the running loop is told of from now on."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


async def stubborn(cancelled: asyncio.Event, go_on: asyncio.Event) -> None:
    """Ends when it is let go, not when it is cancelled."""
    while not go_on.is_set():
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cancelled.set()


# --- cancel_and_wait --------------------------------------------------------------------------------------------------
def test_tasks_have_ended_when_it_returns() -> None:
    async def scenario() -> None:
        cleaned: list[int] = []

        async def work(number: int) -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                cleaned.append(number)

        running = [begun(work(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert await cancel_and_wait(*running, None)
        assert sorted(cleaned) == [0, 1, 2]
        assert all(task.cancelled() for task in running)

    run(scenario())


def test_none_and_tasks_that_have_ended_are_passed_over() -> None:
    async def scenario() -> None:
        told = reports()

        async def failing() -> None:
            raise ValueError("its owner's to look at")

        failed = begun(failing())
        await asyncio.wait((failed,))
        assert await cancel_and_wait(None, failed)
        assert isinstance(failed.exception(), ValueError)
        assert told == []

    run(scenario())


def test_the_callers_own_cancellation_comes_through_and_the_tasks_are_cancelled_by_then() -> None:
    async def scenario() -> None:
        cancelled, go_on = asyncio.Event(), asyncio.Event()
        task = begun(stubborn(cancelled, go_on))
        await asyncio.sleep(0)
        caller = begun(cancel_and_wait(task))  # type: ignore[arg-type]
        await cancelled.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not task.done()
        go_on.set()
        await task

    run(scenario())


def test_a_task_may_end_what_it_belongs_to() -> None:
    async def scenario() -> None:
        ended: list[bool] = []

        async def work() -> None:
            ended.append(await cancel_and_wait(asyncio.current_task(), other))

        other = begun(forever())
        await begun(work())
        assert ended == [True]
        assert other.cancelled()

    run(scenario())


def test_a_task_that_does_not_end_is_left_behind_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        told = reports()
        cancelled, go_on = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            await stubborn(cancelled, go_on)
            raise ValueError("late")

        task = begun(work(), "stubborn work")
        await asyncio.sleep(0)
        assert not await cancel_and_wait(task, within_s=0.01)
        assert task in tasks._left
        assert "stubborn work does not end when it is cancelled" in caplog.text
        go_on.set()
        await asyncio.wait((task,))
        await asyncio.sleep(0)
        assert task not in tasks._left
        assert [str(context["exception"]) for context in told] == ["late"]

    with caplog.at_level(logging.ERROR, "agentmesh.edge"):
        run(scenario())


@pytest.mark.parametrize(("error", "reported"), [(ValueError("a defect"), 1), (Unavailable("the connection is gone"), 0)])
def test_a_defect_while_a_task_is_cancelled_is_reported_and_what_a_server_did_is_not(error: Exception, reported: int) -> None:
    async def scenario() -> None:
        told = reports()

        async def work() -> None:
            try:
                await forever()
            finally:
                raise error

        task = begun(work())
        await asyncio.sleep(0)
        assert await cancel_and_wait(task)
        assert [context["exception"] for context in told] == [error] * reported

    run(scenario())


def test_what_a_users_code_raises_is_of_no_interest_before_or_while_it_is_cancelled() -> None:
    async def scenario() -> None:
        told = reports()

        async def failing() -> None:
            raise ValueError("before")

        async def work() -> None:
            try:
                await forever()
            finally:
                raise ValueError("meanwhile")

        tasks = [begun(failing()), begun(work())]
        await asyncio.wait((tasks[0],))
        assert await cancel_and_wait(*tasks, heed=False)
        tasks.clear()
        gc.collect()
        assert told == []

    run(scenario())


# --- first_of ---------------------------------------------------------------------------------------------------------
def test_an_event_or_the_end_of_a_task_comes_first() -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        task = begun(forever())
        waiting = begun(first_of(event, task))
        await asyncio.sleep(0)
        event.set()
        await waiting
        assert not task.done()
        event.clear()
        waiting = begun(first_of(event, task))
        await asyncio.sleep(0)
        task.cancel()
        await waiting
        assert len(asyncio.all_tasks()) == 1

    run(scenario())


# --- Background -------------------------------------------------------------------------------------------------------
def test_it_runs_until_it_is_closed_and_may_begin_again() -> None:
    async def scenario() -> None:
        background = Background("work")
        await background.close()
        for _ in range(2):
            assert not runs(background)
            background.begin(forever())
            assert runs(background)
            await background.close()
        assert not runs(background)

    run(scenario())


def test_it_can_be_waited_for() -> None:
    async def scenario() -> None:
        background = Background("work")
        await background.wait()
        background.begin(asyncio.sleep(0))
        await background.wait()
        assert not runs(background)
        background.begin(forever())  # in the step in which the one before is seen to have ended
        assert runs(background)
        await background.close()

    run(scenario())


@pytest.mark.parametrize("error", [ValueError("a defect"), Unavailable("not a reason to end")])
def test_what_ends_it_is_reported_at_once_and_once(error: Exception) -> None:
    async def scenario() -> None:
        told = reports()

        async def work() -> None:
            raise error

        background = Background("the work")
        background.begin(work())
        await background.wait()
        await asyncio.sleep(0)
        assert [(context["message"], context["exception"]) for context in told] == [("the work has failed", error)]
        await background.close()
        assert len(told) == 1

    run(scenario())


def test_two_at_a_time_are_a_mistake() -> None:
    async def scenario() -> None:
        background = Background("work")
        background.begin(forever())
        second = forever()
        with pytest.raises(AssertionError, match="work is running"):
            background.begin(second)
        second.close()
        await background.close()

    run(scenario())


# --- wait_for ---------------------------------------------------------------------------------------------------------
def test_an_event_is_waited_for_until_it_is_set_or_the_time_is_over() -> None:
    async def main(loop: SimLoop) -> list[float]:
        event, ends = asyncio.Event(), []
        for wait, set_after in ((5.0, 2.0), (5.0, None), (0.0, None)):
            if set_after is not None:
                loop.call_later(set_after, event.set)
            await wait_for(event, wait)
            assert not event.is_set()
            ends.append(loop.time())
        event.set()
        await wait_for(event, 5.0)
        assert not event.is_set()
        await asyncio.sleep(10.0)  # no timer that was left behind sets it
        assert not event.is_set()
        return ends

    assert run_sim(main) == [2.0, 7.0, 7.0]


def test_waiting_for_an_event_can_be_cancelled() -> None:
    async def main(_loop: SimLoop) -> None:
        event = asyncio.Event()
        waiting = begun(wait_for(event, 5.0))
        await asyncio.sleep(1.0)
        assert await cancel_and_wait(waiting)
        assert waiting.cancelled()
        await asyncio.sleep(10.0)
        assert not event.is_set()

    run_sim(main)
