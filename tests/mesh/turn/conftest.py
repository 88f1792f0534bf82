"""Every test of the turn machine also watches that its tables tell the truth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh.turn.harness import table_is_kept


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    with table_is_kept():
        yield
