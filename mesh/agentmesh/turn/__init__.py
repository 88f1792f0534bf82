"""The turn machine. `machine` has the table; `values` what goes in and comes out."""

from agentmesh.turn.machine import advance, new_core, state_of

__all__ = ["advance", "new_core", "state_of"]
