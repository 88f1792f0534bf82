"""Fixtures of all tests, and which of them are quick.

A test is quick unless it uses one of the fixtures below that start a server, or is marked `processes` (it starts some of its own)
or `slow`. So a new test is in `make quick` by itself. A quick one that starts a process all the same fails, wherever it is run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import roled
from agentmesh.subjects import Subjects
from support import Server

SERVERS = frozenset({"server", "fresh_server", "engine"})
"""Fixtures that start servers."""


WORKERS_PER_CORE = 3
"""Of all tests together most wait, for a server or for another process; quick ones do not."""


# How long an example takes says how busy the machine is.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("all"), max_examples=25)


def pytest_configure(config: pytest.Config) -> None:
    """Of a property, `make quick` tries a quarter of the examples that all tests try.

    Processes that tests start must heed an interrupt, although a shell that ran this in the background has it ignored.
    """
    settings.load_profile("quick" if _only_quick(config) else "all")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if _only_quick(config) else WORKERS_PER_CORE * cores


def _only_quick(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "quick")


@pytest.hookimpl(tryfirst=True)  # before those are left out that `-m` does not name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick ones, and put the modules with the longest tests first: at the end no worker waits for another's."""
    lengths: dict[object, int] = {}
    for item in items:
        served = not SERVERS.isdisjoint(getattr(item, "fixturenames", ()))
        slow = item.get_closest_marker("slow") is not None
        if not served and not slow and item.get_closest_marker("processes") is None:
            item.add_marker("quick")
        module = item.path
        lengths[module] = max(lengths.get(module, 0), 2 if slow else 1 if item.get_closest_marker("quick") is None else 0)
    items.sort(key=lambda item: -lengths[item.path])


@pytest.fixture(autouse=True)
def _no_process_in_a_quick_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("quick") is not None:
        monkeypatch.setattr(subprocess.Popen, "__init__", _refuse)


def _refuse(_self: subprocess.Popen[Any], arguments: object, *_: object, **__: object) -> None:
    pytest.fail(f"this test is in `make quick`, and starts a process: {arguments}. Mark it `processes`.")


@pytest.fixture(autouse=True)
def _nothing_is_refused() -> Iterator[None]:
    """Under roles (tests/roled.py) what servers refuse fails the test in which it happens."""
    roled.refusals.clear()
    yield
    if roled.ENABLED:
        for running in Server.running:
            running.read_refusals()
        found, roled.refusals[:] = sorted(set(roled.refusals)), []
        assert not found, f"refused by the roles: {found}"


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
    return Subjects(root=roled.next_root())
