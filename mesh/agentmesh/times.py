"""Times as they cross the wire: RFC 3339 with an offset, seconds since the epoch in code. Pure."""

from __future__ import annotations

import datetime as dt
import functools
import math
import re

from agentmesh.errors import BadRequest

MAX_TIME = 32_503_680_000.0
"""The year 3000, in seconds since the epoch."""


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time.

    Raises:
        BadRequest: it is not one, or has no offset.
    """
    leap = text[16:19] == ":60"  # a leap second ends where the next minute begins
    plain = f"{text[:17]}59{text[19:]}" if leap else text
    try:
        moment = dt.datetime.fromisoformat(plain if plain[-1:] != "z" else f"{plain[:-1]}Z")
    except ValueError:
        raise BadRequest(f"{text[:40]!r} is not an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise BadRequest(f"{text[:40]!r} has no time zone; write Z for UTC")
    return moment.timestamp() + leap


def time_in_range(text: str) -> float:
    """A deadline, in seconds since the epoch. Times before the epoch become 0, times after the year 3000 `MAX_TIME`."""
    return min(MAX_TIME, max(0.0, parse_time(text)))


_DURATION = re.compile(r"(\d{1,7})([dhms])")
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def duration_s(text: str, units: str = "hms") -> int:
    """The seconds of a duration as people write it: 24h, 90m, 1h30m. A NATS server knows hours, minutes and seconds.

    Raises:
        BadRequest: it is none, or has other units than these.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text or any(unit not in units for _, unit in parts):
        raise BadRequest(f"{text[:40]!r} is no duration, as 24h, 90m or 1h30m")
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def check_time(seconds: float) -> float:
    """`seconds` since the epoch, if that is a time between 1970 and 3000: other times cannot be formatted, and nobody means them.

    Raises:
        BadRequest: it is not, or is NaN.
    """
    if not 0 <= seconds <= MAX_TIME:
        raise BadRequest(f"{seconds:g} s since 1970 is out of range: a time is between the years 1970 and 3000")
    return seconds


def format_time(seconds: float) -> str:
    """RFC 3339, UTC, microseconds."""
    whole = math.floor(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1_000_000):06d}Z"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    # Every lifecycle event bears a time, and most of them fall into the same second.
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
