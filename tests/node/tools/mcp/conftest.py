"""What the tests of MCP servers share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file in which a server leaves a line for each child and call."""
    path = tmp_path / "notes"
    path.touch()
    return path
