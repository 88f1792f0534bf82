"""A turn's live events, as JSON messages to the caller's `Mesh-Stream-To`: in order, ending with the outcome.

Each bears `seq`, which counts from 1 in each run of the turn, `owner`, and `run`, a random id of that run: a turn may run again
under the same owner too (its node was restarted under its id, or the agent's own code crashed), and a reader must then be able to
tell which events are void (case 243). `step` says how many steps were durable when the event was sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.backend import Event
from agentmesh.records import Resolve
from agentmesh.turn.values import RunTurn
from agentmesh_node.services import Services


class TurnEventStream:
    """The live events of one turn. They are core messages: a reader that is away misses them, but the outcome is stored. A full
    socket drops them, but never the first and the last one: `seq` of the last says how many there were."""

    def __init__(self, services: Services, agent: str, ref: str, subject: str, owner: int) -> None:
        self._s = services
        self._head = {"v": wire.VERSION, "agent": agent, "ref": ref, "owner": owner, "run": services.token()}
        self._subject = subject
        self._seq = 0
        self.ref = ref
        self.step = 0
        """How many steps of the turn are durable: events that were sent before the newest of them survive a takeover."""

    @staticmethod
    def open(services: Services, agent: str, command: RunTurn, owner: int) -> TurnEventStream | None:
        """The stream of a turn whose caller asked for one; its first message says that the turn starts."""
        if command.stream_to is None:
            return None
        stream = TurnEventStream(services, agent, command.request.ref, command.stream_to, owner)
        stream.step = len(command.steps)
        stream.send({"type": "start"}, though_full=True)
        return stream

    @staticmethod
    def close_with(services: Services, agent: str, effect: Resolve, owner: int, stream: TurnEventStream | None) -> None:
        """Send the outcome as the last message; `stream` is the turn's, if this process ran it."""
        assert effect.stream_to is not None
        if stream is None or stream.ref != effect.outcome.ref:
            stream = TurnEventStream(services, agent, effect.outcome.ref, effect.stream_to, owner)
        stream.send({"type": "outcome", "outcome": msgspec.Raw(wire.encode_outcome(effect.outcome))}, though_full=True)

    def event(self, event: Event) -> None:
        """Send a backend's event, if readers want it. Events replayed from an earlier owner's step are not sent again."""
        if event.replayed:
            return
        match event.kind:
            case "text" | "thinking" | "tool_use" | "tool_result" | "usage":
                self.send({**event.data, "type": event.kind})
            case _:
                return  # the terminal event becomes the outcome, once it is committed

    def send(self, fields: dict[str, Any], *, though_full: bool = False) -> None:
        """Send one message. An event without a JSON form is left out, which shows as a missing `seq`: a reader must not make a
        turn fail."""
        self._seq += 1
        try:
            body = msgspec.json.encode({**fields, **self._head, "step": self.step, "seq": self._seq})
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            return
        self._s.transport.post(self._subject, body, though_full=though_full)
