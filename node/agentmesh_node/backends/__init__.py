"""The backends that ship with the node. Each is registered under the entry-point group `agentmesh.backends`."""
