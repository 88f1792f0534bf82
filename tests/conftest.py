"""Fixtures of all tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from agentmesh.subjects import Subjects
from support import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A NATS server for the tests of one module. They keep apart by `subjects`."""
    with Server() as running:
        yield running


@pytest.fixture
def fresh_server() -> Iterator[Server]:
    """A NATS server for one test, which may kill it."""
    with Server() as running:
        yield running


@pytest.fixture
def subjects() -> Subjects:
    """A mesh that no other test uses."""
    return Subjects(root=f"t{secrets.token_hex(4)}")
