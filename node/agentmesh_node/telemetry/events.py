"""Lifecycle facts: one vocabulary, published on `mesh.event.<agent>.<kind>` and offered to handlers in this process.

Every fact has `agent`, `kind`, `time`, `node` and `turn`; `FIELDS` has the further fields of each kind. Content (prompts, events,
states) is included only on demand: on the wire by `NodeSettings.content` (`mesh node --content`, `MESH_CONTENT=1`), for a handler
by `handle(handler, content=True)`.

    def watch(fact: Fact) -> None: ...

    settings = NodeSettings(..., handlers=(watch,))      # from the node's first fact on, without content
    remove = node.services.events.handle(watch)          # later
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple, cast

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
    "store_lost", "unreadable_record", "foreign_message", "configured", "tools_absent",
]  # fmt: skip
"""The first seven are GenAgent's."""

FIELDS: dict[Kind, frozenset[str]] = {
    # A turn begins. `rewritten`: whether `pre_turn` rewrote the prompt; `sender`: the agent that asked, or null.
    # `chain`: on whose behalf, the oldest first; empty where no user is known (agentmesh.identity).
    "prompt_start": frozenset({"ref", "rewritten", "sender", "chain", "prompt", "original_prompt", "agent_state"}),
    # The stream ended in a result; the state is the one that `handle_stream_event` left.
    "prompt_stop": frozenset({"ref", "duration_ms", "agent_state"}),
    # The turn failed; `reason` is the error's code, `details` holds the backend's own reason.
    "prompt_error": frozenset({"ref", "chain", "reason", "message", "details", "agent_state"}),
    # An event has arrived; it may be handled later. `seq` is its sequence in the lane's stream.
    "event_received": frozenset({"lane", "seq", "sender", "chain", "event"}),
    # `from` is null (a life begins), `idle` or `processing`; `to` is `idle` or `processing`.
    "state_changed": frozenset({"from", "to"}),
    # A prompt must wait; `depth` prompts wait now.
    "mailbox_queued": frozenset({"depth"}),
    # The agent is halted, after `post_run`: no turn begins until `resume`.
    "halted": frozenset({"agent_state"}),
    # A life has begun.
    "started": frozenset(),
    # This node has activated the agent, with this generation.
    "activated": frozenset({"generation"}),
    # Mail went to another agent; `answer`: it is the outcome of a request of that agent.
    "sent": frozenset({"to", "lane", "tag", "answer"}),
    # The life is over.
    "stopped": frozenset({"reason"}),
    # Too many crashes: none of the agent's code runs until `resume`.
    "failed": frozenset({"reason"}),
    # An input became a dead letter; `reason` is the error's code.
    "dead_lettered": frozenset({"lane", "seq", "reason", "chain"}),
    # A callback held the node's loop for `seconds`.
    "callback_blocked": frozenset({"callback", "seconds"}),
    # The store has lost what the agent had committed: it stops.
    "store_lost": frozenset({"reason"}),
    # Its journal holds what its node cannot read: it waits.
    "unreadable_record": frozenset({"reason"}),
    # Its journal holds messages that are not the mesh's: so many, the newest at `seq`. They are passed over.
    "foreign_message": frozenset({"count", "seq"}),
    # The agent's configuration was changed while it ran: these parts of it.
    "configured": frozenset({"parts"}),
    # A server of tools that may be absent is, and why. Its turn goes on without it.
    "tools_absent": frozenset({"server", "reason"}),
}
"""The fields of each kind of fact, content included."""
KINDS = frozenset(FIELDS)
CONTENT = frozenset({"prompt", "original_prompt", "agent_state", "event", "message", "details"})
"""Fields that are included only on demand."""
WITH_CONTENT = frozenset(kind for kind, fields in FIELDS.items() if fields & CONTENT)
SHOWN: dict[str, tuple[str, ...]] = {kind: tuple(sorted(FIELDS[kind] - CONTENT)) for kind in WITH_CONTENT}
"""Of facts that have content: their other fields."""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """A fact as a handler gets it. `time` is in seconds since the epoch; `turn` is the number of the running or newest turn."""

    agent: str
    kind: Kind
    time: float
    node: str
    turn: int
    fields: dict[str, Any]


