"""Reads of a connection, as a test has them happen: what a `RunQueue` stands on."""

from __future__ import annotations

from collections.abc import Callable


class Reads:
    """What `RunQueue` needs of a transport."""

    def __init__(self) -> None:
        self.reading = False
        self._ends: list[Callable[[], None]] = []

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._ends.append(callback)
        return lambda: self._ends.remove(callback)

    def read(self, deliver: Callable[[], None]) -> None:
        """One read whose messages `deliver` hands on."""
        self.reading = True
        deliver()
        self.reading = False
        for end in self._ends:
            end()
