"""Lifecycle facts: one vocabulary, published on `mesh.event.<agent>.<kind>` and offered to handlers in this process.

Every fact has `agent`, `kind`, `time`, `node` and `turn`; `FIELDS` says what else each kind carries. Content (prompts, events,
states) is told only where it is asked for: on the wire by `NodeSettings.content` (`mesh node --content`, `MESH_CONTENT=1`), to a
handler by `handle(handler, content=True)`.

    def watch(fact: Fact) -> None: ...

    settings = NodeSettings(..., handlers=(watch,))      # from the node's first fact on, without content
    remove = node.services.events.handle(watch)          # later
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Raw

from agentmesh.edge.transport import Transport
from agentmesh.records import NOTHING
from agentmesh.subjects import Subjects
from agentmesh.wire import format_time

log = logging.getLogger("agentmesh.node")

type Kind = Literal[
    "prompt_start", "prompt_stop", "prompt_error", "event_received", "state_changed", "mailbox_queued", "halted",
    "started", "activated", "sent", "stopped", "failed", "dead_lettered", "callback_blocked",
]  # fmt: skip
"""The first seven are GenAgent's."""

FIELDS: dict[Kind, frozenset[str]] = {
    # A turn begins; `rewritten`: by `pre_turn`. `sender`: the agent that asked, or null.
    "prompt_start": frozenset({"ref", "rewritten", "sender", "prompt", "original_prompt", "agent_state"}),
    # The stream ended in a result; state as `handle_stream_event` left it.
    "prompt_stop": frozenset({"ref", "duration_ms", "agent_state"}),
    # The turn failed; `reason` is the error's code, `details` what the backend gave as its reason.
    "prompt_error": frozenset({"ref", "reason", "message", "details", "agent_state"}),
    # An event has arrived; it may be handled later. `seq` is its sequence in the lane's stream.
    "event_received": frozenset({"lane", "seq", "sender", "event"}),
    # From null (a life begins), `idle` or `processing` to `idle` or `processing`.
    "state_changed": frozenset({"from", "to"}),
    # A prompt must wait; so many do now.
    "mailbox_queued": frozenset({"depth"}),
    # No turn begins until `resume`; behind `post_run`.
    "halted": frozenset({"agent_state"}),
    # A life has begun.
    "started": frozenset(),
    # This node took the agent up, under this generation.
    "activated": frozenset({"generation"}),
    # Mail went to another agent; `answer`: the outcome of a request of its.
    "sent": frozenset({"to", "lane", "tag", "answer"}),
    # The life is over.
    "stopped": frozenset({"reason"}),
    # Too many crashes: none of the agent's code runs until `resume`.
    "failed": frozenset({"reason"}),
    # An input was set aside; `reason` is the error's code.
    "dead_lettered": frozenset({"lane", "seq", "reason"}),
    # A callback held the node's loop for `seconds`.
    "callback_blocked": frozenset({"callback", "seconds"}),
}
"""What each kind of fact carries, content included."""
KINDS = frozenset(FIELDS)
CONTENT = frozenset({"prompt", "original_prompt", "agent_state", "event", "message", "details"})
"""Fields that are told only where content is asked for."""
WITH_CONTENT = frozenset(kind for kind, fields in FIELDS.items() if fields & CONTENT)


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler is told. `time` is in seconds since the epoch; `turn` the number of the running or newest turn."""

    agent: str
    kind: Kind
    time: float
    node: str
    turn: int
    fields: dict[str, Any]


GATHER_S = 0.005
"""How long a node gathers facts before it sends them: so they stand in the way of no record and no reply, and cost less."""
MAX_HEADS = 16_384
"""Beginnings of facts that are kept ready, one for each agent and kind that was told of lately."""

type FactHandler = Callable[[Fact], None]
"""Called on the node's loop for each fact: quick, and without effect if it raises."""


class Events:
    """Publishes facts. A fact is advisory: one that cannot be sent now is dropped, never waited for."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        node: str,
        now: Callable[[], float],
        *,
        content: bool,
        handlers: tuple[FactHandler, ...] = (),
        later: Callable[[Callable[[], None]], object] = lambda action: action(),
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._node = node
        self._later = later
        self._now = now
        self._content = content
        self._handlers: list[tuple[FactHandler, bool]] = [(handler, False) for handler in handlers]
        self._encoder = msgspec.json.Encoder()
        self._gathered: list[tuple[str, str, int, dict[str, Any], float]] = []
        self._heads: dict[tuple[str, str], tuple[str, str]] = {}

    def handle(self, handler: FactHandler, *, content: bool = False) -> Callable[[], None]:
        """Call `handler(fact)` for each fact from now on, on the loop. Returns what removes it.

        Args:
            content: whether its facts carry prompts, events and states.
        """
        entry = (handler, content)
        self._handlers.append(entry)
        return lambda: self._handlers.remove(entry)

    def emit(self, agent: str, kind: str, turn: int, fields: dict[str, Any]) -> None:
        """Tell a fact."""
        if self._handlers:
            for handler, content in tuple(self._handlers):
                self._offer(handler, agent, kind, turn, _told(kind, fields, content=content))
        self._gathered.append((agent, kind, turn, fields, self._now()))
        if len(self._gathered) == 1:
            self._later(self.publish)

    def publish(self) -> None:
        """Send the facts that were gathered."""
        gathered, self._gathered = self._gathered, []
        encode, heads, messages = self._encoder.encode, self._heads, []
        for agent, kind, turn, fields, time in gathered:
            told = _told(kind, fields, content=self._content) if kind in WITH_CONTENT else fields
            subject, head = heads.get((agent, kind)) or self._head(agent, kind)
            # Names, kinds and node ids need no escaping; this is several times quicker than encoding a dict.
            body = f'{head}{format_time(time)}","turn":{turn}'.encode()
            messages.append((subject, body + (b"," + encode(told)[1:] if told else b"}")))
        self._t.post_all(messages)

    def _head(self, agent: str, kind: str) -> tuple[str, str]:
        """The subject of such facts, and how their bodies begin."""
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        body = f'{{"v":1,"agent":"{agent}","kind":"{kind}","node":"{self._node}","time":"'
        head = self._heads[agent, kind] = (self._subjects.event(agent, kind), body)
        return head

    def _offer(self, handler: FactHandler, agent: str, kind: Any, turn: int, fields: dict[str, Any]) -> None:
        # A copy: what one handler does to it reaches neither the next one nor the agent.
        own = msgspec.json.decode(self._encoder.encode(fields))
        try:
            handler(Fact(agent=agent, kind=kind, time=self._now(), node=self._node, turn=turn, fields=own))
        except Exception:
            log.exception("a handler of lifecycle events failed", extra={"agent": agent, "kind": kind})


def _told(kind: str, fields: dict[str, Any], *, content: bool) -> dict[str, Any]:
    """The fields that may be told; a state that does not exist yet is left out."""
    if kind not in WITH_CONTENT:
        return fields
    if not content:
        return {k: v for k, v in fields.items() if k not in CONTENT}
    state = fields.get("agent_state")
    if isinstance(state, Raw) and state == NOTHING:
        return {k: v for k, v in fields.items() if k != "agent_state"}
    return fields
