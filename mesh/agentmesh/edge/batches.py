"""Long work on the event loop, done in parts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable

PART = 1000
"""Items at once: a few milliseconds of work on registry keys."""


async def in_parts[T](items: Iterable[T], size: int = PART) -> AsyncIterator[tuple[T, ...]]:
    """`items`, `size` at a time. Between two parts the loop turns, so that a hundred thousand items do not hold it.

    What else runs on the loop meanwhile may change the things that the items name; `items` itself must not change.
    """
    first = True
    for part in itertools.batched(items, size):
        if not first:
            await asyncio.sleep(0)
        first = False
        yield part
