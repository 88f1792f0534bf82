"""What a node gives a backend besides the agent and its options."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.backend import Room
from agentmesh.errors import BackendError
from agentmesh_node.backends.scripted import ScriptedBackend
from agentmesh_node.settings import NodeSettings
from agentmesh_node.tools.mcp.pool import CHILDREN, bound_children, pool
from agentmesh_node.turns.agent_factory import AgentFactory, backend_class, files_of, takes_room


class Roomy:
    def __init__(self, agent: Any, options: Any, *, room: Room) -> None:
        self.room = room


def plain(agent: Any, options: Any) -> None:
    """A factory as it always was."""


def test_only_a_factory_that_asks_for_a_room_gets_one() -> None:
    assert takes_room(Roomy)
    assert not takes_room(plain)
    assert not takes_room(ScriptedBackend)
    assert not takes_room(dict)  # has no signature to read


def test_a_backend_that_nobody_brings_is_told_with_those_that_there_are() -> None:
    with pytest.raises(BackendError, match=r"there is no backend 'nope' on this node; there are: anthropic, .*scripted; take"):
        backend_class("nope")


def test_each_node_has_files_of_its_own(tmp_path: Path) -> None:
    one = files_of(NodeSettings(node_id="n1", agents={}, root="r", files=str(tmp_path)))
    other = files_of(NodeSettings(node_id="n2", agents={}, root="r", files=str(tmp_path)))
    assert one != other
    assert {one.parents[1], other.parents[1]} == {tmp_path}
    default = files_of(NodeSettings(node_id="n1", agents={}))
    assert default.is_absolute()
    assert Path(tempfile.gettempdir()) in default.parents


def test_the_setting_of_a_node_bounds_the_servers_that_are_its_children() -> None:
    async def check() -> int:
        AgentFactory(SimpleNamespace(settings=NodeSettings(node_id="n1", agents={}, mcp_children=3)))  # type: ignore[arg-type]
        return pool().most

    try:
        assert asyncio.run(check()) == 3
    finally:
        bound_children(CHILDREN)
    assert NodeSettings(node_id="n1", agents={}).mcp_children == CHILDREN
