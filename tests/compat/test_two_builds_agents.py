"""The agents of the test of two builds change the node that loads them, and no test that imports their names."""

from __future__ import annotations

import importlib

from agentmesh_node.turns.agent_factory import AgentFactory
from sim.agents import Cell


def test_an_import_changes_nothing() -> None:
    before = AgentFactory.config, Cell.slowness, Cell.dice
    importlib.reload(importlib.import_module("compat.two_builds.agents"))
    assert (AgentFactory.config, Cell.slowness, Cell.dice) == before
