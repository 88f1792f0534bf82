"""The Docker engine of the container tests: the one that runs here, else one of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S = 60.0
STOP_S = 30.0
_POLL_S = 0.1


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine that the environment points to. One that is started here has a store, a socket and networks of its own,
    publishes ports on loopback alone, and is ended with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        # The reaper is an image that would have to be pulled; what the tests start they remove.
        patch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
        if _answers():
            yield
            return
        daemon = shutil.which("dockerd")
        if daemon is None:
            pytest.skip("no Docker engine answers, and there is no dockerd to start: install docker.io")
        if os.geteuid() != 0:
            pytest.skip("no Docker engine answers, and only root may start dockerd")
        home = Path(tempfile.mkdtemp(prefix="dockerd-"))
        patch.setenv("DOCKER_HOST", f"unix://{home}/docker.sock")
        try:
            with _daemon(daemon, home):
                yield
        finally:
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _daemon(binary: str, home: Path) -> Iterator[None]:
    options = ["--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid"]
    options += ["--host", f"unix://{home}/docker.sock", "--bridge", "none", "--ip", "127.0.0.1"]
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([binary, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_S
        while not _answers():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd cannot run here: {log.read_text(errors='replace')[-300:]}")
            time.sleep(_POLL_S)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _answers() -> bool:
    if not _listens():  # docker-py leaves the socket of a refused connection open
        return False
    import docker  # here: `make quick` reads this file too
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
    except DockerException:
        return False
    with contextlib.closing(client):
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False


def _listens() -> bool:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(host.removeprefix("unix://")) == 0
