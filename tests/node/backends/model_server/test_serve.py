"""The program that serves the small model, without one (case 742); tests/local asks the real one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentmesh_node.backends.model_server import serve

pytestmark = pytest.mark.processes


@pytest.mark.case(742)
def test_it_ends_when_what_started_it_closes_its_pipe() -> None:
    """Whatever it does meanwhile: a process that waits for its parent's words is told that there will be none."""
    done = subprocess.run(
        [sys.executable, "-P", serve.__file__], input="", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
