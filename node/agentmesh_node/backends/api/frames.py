"""The bytes of an event stream as frames: linear in their length, and bounded, whatever a server sends.

The SDK's own decoder copies all that it holds with each line, waits for ever behind pings, and repairs JSON that was cut off.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_BYTES = 64 << 20
"""Most bytes of one answer: some ten times the longest that a model can give, with all that stands around its words."""


DONE = "[DONE]"
"""The data of the last frame of Chat Completions; some gateways end each stream with it."""


class TooMuch(Exception):
    """An answer goes on for ever."""


class Frame(NamedTuple):
    """One server-sent event."""

    event: str
    data: str


class Frames:
    """Splits the chunks of one body, wherever they are cut."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._left = most
        self._parts: list[bytes] = []
        """The beginning of a line whose end has not come."""
        self._returned = False
        """Whether the last chunk ended with a carriage return: a line feed that follows belongs to it."""
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that are whole now.

        Raises:
            TooMuch: there were more bytes than an answer can have.
            UnicodeDecodeError: a line is no UTF-8.
        """
        self._left -= len(chunk)
        if self._left < 0:
            raise TooMuch
        if self._returned and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._returned = chunk.endswith(b"\r")
        found: list[Frame] = []
        for line in chunk.splitlines(keepends=True):
            whole = line.rstrip(b"\r\n")
            self._parts.append(whole)
            if len(whole) == len(line):
                break  # the rest of this line comes with another chunk
            frame = self._line(b"".join(self._parts).decode())
            self._parts.clear()
            if frame is not None:
                found.append(frame)
        return found

    def _line(self, line: str) -> Frame | None:
        """Take a line; a blank one ends a frame."""
        if not line:
            frame = Frame(self._event, "\n".join(self._data)) if self._data else None
            self._event = ""
            self._data.clear()
            return frame
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None
