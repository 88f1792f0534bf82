"""A node with settings that the command does not offer: `python host.py URL SETTINGS`, as JSON of some `NodeSettings`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agentmesh.edge.connection import connect
from agentmesh_node.host.node import Node
from agentmesh_node.process.agent_loader import load_agents
from agentmesh_node.process.signals import StopSignal, run
from agentmesh_node.settings import NodeSettings

AGENTS = Path(__file__).with_name("agents.py")


async def host(told: StopSignal, url: str, settings: dict[str, Any]) -> None:
    """One node until the process is told to end."""
    transport = await connect(url, name=f"mesh-node-{settings['node_id']}")
    node = Node(transport, url, NodeSettings(agents=load_agents([str(AGENTS)]), **settings))
    try:
        await node.start()
        told.ready(f"node {settings['node_id']} ready")
        await told.stop()
    finally:
        await node.close()
        await transport.close()


if __name__ == "__main__":
    sys.exit(run(lambda told: host(told, sys.argv[1], json.loads(sys.argv[2]))))
