"""Bodies of responses, as servers and gateways send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.answers import AnswerReader
from agentmesh_node.backends.api.body import read
from agentmesh_node.backends.api.frames import TooMuch
from agentmesh_node.tools.loop_steps import ModelAnswer
from fakes.answers import Answer, events_of, message_of
from sim.loop import SimLoop, run_sim
from support import run

MESSAGE = message_of(Answer(text="hello"), "m-1", lambda: "toolu_1")


def sse(message: dict[str, Any] = MESSAGE) -> bytes:
    events = events_of(message, 3)
    return b"".join(b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps(data).encode()) for name, data in events)


class Body:
    def __init__(self, *chunks: bytes, kind: str = "text/event-stream", gap_s: float = 0.0) -> None:
        self.headers = {"content-type": kind}
        self._chunks = chunks
        self._gap_s = gap_s

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if self._gap_s:
                await asyncio.sleep(self._gap_s)
            yield chunk


async def reading(body: Body, **options: Any) -> list[Event | ModelAnswer]:
    return [part async for part in read(body, AnswerReader(100), silence_s=options.pop("silence_s", 60), **options)]


def last(body: Body, **options: Any) -> ModelAnswer:
    found = run(reading(body, **options))[-1]
    assert isinstance(found, ModelAnswer)
    return found


def failed(body: Body) -> dict[str, Any]:
    with pytest.raises(BackendError) as caught:
        run(reading(body))
    return {**caught.value.details, "message": caught.value.message}


def test_text_comes_as_it_is_made() -> None:
    found = run(reading(Body(sse())))
    assert [part.data["text"] for part in found[:-1] if isinstance(part, Event)] == ["hel", "lo"]


@pytest.mark.case(403)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", ""])
def test_an_answer_in_one_piece_is_an_answer(kind: str) -> None:
    assert last(Body(json.dumps(MESSAGE).encode(), kind=kind)).text == "hello"


@pytest.mark.parametrize("kind", ["application/octet-stream", ""])
def test_a_stream_without_its_type_is_read_all_the_same(kind: str) -> None:
    assert last(Body(sse(), kind=kind)).text == "hello"


@pytest.mark.case(403)
@pytest.mark.parametrize(
    ("body", "kind", "reason", "said"),
    [
        (b"<html>Sign in</html>", "text/html; charset=utf-8", "server_error", "text/html and no event stream; check"),
        (b"<html>Sign in</html>", "text/event-stream", "server_error", "no event stream"),
        (b"", "text/event-stream", "server_error", "empty"),
        (b"", "", "server_error", "empty"),
        (b'{"ok": true}', "application/json", "server_error", "no event stream"),
        (b"[1, 2]", "application/json", "server_error", "no event stream"),
        (b'{"error": {"type": "overloaded_error", "message": "busy"}}', "application/json", "overloaded", "busy"),
        (b'{"error": {"message": "busy", "code": 429}}', "text/event-stream", "rate_limited", "busy"),
        (b'{"error": "no"}', "application/json", "server_error", "no"),
        (b'{"content": [5], "model": 5}', "application/json", "server_error", "content_block is missing or no object"),
        (b"event: ping\ndata: {}\n\n" * 9, "text/event-stream", "server_error", "empty"),
        (b"\xff\xfe\x00", "", "server_error", "of no type"),
    ],
)
def test_what_is_no_answer_says_what_it_is(body: bytes, kind: str, reason: str, said: str) -> None:
    found = failed(Body(body, kind=kind))
    assert (found["reason"], found["retryable"]) == (reason, True)
    assert said in found["message"]


@pytest.mark.case(404)
def test_pings_alone_time_out() -> None:
    async def main(loop: SimLoop) -> None:
        began = loop.time()
        with pytest.raises(BackendError) as caught:
            await reading(Body(*[b"event: ping\ndata: {}\n\n"] * 1000, gap_s=1.0), silence_s=30.0)
        assert caught.value.details["reason"] == "timed_out"
        assert loop.time() - began == pytest.approx(30.0)

    run_sim(main)


def test_an_answer_that_comes_slowly_does_not() -> None:
    async def main(loop: SimLoop) -> None:
        frames = sse().split(b"\n\n")
        found = await reading(Body(*(frame + b"\n\n" for frame in frames), gap_s=14.0), silence_s=30.0)
        assert isinstance(found[-1], ModelAnswer)

    run_sim(main)


@pytest.mark.case(404)
def test_an_answer_without_end_is_too_much() -> None:
    with pytest.raises(TooMuch):
        run(reading(Body(*[b"event: ping\ndata: {}\n\n"] * 1000), most_bytes=9999))


def test_what_comes_behind_the_end_changes_nothing() -> None:
    assert last(Body(sse(), b"data: {not json\n\n", b"\xff" * 200_000)).text == "hello"
