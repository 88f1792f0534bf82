"""Agents that several tests use."""

from __future__ import annotations

from typing import Any

from agentmesh.agent import Halt, Idle, Prompt, Undelivered
from agentmesh.backend import Response
from mesh.turn.harness import Plain


def log_event(self: Any, event: Any, state: list[Any]) -> Any:
    """A `handle_event` that appends each event to the state."""
    return Idle([*state, event])


class Halting(Plain):
    """Halts on the answer HALT, chains on CHAIN; events are decisions: `halt`, `prompt:...`, or something to note."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text == "HALT":
            return Halt([*state, "halt"])
        if response.text == "CHAIN":
            return Prompt("chained", [*state, "chain"])
        return Idle([*state, response.text])

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        if event == "halt":
            return Halt([*state, "event halt"])
        if event.startswith("prompt:"):
            return Prompt(event.removeprefix("prompt:"), [*state, event])
        return Idle([*state, event])

    def post_run(self, state: list[Any]) -> Any:
        self.notify("monitor", "post_run")


class Chatty(Plain):
    """Tells `peer` of each answer; notes events and who sent them."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        self.tell("peer", response.text, tag=ref)
        return Idle([*state, response.text])

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        if isinstance(event, Undelivered):
            return Idle([*state, [event.effect["target"], event.effect.get("tag"), event.error.code]])
        return Idle([*state, [self.sender, event]])
