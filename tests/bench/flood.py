"""A flood in a process of its own: `python flood.py URL INBOX AT_ONCE SUBJECT...` sends requests until it is ended."""

from __future__ import annotations

import asyncio
import itertools
import sys

import nats
import uvloop
from nats.errors import Error

BODY = b"hello"
WAIT_S = 30.0


async def flood(url: str, inbox: str, at_once: int, subjects: list[str]) -> None:
    """Keep `at_once` requests on their way, to each of `subjects` in turn. What is refused is sent again, as a flood does."""
    nc = await nats.connect(url, inbox_prefix=inbox.encode())
    answered = asyncio.Event()

    async def on(subject: str) -> None:
        while True:
            try:
                await nc.request(subject, BODY, timeout=WAIT_S)
            except Error:
                await asyncio.sleep(0)
            answered.set()

    async with asyncio.TaskGroup() as group:
        for subject in itertools.islice(itertools.cycle(subjects), at_once):
            group.create_task(on(subject))
        await answered.wait()
        print("flood ready", flush=True)


if __name__ == "__main__":
    uvloop.run(flood(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
