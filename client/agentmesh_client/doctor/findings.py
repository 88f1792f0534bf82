"""What `mesh doctor` has to say: one finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

MOST_NAMED = 5
"""Names in one finding, at most."""

type Level = Literal["problem", "warning"]


class Finding(msgspec.Struct, frozen=True):
    """A fact worth knowing, or a fault to mend."""

    level: Level
    text: str


def some(names: Sequence[str]) -> str:
    """Names for people: the first of them, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
