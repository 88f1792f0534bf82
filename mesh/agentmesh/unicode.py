"""Text that UTF-8 can encode. Models, and JSON in general, may give lone surrogates ("\\ud800"), which it cannot."""

from __future__ import annotations

from typing import Any

import msgspec


def well_formed(value: Any) -> Any:
    """`value` (JSON data) with texts that UTF-8 can encode: the same object if it is so already, else a changed copy.

    The two halves of a surrogate pair become the character that they stand for; a half that stands alone becomes U+FFFD. Values
    other than texts, lists and dicts stay as they are.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return value if _is_sound(value) else {well_formed(key): well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return value if _is_sound(value) else type(value)([well_formed(item) for item in value])
    return value


def encode(value: Any) -> bytes:
    """JSON of `value`, made well formed where it is not.

    Raises:
        TypeError, ValueError, RecursionError, msgspec.MsgspecError: it is no JSON data.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(well_formed(value))


def _is_sound(value: Any) -> bool:
    """Whether `value` holds no lone surrogates. False also for a value that cannot be encoded for another reason."""
    try:
        msgspec.json.encode(value)
    except Exception:  # noqa: BLE001 - encoding what a backend gives may run foreign code
        return False
    return True


def _text(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
