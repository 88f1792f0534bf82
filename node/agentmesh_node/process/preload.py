"""Modules that the agents of a node need at their first call of a model, imported before the node takes agents.

The SDK of a model's API takes one to two seconds to import. Where it is imported at the first turn that needs it, each agent that
comes to a new node in the middle of a turn, or from a node that has died, stands still for that time.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from typing import Any

from agentmesh.errors import BackendError
from agentmesh.tools.declared import McpHttp, McpStdio
from agentmesh_node.backends.model_server.agents import STAND_IN, stand_in
from agentmesh_node.settings import NodeSettings
from agentmesh_node.turns.agent_factory import DEFAULT_BACKEND, backend_class

log = logging.getLogger("agentmesh.node")

MCP = ("mcp", "mcp.client.streamable_http")
"""What sessions with MCP servers need."""


def preload(settings: NodeSettings) -> None:
    """Import what the kinds of a node need. What cannot be imported is found, and told, by the first turn that needs it.

    It takes seconds: run it in a thread.
    """
    for name in sorted(_needed(settings)):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a module may raise anything
            log.debug("a module is not loaded: %s", error, extra={"import": name})


def _needed(settings: NodeSettings) -> set[str]:
    found: set[str] = set()
    for cls in settings.agents.values():
        found.update(_of_backend(cls.backend, settings))
        if any(isinstance(tool, McpStdio | McpHttp) for tool in _tools(cls)):
            found.update(MCP)
    return found


def _tools(cls: Any) -> Iterable[Any]:
    tools = getattr(cls, "tools", ())
    return tools if isinstance(tools, Iterable) else ()


def _of_backend(backend: Any, settings: NodeSettings) -> Iterable[str]:
    """The modules that a backend's class says it imports when it is used (`imports`)."""
    name = backend or DEFAULT_BACKEND
    if name == STAND_IN and settings.model is not None:
        name = stand_in(settings.model)
    try:
        made = backend_class(name) if isinstance(name, str) else name
    except (BackendError, ImportError):
        return ()
    imports = getattr(made, "imports", ())
    return [name for name in imports if isinstance(name, str)] if isinstance(imports, tuple) else ()
