"""How silence is judged: a scripted transport, and a clock that runs only when everybody waits."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentmesh.control_values import NodeStats
from agentmesh.edge.transport import Disconnected, Headers, Message, NoResponders, RequestTimeout
from agentmesh.subjects import Subjects
from agentmesh.wire import encode
from agentmesh_node.supervisor.failure_detector import FailureDetector, PingState

PERIOD, GRACE = 0.1, 0.25


class _Skip(selectors.SelectSelector):
    """Lets time pass at once."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.elapsed += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.elapsed


class ScriptedTransport:
    """Answers pings with what `answer` says at that time."""

    max_payload = 1 << 20
    connected = True

    def __init__(self, answer: Callable[[float], type[Exception] | None]) -> None:
        self._answer = answer
        self.asked: list[float] = []

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        problem = self._answer(now)
        if problem is RequestTimeout:
            await asyncio.sleep(timeout)
        if problem is not None:
            raise problem
        return Message(subject, self.tells(json.loads(data)), {})

    def tells(self, request: dict[str, Any]) -> bytes:
        """A node's answer to one ping."""
        return b"{}"


class Listener:
    """A detector over a script, and what it said when."""

    def __init__(self, answer: Callable[[float], type[Exception] | None]) -> None:
        self.transport = ScriptedTransport(answer)
        self.heard: list[tuple[float, PingState]] = []
        self.detector = FailureDetector(
            self.transport,  # type: ignore[arg-type]  # only `request` is used
            Subjects(),
            period_s=PERIOD,
            grace_s=GRACE,
            on_change=lambda _peer, ping_state: self.heard.append((asyncio.get_running_loop().time(), ping_state)),
        )

    async def listen(self, until: float, meanwhile: Coroutine[Any, Any, None] | None = None) -> None:
        self.detector.watch({"n1"})
        running = asyncio.create_task(self.detector.run())
        if meanwhile is not None:
            await meanwhile
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        running.cancel()
        await asyncio.wait((running,))

    @property
    def states(self) -> list[PingState]:
        return [ping_state for _, ping_state in self.heard]


def run(coro: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(coro)


def test_a_dead_process_is_found_when_the_grace_ends() -> None:
    listener = Listener(lambda now: NoResponders if now >= 1.0 else None)
    run(listener.listen(2.0))
    assert listener.states == [PingState.ANSWERS, PingState.SILENT, PingState.DEAD]
    silent, dead = listener.heard[1][0], listener.heard[2][0]
    assert 1.0 <= silent <= 1.0 + PERIOD
    assert GRACE <= dead - silent <= GRACE + PERIOD / 2


def test_silence_shorter_than_the_grace_is_no_death() -> None:
    listener = Listener(lambda now: NoResponders if 1.0 <= now < 1.2 else None)
    run(listener.listen(2.0))
    assert listener.states == [PingState.ANSWERS, PingState.SILENT, PingState.ANSWERS]


def test_two_short_silences_do_not_add_up() -> None:
    listener = Listener(lambda now: NoResponders if 1.0 <= now < 1.2 or 1.4 <= now < 1.6 else None)
    run(listener.listen(2.0))
    assert PingState.DEAD not in listener.states


def test_a_process_that_hangs_is_not_dead() -> None:
    listener = Listener(lambda now: RequestTimeout if now >= 1.0 else None)
    run(listener.listen(5.0))
    assert listener.states == [PingState.ANSWERS, PingState.HANGS]


def test_a_dead_process_that_answers_again_is_heard() -> None:
    listener = Listener(lambda now: NoResponders if 1.0 <= now < 2.0 else None)
    run(listener.listen(3.0))
    assert listener.states == [PingState.ANSWERS, PingState.SILENT, PingState.DEAD, PingState.ANSWERS]


@pytest.mark.case(226)
def test_without_a_connection_nothing_is_heard_and_silence_before_it_is_void() -> None:
    def answer(now: float) -> type[Exception] | None:
        if now < 1.0:
            return None
        return Disconnected if 1.2 <= now < 3.0 else NoResponders

    listener = Listener(answer)
    run(listener.listen(3.2))
    assert listener.states == [PingState.ANSWERS, PingState.SILENT, PingState.UNKNOWN, PingState.SILENT]


@pytest.mark.case(226)
def test_a_ping_sent_before_everything_was_forgotten_does_not_count() -> None:
    listener = Listener(lambda now: RequestTimeout if now < 0.05 else NoResponders)

    async def forget() -> None:
        await asyncio.sleep(0.05)  # the first ping is on its way until 0.1
        listener.detector.forget_all()

    run(listener.listen(0.3, forget()))
    assert listener.states == [PingState.SILENT]


def test_whoever_is_not_watched_any_more_is_not_pinged() -> None:
    listener = Listener(lambda _now: None)

    async def unwatch() -> None:
        assert await listener.detector.heard_all(1.0)
        listener.detector.watch(set())

    run(listener.listen(2.0, unwatch()))
    assert len(listener.transport.asked) == 1
    assert listener.detector.ping_state("n1") is PingState.UNKNOWN


def test_a_round_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        listener = Listener(lambda _now: Disconnected)
        listener.detector.watch({"n1"})
        running = asyncio.create_task(listener.detector.run())
        assert not await listener.detector.heard_all(1.0)
        running.cancel()
        await asyncio.wait((running,))

    run(scenario())


def test_one_ping_in_ten_asks_who_is_busy_and_the_last_answer_is_kept() -> None:
    async def scenario() -> None:
        listener = Listener(lambda now: NoResponders if now > 2.5 else None)
        requests: list[dict[str, Any]] = []

        def tells(request: dict[str, Any]) -> bytes:
            requests.append(request)
            number = sum(1 for one in requests if one.get("content"))
            stats = NodeStats(node="n1", boot="b", agents=9, running=1, lag_ms=0.0, draining=False, busy=(f"agent{number}",))
            return encode(stats)

        listener.transport.tells = tells  # type: ignore[method-assign]
        await listener.listen(2.9)
        assert [number for number, request in enumerate(requests) if request.get("content")] == [0, 10, 20]
        assert listener.states[-1] is PingState.DEAD
        assert listener.detector.busy("n1") == ("agent3",)
        assert listener.detector.busy("n2") == ()

    run(scenario())


def test_an_answer_that_cannot_be_read_names_nobody_and_is_an_answer() -> None:
    async def scenario() -> None:
        listener = Listener(lambda _: None)
        await listener.listen(0.5)
        assert listener.states == [PingState.ANSWERS]
        assert listener.detector.busy("n1") == ()

    run(scenario())
