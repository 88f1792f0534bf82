"""A turn's live events, as JSON messages to the caller's `Mesh-Stream-To`: in order, ending with the outcome."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.backend import Event
from agentmesh.records import Resolve
from agentmesh.turn.values import RunTurn
from agentmesh_node.services import Services


class LiveStream:
    """The live events of one turn. Core messages: a reader that is away misses them, and the stored outcome stands."""

    def __init__(self, services: Services, agent: str, ref: str, subject: str, owner: int) -> None:
        self._s = services
        self._head = {"v": wire.VERSION, "agent": agent, "ref": ref, "owner": owner}
        self._subject = subject
        self._seq = 0
        self.ref = ref

    @staticmethod
    def open(services: Services, agent: str, command: RunTurn, owner: int) -> LiveStream | None:
        """The stream of a turn whose caller asked for one; its first message says that the turn starts."""
        if command.stream_to is None:
            return None
        stream = LiveStream(services, agent, command.request.ref, command.stream_to, owner)
        stream.send({"type": "start"})
        return stream

    @staticmethod
    def close_with(services: Services, agent: str, effect: Resolve, owner: int, stream: LiveStream | None) -> None:
        """Send the outcome as the last message; `stream` is the turn's, if this process ran it."""
        assert effect.stream_to is not None
        if stream is None or stream.ref != effect.outcome.ref:
            stream = LiveStream(services, agent, effect.outcome.ref, effect.stream_to, owner)
        stream.send({"type": "outcome", "outcome": msgspec.Raw(wire.encode_outcome(effect.outcome))})

    def event(self, event: Event) -> None:
        """Send what a reader wants to see of a backend's event."""
        match event.kind:
            case "text" | "thinking" | "tool_use" | "tool_result" | "usage":
                self.send({"type": event.kind, **event.data})
            case _:
                return  # the terminal event becomes the outcome, once it is committed

    def send(self, fields: dict[str, Any]) -> None:
        self._seq += 1
        self._s.transport.post(self._subject, msgspec.json.encode({**self._head, "seq": self._seq, **fields}))
