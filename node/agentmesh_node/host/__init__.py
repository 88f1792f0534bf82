"""One node: which agents are placed here, which of them have work, and their hand-over."""

from typing import TYPE_CHECKING

from agentmesh import renamed

if not TYPE_CHECKING:
    __getattr__ = renamed.attributes(__name__, {"Node": "agentmesh_node.host.node", "NodeSettings": "agentmesh_node.settings"})
