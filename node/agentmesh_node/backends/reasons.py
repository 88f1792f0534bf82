"""What model servers mean by their words: vendors and gateways tell the same things in many ways (case 405).

Codes and statuses are looked at first, by each backend. Words decide where a code says no more than that a request was bad.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_TOO_LONG = re.compile(
    r"(prompt|input|request|conversation|context|messages?)\b[^.\n]{0,60}\btoo (long|large|big)"
    r"|context[ _-]?(length|size|window)|maximum (prompt|input|context) length|exceed_context_size"
    r"|too many (input |prompt )?tokens(?! per)|maximum number of (input )?tokens",
    re.IGNORECASE,
)
_DECLINED = re.compile(
    r"/legal/aup|content[ _-]?(filter|policy|management)|contentpolicy|responsible ?ai|safety (system|filter)|jailbreak"
    r"|violat\w+ (of )?(our |the |its )?((usage|content|safety|use) )*polic",
    re.IGNORECASE,
)
_SPENT = re.compile(
    r"credit balance is too low|insufficient[ _](credits?|balance|funds|quota)|out of credits?|exceeded your current quota"
    r"|budget has been exceeded|exceededbudget|billing[ _](hard[ _])?limit",
    re.IGNORECASE,
)
_AGAIN = re.compile(
    r"(?:try(?:ing)? again|retry(?:ing)?)\W+(?:in|after)\W+(\d+(?:\.\d+)?)\s*"
    r"(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h)\b",
    re.IGNORECASE,
)
_UNITS = {"m": 60.0, "s": 1.0, "h": 3600.0}


def by_words(text: str) -> str | None:
    """`too_long`, `refused` or `spend_limit`, if that is what the complaint of a model server about a request says.

    Not for a 429: some vendors say that a quota is exceeded when they mean the one of this minute.
    """
    if _DECLINED.search(text):
        return "refused"
    if _SPENT.search(text):
        return "spend_limit"
    return "too_long" if _TOO_LONG.search(text) else None


def again_after(text: str) -> float | None:
    """Seconds after which a complaint wants another try, if it says so."""
    found = _AGAIN.search(text)
    if found is None:
        return None
    unit = found[2].lower()
    return float(found[1]) * (0.001 if unit.startswith(("ms", "milli")) else _UNITS[unit[0]])


def seconds(value: Any) -> float | None:
    """A number of seconds as a server gives it, in a header or a member; None where it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and found >= 0 else None


def plainly(text: str) -> str:
    """A complaint in plain words: where a server's error body stands in it as JSON, its message stands there instead."""
    begin = text.find("{")
    if begin < 0:
        return text
    try:
        value, length = json.JSONDecoder().raw_decode(text[begin:])
    except (ValueError, RecursionError):
        return text[:begin].rstrip(" :,") or "an error body that cannot be read"
    said = message_in(value)
    rest = text[begin + length :]
    if said is None:
        return f"{text[:begin].rstrip(' :,')}{plainly(rest)}" or "an error body without a message"
    return f"{text[:begin]}{plainly(said)}{plainly(rest)}"


def message_in(body: Any) -> str | None:
    """The message in an error body, whichever of the usual forms it has."""
    if not isinstance(body, dict):
        return None
    for name in ("error", "message", "detail", "error_message", "errorMessage"):
        found = body.get(name)
        if isinstance(found, dict):
            found = message_in(found)
        if isinstance(found, str) and found:
            return found
    return None