GATHER_S = 0.005
"""How long a node gathers facts before it sends them: so they delay no record and no reply, and cost less."""
MAX_HEADS = 16_384
"""Most encoded beginnings of facts that are kept, one for each agent and kind."""


class _Head(NamedTuple):
    """What facts of one kind of one agent have in common."""

    subject: str
    body: bytes
    """The beginning of their bodies, as far as the time."""
    chosen: Callable[[dict[str, Any]], dict[str, Any]] | None
    """Makes the fields that are sent; None: all are."""


def _shown(names: tuple[str, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What takes the fields of these names, in this order; some may be missing."""
    read = itemgetter(*names, names[0])  # of one name it would return no tuple

    def chosen(fields: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(names, read(fields), strict=False))
        except KeyError:
            return {name: fields[name] for name in names if name in fields}

    return chosen


_SHOWN = {kind: _shown(names) if names else lambda fields: {} for kind, names in SHOWN.items()}


type FactHandler = Callable[[Fact], None]
"""Called on the node's loop for each fact. It must be quick; if it raises, that is logged and ignored."""


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
        self._heads: dict[tuple[str, str], _Head] = {}

    def handle(self, handler: FactHandler, *, content: bool = False) -> Callable[[], None]:
        """Call `handler(fact)` for each fact from now on, on the loop. Returns a function that removes the handler.

        Args:
            content: whether its facts include prompts, events and states.
        """
        entry = (handler, content)
        self._handlers.append(entry)
        return lambda: self._handlers.remove(entry)

    def emit(self, agent: str, kind: str, turn: int, fields: dict[str, Any], at: float | None = None) -> None:
        """Publish a fact, and offer it to the handlers.

        Args:
            at: when it became one, in seconds since the epoch, if not now.
        """
        if at is None:
            at = self._now()
        if self._handlers:
            for handler, content in tuple(self._handlers):
                # A copy: changes that one handler makes reach neither the next one nor the agent.
                own = msgspec.json.decode(self._encoder.encode(_visible(kind, fields, content=content)))
                fact = Fact(agent=agent, kind=cast("Kind", kind), time=at, node=self._node, turn=turn, fields=own)
                _offer(handler, fact)
        self._gathered.append((agent, kind, turn, fields, at))
        if len(self._gathered) == 1:
            self._later(self.publish)

    def publish(self) -> None:
        """Send the facts that were gathered."""
        gathered, self._gathered = self._gathered, []
        encode, heads, messages = self._encoder.encode, self._heads, []
        former, number, when = -1.0, -1, b""
        for agent, kind, turn, fields, at in gathered:
            subject, body, chosen = heads.get((agent, kind)) or self._head(agent, kind)
            if at != former or turn != number:  # what one input leads to bears one time
                former, number, when = at, turn, f'{format_time(at)}","turn":{turn}'.encode()
            told = fields if chosen is None else chosen(fields)
            # Names, kinds and node ids need no escaping; this is several times quicker than encoding a dict.
            messages.append((subject, body + when + (b"," + encode(told)[1:] if told else b"}")))
        self._t.post_all(messages)

    def _head(self, agent: str, kind: str) -> _Head:
        """What such facts have in common."""
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        body = f'{{"v":1,"agent":"{agent}","kind":"{kind}","node":"{self._node}","time":"'.encode()
        chosen = None
        if kind in WITH_CONTENT:
            chosen = partial(_visible, kind, content=True) if self._content else _SHOWN[kind]
        head = _Head(self._subjects.event(agent, kind), body, chosen)
        self._heads[agent, kind] = head
        return head


def _offer(handler: FactHandler, fact: Fact) -> None:
    try:
        handler(fact)
    except Exception:
        log.exception("a handler of lifecycle events failed", extra={"agent": fact.agent, "kind": fact.kind})


def _visible(kind: str, fields: dict[str, Any], *, content: bool) -> dict[str, Any]:
    """The fields that may be included; a state that does not exist yet is left out."""
    if kind not in WITH_CONTENT:
        return fields
    if not content:
        return {k: v for k, v in fields.items() if k not in CONTENT}
    state = fields.get("agent_state")
    if isinstance(state, Raw) and state == NOTHING:
        return {k: v for k, v in fields.items() if k != "agent_state"}
    return fields
