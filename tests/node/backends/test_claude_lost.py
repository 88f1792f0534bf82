"""Turns of the claude backend that lost their owner: what goes on, what is made again, what is cleared away
(docs/design/008-claude-sessions.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import Fenced
from agentmesh.steps import UnjournaledSteps
from agentmesh.subjects import Subjects
from agentmesh.tools import tool
from fakes.messages import Answer, Call, FakeMessages, Tool
from node.backends.claude_desk import Plain, childless, desk, play, pointed_at, results, runs
from support import Server, eventually, run

SLOW = 60.0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as found:
        pointed_at(found, monkeypatch)
        yield found


async def lose(playing: Coroutine[Any, Any, Any], until: Callable[[], Any]) -> None:
    """Play a turn until `until()`, then no further."""
    task = asyncio.create_task(playing)
    try:
        await eventually(until, timeout=30, what="the point at which the node is lost")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_turn_that_lost_its_node_goes_on_behind_its_last_tool_result(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    release = threading.Event()

    def script(call: Call) -> Any:
        if call.number == 1:
            release.wait(30)
        return Answer(text="first", tools=[runs("echo counted >> count; cat count")]) if call.number == 0 else "finished"

    fake.play(script)

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            steps = UnjournaledSteps(key="coder/1")
            first = room.backend("n1", allowed_tools=["Bash"])
            before = await first.start_session()

            async def under_way() -> bool:
                """The second answer is being waited for, and the tool's result is committed."""
                if len(fake.calls) < 2 or steps.taken[-1]["step"] != "kept":
                    return False
                kept: Any = {"project_key": "life", "session_id": steps.taken[0]["session"]}
                entries: Any = await room.store.load(kept)
                return [e["type"] for e in entries if e.get("uuid") == steps.taken[-1]["entry"]] == ["user"]

            await lose(play(first, before, "work", room.turn(steps, number=1)), under_way)
            release.set()
            second = room.backend("n2", allowed_tools=["Bash"])
            events, after = await play(second, await second.resume_session(before), "work", room.turn(steps, number=1))
            assert events[-1].data["text"] == "finished"
            # What the first node had paid for is there, and was not asked for again: one call was in flight, and made again.
            assert len(fake.calls) == 3
            assert results(fake.calls[2]) == ["counted"]
            assert [(e.kind, e.replayed) for e in events if e.kind in ("tool_use", "tool_result")] == [
                ("tool_use", True),
                ("tool_result", True),
            ]
            usage = next(e for e in reversed(events) if e.kind == "usage")
            assert usage.data["output_tokens"] > 5  # both answers
            events, _ = await play(second, after, "more", room.turn())
            assert events[-1].kind == "result"
            assert json.dumps(fake.calls[-1].messages).count("counted") >= 1

    run(main(), timeout=SLOW)


def test_a_turn_lost_before_any_answer_begins_anew(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    release = threading.Event()

    def script(call: Call) -> Any:
        if call.number == 0:
            release.wait(30)
        return "answered"

    fake.play(script)

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            steps = UnjournaledSteps(key="coder/1")
            first = room.backend("n1")
            before = await first.start_session()
            await lose(play(first, before, "hello", room.turn(steps, number=1)), lambda: len(fake.calls) == 1)
            release.set()
            second = room.backend("n2")
            events, after = await play(second, before, "hello", room.turn(steps, number=1))
            assert events[-1].data["text"] == "answered"
            assert json.dumps(fake.calls[1].messages).count("hello") == 1
            # The transcript of the lost attempt is gone.
            assert await room.store.sessions() == {("life", after["session_id"])}

    run(main(), timeout=SLOW)


def test_an_answer_that_was_given_whole_is_not_paid_again(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fake.play(["the whole answer", "next"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            steps = UnjournaledSteps(key="coder/1")
            first = room.backend("n1")
            before = await first.start_session()
            await play(first, before, "hello", room.turn(steps, number=1))  # and the node is lost before its record
            second = room.backend("n2")
            events, after = await play(second, before, "hello", room.turn(steps, number=1))
            assert events[-1].data["text"] == "the whole answer"
            assert len(fake.calls) == 1
            events, _ = await play(second, after, "go on", room.turn(number=2))
            assert events[-1].data["text"] == "next"
            assert "the whole answer" in json.dumps(fake.calls[-1].messages)

    run(main(), timeout=SLOW)


def test_a_once_tool_that_was_fired_is_not_fired_again_after_a_takeover(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fired: list[str] = []

    class Stuck(Plain):
        @tool(effect="once")
        async def lend(self, title: str) -> str:
            """Lend a book."""
            fired.append(title)
            await asyncio.Event().wait()
            return "never said"

        tools = (lend,)

    def script(call: Call) -> Any:
        return Answer(text="I lend it", tools=[Tool("mcp__agent__lend", {"title": "Emma"})]) if call.number == 0 else "I see"

    fake.play(script)

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            steps = UnjournaledSteps(key="coder/1")
            first = room.backend("n1", agent=Stuck())
            before = await first.start_session()

            def under_way() -> bool:
                return fired == ["Emma"] and any(s["step"] == "kept" for s in steps.taken)

            await lose(play(first, before, "lend me Emma", room.turn(steps, number=1)), under_way)
            second = room.backend("n2", agent=Stuck())
            events, _ = await play(second, before, "lend me Emma", room.turn(steps, number=1))
            assert events[-1].data["text"] == "I see"
            assert fired == ["Emma"]
            # The answer that asked for the call was not paid again, and the model is told that the outcome is not known.
            assert len(fake.calls) == 2
            assert "unknown" in fake.calls[1].prompt
            await childless(tmp_path)

    run(main(), timeout=SLOW)


class Lost(UnjournaledSteps):
    """The steps of an owner that another has taken the place of."""

    async def take(self, step: Any) -> None:
        raise Fenced("another owner has appended")


def test_an_owner_that_was_fenced_removes_nothing(server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages) -> None:
    fake.play(["one"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            _, session = await play(backend, await backend.start_session(), "hello", room.turn())
            newer: Any = {"project_key": "life", "session_id": "of-the-newer-owner"}
            await room.store.append(newer, [{"type": "user", "uuid": "u1"}])
            with pytest.raises(Fenced):
                await play(backend, session, "again", room.turn(Lost()))
            assert ("life", "of-the-newer-owner") in await room.store.sessions()
            assert len(fake.calls) == 1
            # An owner that holds the journal clears away what nobody needs.
            await play(backend, session, "again", room.turn())
            assert ("life", "of-the-newer-owner") not in await room.store.sessions()

    run(main(), timeout=SLOW)


def test_owners_that_are_lost_again_and_again_give_the_prompt_up(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            steps = UnjournaledSteps(tuple({"step": "session", "session": f"s{n}"} for n in range(5)))
            backend = room.backend()
            events, _ = await play(backend, await backend.start_session(), "hello", room.turn(steps))
            assert (events[-1].kind, events[-1].data["reason"]) == ("error", "lost")
            assert fake.calls == []

    run(main(), timeout=SLOW)


def test_a_transcript_that_is_gone_is_an_error_and_no_new_conversation(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fake.play(["one"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            first = room.backend("n1")
            _, session = await play(first, await first.start_session(), "hello", room.turn())
            await room.store.remove("life")
            second = room.backend("n2")
            events, after = await play(second, session, "again", room.turn())
            assert (events[-1].kind, events[-1].data["reason"]) == ("error", "session_lost")
            assert after == session

    run(main(), timeout=SLOW)
