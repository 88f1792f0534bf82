"""Agents that are placed here and cannot be run: the store has lost what they had committed, or their journal holds what this
program cannot read.

Nothing is written to their journals. What is wrong, and what to do, is said wherever somebody may look: in the spec (`mesh ps`,
`mesh doctor`), as a lifecycle fact, by readiness, and in the answers to control requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import msgspec

from agentmesh import wire
from agentmesh.control_operations import CONTROL, is_control, request_in
from agentmesh.control_values import Status
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.registry import decode_spec, readable_spec
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.retry import UPKEEP_RETRY, ExponentialBackoff
from agentmesh.edge.transport import Disconnected, Message
from agentmesh.errors import BadRequest, StoreLost, UnreadableRecord
from agentmesh.registry_values import Spec, encode_spec
from agentmesh.subjects import spec_key
from agentmesh.wire import ErrorBody
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")

UNREADABLE_RETRY = ExponentialBackoff(5.0, 60.0)
"""Pauses between two looks at a journal that cannot be read: what is missing may be restored."""
MOST_NAMED = 5
"""Agents that readiness names, at most."""
WHAT_TO_DO = "restore it (docs/operations.md#a-store-that-was-put-back), or give these agents up with `mesh stop`"


class StuckAgents:
    """The stuck agents of one node."""

    def __init__(self, services: Services, backend_name: Callable[[Spec], str]) -> None:
        """`backend_name`: the backend that a spec stands for."""
        self._s = services
        self._backend_name = backend_name

    def lost(self, placed: PlacedAgent, reason: str, committed: int | None = None) -> None:
        """The store has lost what this agent had committed. It stays so until an operator has restored the store and raised the
        epoch, or stops the agent.

        Args:
            committed: the record that its owner knew to be stored: a reader of a journal without it knows that it is lost.
        """
        details = {} if committed is None else {"record": committed, "epoch": self._s.epoch}
        placed.stuck = ErrorBody(code=StoreLost.code, message=reason, details=details)
        log.critical("the store has lost data: the agent stops here", extra={"agent": placed.name, "error": reason})
        self._s.events.emit(placed.name, "store_lost", 0, {"reason": reason})
        self._tell(placed)

    def unreadable(self, placed: PlacedAgent, error: UnreadableRecord) -> None:
        """This program cannot read the agent's journal, and tries again from time to time."""
        known, placed.stuck = placed.stuck, ErrorBody.of(error)
        if placed.stuck == known:
            return
        log.error("the agent waits: %s", error.message, extra={"agent": placed.name})
        self._s.events.emit(placed.name, "unreadable_record", 0, {"reason": error.message})
        self._tell(placed)

    def runs(self, placed: PlacedAgent) -> None:
        """The agent has an owner."""
        if placed.stuck is not None:
            log.warning("the agent goes on", extra={"agent": placed.name})
            placed.stuck = None

    # --- readiness --------------------------------------------------------------------------------------------------
    @staticmethod
    def trouble(agents: Iterable[PlacedAgent]) -> str | None:
        """What the store has lost, and what to do about it; None if nothing is known to be lost."""
        names = sorted(placed.name for placed in agents if placed.broken)
        if not names:
            return None
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return f"the store has lost data of {', '.join(names[:MOST_NAMED])}{more}: {WHAT_TO_DO}"

    # --- the spec ---------------------------------------------------------------------------------------------------
    def _tell(self, placed: PlacedAgent) -> None:
        waiting, placed.waiting = placed.waiting, ()
        for lane, message in waiting:
            if is_control(lane):
                self.answer(placed, message)
        self._s.spawn(self._show(placed))

    async def _show(self, placed: PlacedAgent) -> None:
        """Say it in the spec, until the registry has it."""
        error = placed.stuck
        for pause in UPKEEP_RETRY:
            if placed.gone or error is None or placed.stuck is not error:
                return
            try:
                await self._write(placed, error)
                return
            except EDGE_ERRORS as trouble:
                log.debug("the spec does not say it yet: %s", trouble, extra={"agent": placed.name})
            await asyncio.sleep(pause)

    async def _write(self, placed: PlacedAgent, error: ErrorBody) -> None:
        key = spec_key(placed.name)
        entry = await self._s.registry.get(key)
        if entry is None:
            return
        spec = decode_spec(entry)
        if spec.incarnation != placed.incarnation or spec.status == "stopped":
            return
        lost = error.code == StoreLost.code
        status = "stopping" if spec.status == "stopping" else "failed" if lost else "wanted"
        if (spec.status, spec.reason) == (status, error):
            return
        shown = msgspec.structs.replace(
            spec, status=status, reason=error, since=wire.format_time(self._s.now()), ran=spec.ran or spec.status != "wanted"
        )
        await self._s.registry.update(key, encode_spec(shown, entry.value), entry.revision)

    # --- requests ---------------------------------------------------------------------------------------------------
    def answer(self, placed: PlacedAgent, message: Message) -> None:
        """Answer a control request to a stuck agent."""
        assert placed.stuck is not None
        reply = usable_reply(message, self._s.subjects.root)
        if reply is None:
            return
        try:
            lane, _ = self._s.subjects.parse_copy(message.subject) or (CONTROL, "")
            asked = request_in(lane, message.data).op
        except (msgspec.DecodeError, RecursionError) as error:
            body = wire.encode_failure(BadRequest(f"not a control request: {error}"))
        except BadRequest as error:
            body = wire.encode_failure(error)
        else:
            status = self._status(placed, placed.stuck) if asked == "status" else None
            body = wire.encode(status) if status is not None else wire.encode_failure(placed.stuck.exception())
        self._s.spawn(self._reply(reply, body))

    async def _reply(self, reply: str, body: bytes) -> None:
        try:
            await self._s.transport.publish(reply, body)
        except Disconnected:
            log.debug("a control request could not be answered: no connection")

    def _status(self, placed: PlacedAgent, error: ErrorBody) -> Status | None:
        """What can be said of the agent without its journal."""
        spec = readable_spec(self._s.specs.get(spec_key(placed.name)))
        if spec is None:
            return None
        lost = error.code == StoreLost.code
        return Status(
            name=placed.name,
            kind=spec.kind,
            backend=self._backend_name(spec),
            state="idle",
            halted=False,
            queued=0,
            current_request=None,
            node=self._s.settings.node_id,
            incarnation=placed.incarnation,
            generation=placed.generation,
            turn=0,
            usage={},
            failed=error if lost else None,
            waiting=None if lost else error,
        )
