"""Plain callbacks that hang in their threads keep no other agent's from running."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator

import pytest

from agentmesh.errors import Busy
from agentmesh_node.user_code import callback_threads
from agentmesh_node.user_code.callback_threads import AT_ONCE, LEFT_BEHIND, CallbackThreads
from support import eventually, run

WAIT_S = 20.0


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What hanging callbacks wait for; set at the end."""
    event = threading.Event()
    yield event
    event.set()


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait((task,), timeout=WAIT_S)


def test_more_hanging_callbacks_than_places_do_not_keep_another_agents_from_running(hang: threading.Event) -> None:
    async def main() -> None:
        threads = CallbackThreads()
        begun: list[int] = []

        def work(number: int) -> None:
            begun.append(number)
            hang.wait()

        hung = [asyncio.create_task(threads.run(f"a{n}", work, (n,))) for n in range(2 * AT_ONCE)]
        await eventually(lambda: len(begun) >= AT_ONCE)
        assert await asyncio.wait_for(threads.run("other", str, (17,)), WAIT_S) == "17"
        assert not any(task.done() for task in hung)
        hang.set()
        await asyncio.wait_for(asyncio.gather(*hung), WAIT_S)

    run(main())


def test_quick_callbacks_wait_for_a_place_instead_of_taking_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_threads, "SLOT_S", WAIT_S)
    running, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == AT_ONCE:
                go.set()
        assert go.wait(WAIT_S)
        with lock:
            running -= 1

    async def main() -> None:
        threads = CallbackThreads()
        await asyncio.gather(*(threads.run(f"a{n}", work, ()) for n in range(4 * AT_ONCE)))

    run(main())
    assert most == AT_ONCE


def test_an_agent_that_leaves_too_many_threads_behind_is_refused_until_they_end(hang: threading.Event) -> None:
    async def main() -> None:
        threads = CallbackThreads()
        for _ in range(LEFT_BEHIND + 1):
            begun = asyncio.Event()
            loop = asyncio.get_running_loop()

            def work(begun: asyncio.Event = begun, loop: asyncio.AbstractEventLoop = loop) -> None:
                loop.call_soon_threadsafe(begun.set)
                hang.wait()

            task: asyncio.Task[object] = asyncio.create_task(threads.run("coder", work, ()))
            await asyncio.wait_for(begun.wait(), WAIT_S)
            await cancelled(task)
        with pytest.raises(Busy, match="coder"):
            await threads.run("coder", str, (1,))
        assert await threads.run("other", str, (1,)) == "1"
        hang.set()
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    assert await threads.run("coder", str, (1,)) == "1"
                    break
                except Busy:
                    await asyncio.sleep(0)

    run(main())


def test_a_callback_sees_the_context_it_was_called_in_and_its_error_comes_back() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def fail() -> None:
        raise LookupError(variable.get())

    async def main() -> None:
        variable.set("here")
        with pytest.raises(LookupError, match="here"):
            await CallbackThreads().run("coder", fail, ())

    run(main())


def test_a_system_without_threads_refuses_and_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        threads = CallbackThreads()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
            for _ in range(AT_ONCE + 1):
                with pytest.raises(Busy):
                    await asyncio.wait_for(threads.run("coder", str, (1,)), WAIT_S)
        assert await threads.run("coder", str, (1,)) == "1"

    run(main())
