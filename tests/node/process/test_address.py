"""Which mesh a process belongs to: arguments come first, then the environment."""

from __future__ import annotations

import pytest

from agentmesh.errors import BadRequest
from agentmesh_node.process.address import MeshAddress


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_NATS_URL", "nats://a:1,nats://b:2")
    monkeypatch.setenv("MESH_ROOT", "other")
    assert MeshAddress.find(None, None) == MeshAddress(servers=["nats://a:1", "nats://b:2"], root="other")
    assert MeshAddress.find("nats://c:3", "mine", wait_s=1.5) == MeshAddress(servers=["nats://c:3"], root="mine", wait_s=1.5)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(BadRequest, match="http"):
        MeshAddress.find("http://c", None)
    with pytest.raises(BadRequest, match="root"):
        MeshAddress.find("nats://c", "No Root")
