"""The turn machine. `machine` has the table, `values` the inputs, the commands and the state."""

from agentmesh.turn.machine import advance, new_core, state_of

__all__ = ["advance", "new_core", "state_of"]
