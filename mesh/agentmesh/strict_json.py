"""JSON that programs and models have written, read strictly: only what everybody reads in the same way is a value.

Models are cut off in the middle of a value, gateways report a cut answer as complete, and lenient readers close what was left
open: 5,000 becomes 5.
"""

from __future__ import annotations

import json
import math
from typing import Any

from agentmesh.unicode import well_formed

MOST_DEPTH = 100
"""Most levels of objects and lists in each other: deeper ones could not be kept by the journal."""


class NotJson(ValueError):
    """A text is not JSON, or not such as everybody reads in the same way."""


def strictly(text: str) -> Any:
    """The JSON value that `text` is. Lone surrogates are let through.

    Raises:
        NotJson: it is none; or it has a name twice in one object, a number that no double holds, or NaN.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refused, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error) or "it is nested too deeply") from None


def checked[T](value: T) -> T:
    """`value`, JSON data, if the journal can keep it; halves of a character that stand beside each other are joined.

    Raises:
        NotJson: it is nested too deeply, a text in it has half a character, or a number in it is none.
    """
    _check(value, MOST_DEPTH)
    found: T = well_formed(value)
    return found


def _check(value: Any, left: int) -> None:
    if isinstance(value, str):
        whole_characters(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson(f"{value} is no number that JSON has")
    elif isinstance(value, dict | list | tuple):
        if left == 0:
            raise NotJson("it is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, left - 1)
        for key in value if isinstance(value, dict) else ():
            if not isinstance(key, str):
                raise NotJson("a name in it is no text")
            whole_characters(key)


def whole_characters(text: str) -> str:
    """`text`, with the halves of characters that arrived one behind the other joined."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise NotJson("it has half a character (a lone surrogate)") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"it has the name {twice[:50]!r} twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"{text[:50]} is too large a number")
    return value


def _refused(text: str) -> Any:
    raise NotJson(f"{text} is no JSON")
