"""A client of a few lines, which speaks the NATS protocol over a plain socket: it keeps to no rule but the server's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Self
from urllib.parse import urlsplit

type Headers = Mapping[str, str] | Sequence[tuple[str, str]]
"""Of a message; as pairs a name may stand there twice."""


class Got(NamedTuple):
    """A message."""

    subject: str
    body: bytes
    head: str
    """Its headers as they came, the line of the status first; empty where there are none."""

    @property
    def status(self) -> str:
        """The server's own answer, as `503`; empty where there is none."""
        return self.head.partition("\r\n")[0].removeprefix("NATS/1.0").strip()[:3]


class Raw:
    """One connection. What comes is in `messages` and `errors`, oldest first."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str) -> None:
        self.user = user
        self.messages: list[Got] = []
        self.errors: list[str] = []
        self._reader, self._writer = reader, writer
        self._pongs = 0
        self._pings = 0
        self._news = asyncio.Event()
        self._ended = False
        self._inboxes = 0
        self._sid = 0
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Log in at `url` (`nats://user:password@host:port`).

        Raises:
            ConnectionError: the server refuses it.
        """
        at = urlsplit(url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        await reader.readline()
        login = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "user": at.username,
            "pass": at.password,
        }
        writer.write(f"CONNECT {json.dumps(login)}\r\n".encode())
        made = cls(reader, writer, at.username or "")
        try:
            await made.flush()
        except (ConnectionError, TimeoutError):
            await made.close()
            raise
        return made

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def inbox(self) -> str:
        """An address of its own."""
        self._inboxes += 1
        return f"_INBOX.{self.user}.raw.{self._inboxes}"

    def publish(self, subject: str, body: bytes = b"", headers: Headers | None = None, reply: str = "") -> None:
        back = f" {reply}" if reply else ""
        if not headers:
            self._writer.write(f"PUB {subject}{back} {len(body)}\r\n".encode() + body + b"\r\n")
            return
        each = headers.items() if isinstance(headers, Mapping) else headers
        head = ("NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in each) + "\r\n").encode()
        self._writer.write(f"HPUB {subject}{back} {len(head)} {len(head) + len(body)}\r\n".encode() + head + body + b"\r\n")

    def subscribe(self, subject: str, queue: str = "") -> None:
        self._sid += 1
        self._writer.write(f"SUB {subject} {f'{queue} ' if queue else ''}{self._sid}\r\n".encode())

    async def flush(self) -> None:
        """Return when the server has dealt with all that was sent."""
        self._pings += 1
        mine = self._pings
        self._writer.write(b"PING\r\n")
        await self.until(lambda: self._pongs >= mine)

    async def until(self, holds: object, seconds: float = 20) -> None:
        """Wait until `holds()`.

        Raises:
            TimeoutError: it does not.
            ConnectionError: the server has closed the connection.
        """
        assert callable(holds)
        async with asyncio.timeout(seconds):
            while not holds():
                if self._ended:
                    raise ConnectionError(f"the server has closed the connection: {self.errors}")
                self._news.clear()
                await self._news.wait()

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            await self._read()
        self._ended = True
        self._news.set()

    async def _read(self) -> None:
        while line := await self._reader.readline():
            verb, _, rest = line.decode().strip().partition(" ")
            match verb.upper():
                case "PING":
                    self._writer.write(b"PONG\r\n")
                case "PONG":
                    self._pongs += 1
                case "-ERR":
                    self.errors.append(rest.strip("'"))
                case "MSG" | "HMSG":
                    self.messages.append(await self._message(verb.upper(), rest.split()))
            self._news.set()

    async def _message(self, verb: str, words: list[str]) -> Got:
        size = int(words[-1])
        head_size = int(words[-2]) if verb == "HMSG" else 0
        data = await self._reader.readexactly(size + 2)
        return Got(words[0], data[head_size:size], data[:head_size].decode())


@contextlib.asynccontextmanager
async def raw(url: str) -> AsyncIterator[Raw]:
    """A connection, closed in the end."""
    made = await Raw.connect(url)
    try:
        yield made
    finally:
        await made.close()
