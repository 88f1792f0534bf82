"""What a node gives a backend besides the agent and its options."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Response, Room
from agentmesh.callback_results import check_class
from agentmesh.errors import BackendError, InvalidAgent
from agentmesh.registry_values import Spec
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


class Own(ScriptedBackend):
    """A backend in the file of an agent."""


class Owner(Agent[Any]):
    backend = Own
    script = ("from its own",)


class Half(Agent[Any]):
    backend = dict  # type: ignore[assignment]

    async def init_agent(self, options: dict[str, Any]) -> Init[Any]:
        return Init(None)

    async def handle_response(self, ref: str, response: Response, state: Any) -> Idle[Any]:
        return Idle(state)


def test_a_class_may_name_the_class_of_its_backend_and_a_spec_another() -> None:
    settings = NodeSettings(node_id="n1", agents={"Owner": Owner})
    factory = AgentFactory(SimpleNamespace(settings=settings))  # type: ignore[arg-type]
    assert factory.backend_name(Spec(kind="Owner", incarnation="i")) == "Own"
    assert factory.backend_name(Spec(kind="Owner", incarnation="i", backend="scripted")) == "scripted"


def test_a_class_that_is_no_backend_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(InvalidAgent, match="or a class with the methods of one"):
        check_class(Half)


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
