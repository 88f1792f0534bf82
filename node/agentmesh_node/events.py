"""Lifecycle facts: one vocabulary, published on `mesh.event.<agent>.<kind>` and offered to handlers in this process.

Kinds and their fields, beside `v`, `agent`, `kind`, `time`, `node` and `turn`, which every fact has:

    prompt_start      ref, rewritten, sender; with content: prompt, original_prompt, agent_state
    prompt_stop       ref, duration_ms; with content: agent_state
    prompt_error      ref, reason; with content: agent_state
    event_received    lane, seq, sender; with content: event
    state_changed     from, to
    mailbox_queued    depth
    halted            with content: agent_state
    started           an agent's life began
    activated         generation: this node took the agent up
    sent              to, lane, tag, answer: mail went to another agent
    stopped           reason
    failed            reason
    dead_lettered     lane, seq, reason
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from agentmesh.edge.transport import Transport
from agentmesh.records import NOTHING
from agentmesh.subjects import Subjects
from agentmesh.wire import format_time

log = logging.getLogger("agentmesh.node")

CONTENT = frozenset({"prompt", "original_prompt", "agent_state", "event"})
"""Fields that are told only where content is asked for."""
WITH_CONTENT = frozenset({"prompt_start", "prompt_stop", "prompt_error", "event_received", "halted"})
KINDS = frozenset(
    {
        "prompt_start", "prompt_stop", "prompt_error", "event_received", "state_changed", "mailbox_queued", "halted",
        "started", "activated", "sent", "stopped", "failed", "dead_lettered",
    }
)  # fmt: skip

type Handler = Callable[[str, str, dict[str, Any]], None]


class Events:
    """Publishes facts. A fact is advisory: one that cannot be sent now is dropped, never waited for."""

    def __init__(self, transport: Transport, subjects: Subjects, node: str, now: Callable[[], float], *, content: bool) -> None:
        self._t = transport
        self._subjects = subjects
        self._node = node.encode()
        self._now = now
        self._content = content
        self._handlers: list[Handler] = []
        self._encoder = msgspec.json.Encoder()

    def handle(self, handler: Handler) -> Callable[[], None]:
        """Call `handler(agent, kind, fields)` for each fact, content included. Returns its remover."""
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def emit(self, agent: str, kind: str, turn: int, fields: dict[str, Any]) -> None:
        """Tell a fact."""
        for handler in self._handlers:
            try:
                handler(agent, kind, fields)
            except Exception:
                log.exception("a handler of lifecycle events failed", extra={"kind": kind})
        if not self._content:
            if kind in WITH_CONTENT:
                fields = {k: v for k, v in fields.items() if k not in CONTENT}
        elif fields.get("agent_state") is NOTHING:
            fields = {k: v for k, v in fields.items() if k != "agent_state"}
        # Names, kinds and node ids need no escaping; this is several times quicker than encoding a dict.
        tail = self._encoder.encode(fields)[1:] if fields else b"}"
        body = b'{"v":1,"agent":"%b","kind":"%b","time":"%b","node":"%b","turn":%d%b%b' % (
            agent.encode(), kind.encode(), format_time(self._now()).encode(), self._node, turn, b"," if fields else b"", tail,
        )  # fmt: skip
        self._t.post(self._subjects.event(agent, kind), body)
