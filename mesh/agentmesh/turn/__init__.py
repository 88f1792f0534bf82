"""The turn machine. `machine` has the table; `values` what goes in and comes out."""

from agentmesh.turn.machine import new_core, state_of, step

__all__ = ["new_core", "state_of", "step"]
