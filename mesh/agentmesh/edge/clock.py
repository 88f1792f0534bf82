"""What a process takes from its surroundings besides messages: time and randomness. Ports, so that a test can give both."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple


class Ambient(NamedTuple):
    """Clocks and randomness. Timers are the event loop's own (`asyncio`), so a test that replaces these replaces the loop too."""

    now: Callable[[], float] = time.time
    """The time, in seconds since the epoch."""
    monotonic: Callable[[], float] = time.monotonic
    """A clock for durations, in seconds."""
    token: Callable[[int], str] = secrets.token_hex
    """Takes a number of random bytes, gives them in hexadecimal: an id that no stranger can guess."""


SYSTEM = Ambient()
"""The operating system's."""
