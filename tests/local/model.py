"""The real, small model as a process of its own, for tests that ask it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from agentmesh_node.backends.model_server.local import SERVE, missing, serving

MISSING = "no local model here (tests/local/requirements.txt)"
INSTALLED = missing() is None


@contextlib.contextmanager
def local_model(log: Path) -> Iterator[str]:
    """The address of the model's server, which runs as long. What it says of itself goes to `log`."""
    command = (sys.executable, "-P", str(SERVE))
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(serving(port=0, cache=False)).encode() + b"\n")
            process.stdin.flush()
            address = process.stdout.readline().decode().strip()  # it listens, or has ended
            assert address, log.read_text()
            yield address
        finally:
            process.terminate()
