"""Reads the body of a response: an event stream as it should be, or whatever a server or a gateway has sent in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol

from agentmesh.backend import Event
from agentmesh.strict_json import NotJson, strictly
from agentmesh_node.backends.api.failures import Api
from agentmesh_node.backends.api.frames import MOST_BYTES, Frame, Frames
from agentmesh_node.tools.loop_steps import ModelAnswer

MOST_HEAD = 64 << 10
"""Most bytes that are kept of what may be no event stream at all."""
_OF_A_STREAM = ("event:", "data:", ":")
DRAIN_S = 1.0
"""How long the end of a body behind its last event is waited for: the connection can then be used again."""


class Body(Protocol):
    """A response, as far as it is read here."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


class Reader(Protocol):
    """Puts an answer together."""

    api: Api
    done: bool
    """Whether the last frame has come."""

    def feed(self, frame: Frame, secrets: tuple[str, ...] = ()) -> Event | None:
        """Take a frame. Returns the text or the thinking in it.

        Raises:
            BackendError: it does not fit what came before, or is an error of the API.
        """

    def whole(self, message: dict[str, Any]) -> list[Event] | None:
        """Take an answer that came in one piece, and return what it says; None if it is no answer."""

    def answer(self) -> ModelAnswer:
        """The answer, once nothing more comes.

        Raises:
            BackendError: it is of no use.
        """


async def read(
    response: Body, reader: Reader, *, silence_s: float, secrets: tuple[str, ...] = (), most_bytes: int = MOST_BYTES
) -> AsyncGenerator[Event | ModelAnswer]:
    """The text and thinking of an answer as they come, then the answer.

    Args:
        reader: a new one, which the frames are given to.
        silence_s: longest time, in seconds, in which nothing but pings may come.
        secrets: texts to strike out of what a server complains of.
        most_bytes: most bytes of the body.

    Raises:
        BackendError: there is no answer, or it is of no use.
        TooMuch: it goes on for ever.
        UnicodeDecodeError: it is no text.
    """
    frames, head = Frames(most_bytes), bytearray()
    stream = "event-stream" in response.headers.get("content-type", "").lower()
    loop = asyncio.get_running_loop()
    until = loop.time() + silence_s
    most_head = MOST_HEAD if stream else most_bytes
    seen = False
    async with aclosing(_generator(response.aiter_bytes())) as chunks:
        while not reader.done:
            chunk = await _next(chunks, until, reader.api)
            if chunk is None:
                break
            if not seen:
                head += chunk[: most_head - len(head)]
            for frame in frames.feed(chunk):
                if frame.event == "ping":
                    continue
                until, seen = loop.time() + silence_s, True
                head.clear()
                event = reader.feed(frame, secrets)
                if event is not None:
                    yield event
        if reader.done:
            await _drain(chunks)
    if not seen:
        for event in _in_one_piece(bytes(head), response.headers.get("content-type", ""), reader, secrets):
            yield event
    yield reader.answer()


def _in_one_piece(body: bytes, kind: str, reader: Reader, secrets: tuple[str, ...]) -> list[Event]:
    """Take a body that is no event stream.

    Raises:
        BackendError: it is no message either.
    """
    text = body.decode(errors="replace").strip()
    if text.startswith(_OF_A_STREAM) or not text:
        return []  # it is one, in which nothing was said
    try:
        value = strictly(text)
    except NotJson:
        value = None
    if isinstance(value, dict) and "error" in value:
        raise reader.api.told(value, secrets)
    found = reader.whole(value) if isinstance(value, dict) else None
    if found is not None:
        return found
    what = kind.partition(";")[0].strip()[:100] or "of no type"
    api = reader.api
    raise api.unreadable(f"it is {what} and no event stream; check {api.address} in the node's environment")


async def _next(chunks: AsyncIterator[bytes], until: float, api: Api) -> bytes | None:
    """The next chunk; None at the end.

    Raises:
        BackendError: none came in time.
    """
    try:
        async with asyncio.timeout_at(until) as bound:
            return await anext(chunks, None)
    except TimeoutError:
        if not bound.expired():
            raise
        raise api.failure("timed_out", "the API did not answer in time") from None


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end of a body that has said all: what still comes, or goes wrong, changes nothing."""
    left = MOST_HEAD
    with suppress(Exception):
        async with asyncio.timeout(DRAIN_S):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return


async def _generator(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """`chunks` as what can be closed."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close: Any = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
