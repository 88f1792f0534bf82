"""Where in a value stands what JSON cannot carry: what cannot be encoded, and the numbers that JSON does not have. Pure.

msgspec writes NaN and the infinities as `null`, without a word: what is read back is another value, or none of its type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

NO_SUCH_NUMBER = "and JSON has no such number: leave it out, or give it as text"
"""What is to be done about one."""
_DEEP = 50
_NUMBER = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""A MessagePack float whose exponent is that of NaN and of the infinities; other bytes may look so, too."""


def locate(value: Any, path: str = "state", depth: int = 0) -> str:
    """The path of the first part of `value` that cannot be encoded."""
    if depth > _DEEP:
        return path
    for where, child in _parts(value, path):
        try:
            msgspec.json.encode(child)
        except Exception:  # noqa: BLE001 - any failure to encode puts the fault in this child
            return locate(child, where, depth + 1)
    return path


def not_finite(value: Any, body: bytes, path: str = "") -> str | None:
    """Which part of `value` is NaN or infinite, in words (`state.score is NaN`); None if all numbers can be written.

    Args:
        value: what was encoded.
        body: its JSON, as msgspec writes it. One without a `null` needs no look at the value.
        path: what `value` is called; without it its fields are named alone.
    """
    if b"null" not in body:
        return None
    try:  # a large value that holds a None, as it should, is not searched: in MessagePack such numbers stand as they are
        suspicious = _NUMBER.search(msgspec.msgpack.encode(value)) is not None
    except Exception:  # noqa: BLE001 - the search takes any value
        suspicious = True
    return next(search(value, path), None) if suspicious else None


def search(value: Any, path: str = "") -> Iterator[str]:
    """Each part of `value` that is NaN or infinite, in words."""
    waiting = [(path, value)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                yield f"{where or 'it'} is {_word(item)}"
        else:
            waiting.extend(reversed(_parts(item, where)))


def _word(number: float) -> str:
    return "NaN" if math.isnan(number) else "infinite" if number > 0 else "minus infinite"


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    """The parts of `value` with their paths: elements, or the fields of a Struct, a dataclass or an attrs class."""
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]" if path else str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    names = getattr(value, "__struct_fields__", None) or tuple(getattr(value, "__dataclass_fields__", ()))
    names = names or tuple(field.name for field in getattr(value, "__attrs_attrs__", ()))
    return [(f"{path}.{name}" if path else name, getattr(value, name, None)) for name in names]
