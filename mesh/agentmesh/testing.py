"""Conformance tests for backends: what the mesh relies upon, as tests that run against yours.

    from agentmesh.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        failing_prompt = "fail"

        def backend(self):
            return MyBackend(SomeAgent(), {"model": "m"})

Any runner that collects `test_` methods of classes will do (pytest does). Each test makes its own backend, runs it on an event
loop of its own, and releases it. docs/backends.md has the contract in prose.
"""

from __future__ import annotations

import asyncio
import copy
import json
import unittest
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ClassVar, get_args

import msgspec

from agentmesh.backend import Backend, Event, EventKind, Response, Stream, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UnjournaledSteps

KINDS = frozenset(get_args(EventKind.__value__))
COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")


class BackendConformance:
    """Subclass it, and say how to make a backend. The attributes say what to prompt it with."""

    prompts: ClassVar[tuple[str, ...]] = ("hello", "and again")
    """Prompts that are answered, one after another in one session."""
    failing_prompt: ClassVar[str | None] = None
    """A prompt whose turn fails without harm to the session; None if there is none."""
    endless_prompt: ClassVar[str | None] = None
    """A prompt whose turn gives at least one event and then takes longer than `patience_s`; None if there is none."""
    patience_s: ClassVar[float] = 60.0
    """Longest that a test may take, in seconds."""

    def backend(self) -> Backend:
        """A new backend, as a process makes one when it activates the agent."""
        raise NotImplementedError(f"{type(self).__name__} must define backend")

    # --- sessions -----------------------------------------------------------------------------------------------------
    def test_a_new_session_is_a_json_value(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                _json(await backend.start_session(), "start_session")

        self._run(check)

    def test_another_process_goes_on_with_a_session(self) -> None:
        async def check() -> None:
            async with self._backend() as first:
                session = _json(await self._turn(first, await first.start_session(), self.prompts[0]), "the session after a turn")
            for prompt in self.prompts[1:]:
                async with self._backend() as other:
                    session = _json(await other.resume_session(copy.deepcopy(session)), "resume_session")
                    session = _json(await self._turn(other, session, prompt), "the session after a turn")

        self._run(check)

    def test_a_session_that_is_resumed_again_is_not_changed_again(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await self._turn(backend, await backend.start_session(), self.prompts[0])
                once = _json(await backend.resume_session(session), "resume_session")
                assert await backend.resume_session(once) == once, "resume_session must have nothing left to repair"

        self._run(check)

    def test_a_session_can_be_ended_twice(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await self._turn(backend, await backend.start_session(), self.prompts[0])
                await backend.terminate_session(session)
                await backend.terminate_session(session)

        self._run(check)

    def test_a_session_is_ended_by_a_process_that_never_used_it(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = _json(await backend.start_session(), "start_session")
            async with self._backend() as other:
                await other.terminate_session(session)

        self._run(check)

    # --- turns --------------------------------------------------------------------------------------------------------
    def test_a_turn_ends_in_exactly_one_terminal_event(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                stream = await backend.prompt(await backend.start_session(), self.prompts[0], _turn())
                events = [event async for event in stream.events]
                assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True], [e.kind for e in events]
                assert events[-1].kind == "result", events[-1]

        self._run(check)

    def test_events_have_the_shapes_of_their_kinds(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                for number, prompt in enumerate(self.prompts, 1):
                    stream = await backend.prompt(session, prompt, _turn(number))
                    events = await _read(stream)
                    for event in events:
                        _shape(event)
                    _paired(events)
                    assert isinstance(Response.of(events, 0, None).text, str)
                    session = backend.update_session(stream.session, events[-1].data)

        self._run(check)

    def test_a_turn_leaves_the_session_that_it_was_given_alone(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await self._turn(backend, await backend.start_session(), self.prompts[0])
                before = copy.deepcopy(session)
                await self._turn(backend, session, self.prompts[-1])
                assert session == before, "prompt must not change its session: a turn that is lost begins again with it"

        self._run(check)

    def test_a_reader_may_stop_before_the_end(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                stream = await backend.prompt(session, self.prompts[0], _turn())
                await anext(aiter(stream.events))
                await _close(stream)
                await self._turn(backend, session, self.prompts[0])

        self._run(check)

    def test_a_turn_that_fails_says_why_and_the_next_one_is_answered(self) -> None:
        if self.failing_prompt is None:
            raise unittest.SkipTest("the backend names no failing_prompt")
        failing = self.failing_prompt

        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                try:
                    stream = await backend.prompt(session, failing, _turn())
                except BackendError as error:
                    assert isinstance(error.details.get("reason"), str), "a BackendError has a reason among its details"
                else:
                    last = (await _read(stream))[-1]
                    _shape(last)
                    assert last.kind == "error", last
                    session = _json(stream.session, "the session after a turn that failed")
                await self._turn(backend, session, self.prompts[0])

        self._run(check)

    def test_a_turn_that_is_cancelled_ends_at_once_and_the_next_one_is_answered(self) -> None:
        if self.endless_prompt is None:
            raise unittest.SkipTest("the backend names no endless_prompt")
        endless = self.endless_prompt

        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                begun = asyncio.Event()
                task = asyncio.ensure_future(self._until_cancelled(backend, session, endless, begun))
                first = asyncio.ensure_future(begun.wait())
                await asyncio.wait((task, first), timeout=self.patience_s / 2, return_when=asyncio.FIRST_COMPLETED)
                first.cancel()
                over = task.done()
                task.cancel()
                await asyncio.wait((task,))
                assert begun.is_set() and not over, f"endless_prompt must give an event and then take long: {task}"
                assert task.cancelled(), "the reader's cancellation must come through"
                await self._turn(backend, session, self.prompts[0])

        self._run(check)

    # --- steps --------------------------------------------------------------------------------------------------------
    def test_a_turn_goes_on_behind_each_of_its_steps(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                steps = UnjournaledSteps()
                whole = await _read(await backend.prompt(session, self.prompts[0], _turn(steps=steps)))
                for step in steps.taken:
                    _json(step, "a step")
                for count in range(1, len(steps.taken) + 1):
                    again = UnjournaledSteps(tuple(_json(step, "a step") for step in steps.taken[:count]))
                    async with self._backend() as other:
                        stream = await other.prompt(await other.resume_session(session), self.prompts[0], _turn(steps=again))
                        events = await _read(stream)
                    assert events[-1].kind == whole[-1].kind, f"behind step {count}: {events[-1]}"
                    assert any(event.replayed for event in events), "what comes from a step is marked as replayed"
                    kept = _json(list(again.taken[:count]), "the steps")
                    assert kept == _json(list(steps.taken[:count]), "the steps"), "steps are only added to"

        self._run(check)

    def test_a_turn_whose_steps_are_all_taken_takes_no_more(self) -> None:
        async def check() -> None:
            async with self._backend() as backend:
                session = await backend.start_session()
                steps = UnjournaledSteps()
                whole = await _read(await backend.prompt(session, self.prompts[0], _turn(steps=steps)))
                if not steps.taken:
                    raise unittest.SkipTest("the backend takes no steps")
                again = UnjournaledSteps(steps.taken)
                events = await _read(await backend.prompt(session, self.prompts[0], _turn(steps=again)))
                assert events[-1].data.get("text") == whole[-1].data.get("text")
                assert len(again.taken) == len(steps.taken)

        self._run(check)

    # --- help ---------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _backend(self) -> AsyncIterator[Backend]:
        """A backend that is released in the end: twice, because the contract does not say that it happens once."""
        backend = self.backend()
        try:
            yield backend
        finally:
            release = getattr(backend, "release", None)
            if release is not None:
                await release()
                await release()

    async def _turn(self, backend: Backend, session: Any, prompt: str) -> Any:
        """The session after a turn that is answered."""
        stream = await backend.prompt(session, prompt, _turn())
        last = (await _read(stream))[-1]
        assert last.kind == "result", f"{prompt!r} must be answered: {last}"
        return backend.update_session(stream.session, last.data)

    async def _until_cancelled(self, backend: Backend, session: Any, prompt: str, begun: asyncio.Event) -> None:
        stream = await backend.prompt(session, prompt, _turn())
        try:
            async for _ in stream.events:
                begun.set()
        finally:
            await _close(stream)

    def _run(self, check: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def within() -> None:
            async with asyncio.timeout(self.patience_s):
                await check()

        asyncio.run(within())


def _turn(number: int = 1, steps: UnjournaledSteps | None = None) -> Turn:
    return Turn("conformance", str(number), number, steps=steps or UnjournaledSteps())


async def _read(stream: Stream) -> list[Event]:
    """The events up to and including the terminal one: the mesh reads no further."""
    events = []
    async for event in stream.events:
        events.append(event)
        if event.terminal:
            break
    await _close(stream)
    assert events and events[-1].terminal, f"a stream ends in a result or an error: {[e.kind for e in events]}"
    return events


async def _close(stream: Stream) -> None:
    close = getattr(stream.events, "aclose", None)
    if close is not None:
        await close()


def _json(value: Any, what: str) -> Any:
    """`value` as it comes back from the journal."""
    back = msgspec.json.decode(msgspec.json.encode(value))
    assert back == json.loads(json.dumps(value)), f"{what} must be a JSON value: {value!r}"
    return back


def _shape(event: Event) -> None:
    assert event.kind in KINDS, event
    _json(event.data, f"the data of a {event.kind}")
    data = event.data
    match event.kind:
        case "text" | "thinking":
            assert isinstance(data["text"], str), event
        case "tool_use":
            assert isinstance(data["id"], str) and isinstance(data["name"], str) and "input" in data, event
        case "tool_result":
            assert isinstance(data["id"], str) and isinstance(data["ok"], bool) and isinstance(data["text"], str), event
        case "usage":
            assert all(isinstance(data[name], int) and data[name] >= 0 for name in COUNTS if name in data), event
        case "result":
            assert isinstance(data.get("text", ""), str), event
        case "error":
            assert isinstance(data["reason"], str) and data["reason"], event


def _paired(events: list[Event]) -> None:
    """Each tool result follows the use that it answers."""
    used: set[str] = set()
    for event in events:
        if event.kind == "tool_use":
            used.add(event.data["id"])
        elif event.kind == "tool_result":
            assert event.data["id"] in used, f"a result without its use: {event}"
