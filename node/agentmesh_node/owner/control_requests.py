"""Control requests of an agent: `mesh.live.control.<agent>` (docs/protocol.md#control-requests)."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import names, wire
from agentmesh.callback_context import timer_of, timer_token
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.jetstream import get_last, read
from agentmesh.edge.transport import Disconnected, Message
from agentmesh.errors import BadRequest, MeshError, TooLarge, Unavailable
from agentmesh.ledger import is_taken
from agentmesh.outcomes import capped, outcome_limit
from agentmesh.records import NOTHING, Echo, Resolve, SetTimer
from agentmesh.turn import state_of
from agentmesh.turn.draft import depth
from agentmesh.turn.values import AskTimer, Cancel, Core, DropTimer, Interrupt, Resume
from agentmesh.wire import ControlRequest, Status
from agentmesh_node.owner.dead_letters import resend
from agentmesh_node.services import Services

if TYPE_CHECKING:
    from agentmesh_node.owner.owner import Owner

log = logging.getLogger("agentmesh.node")
_decoder = msgspec.json.Decoder(ControlRequest)
MAX_SEQUENCE = 2**63 - 1
"""A ref above it was never issued: the server reads no larger sequence."""
MAX_PROBE = 2048
"""Bytes of a probe, which is handed on: some names and numbers."""


def handle(owner: Owner, services: Services, message: Message) -> None:
    """Take one request. Bad input is answered, and harms nothing."""
    if not message.reply:
        _take_probe(owner, message)
        return
    try:
        reply = names.reply_subject(message.reply, services.subjects.root)
    except BadRequest:
        return  # there is nobody who could be told
    try:
        request = _decoder.decode(message.data)
        _take(owner, services, request, reply)
    except (msgspec.DecodeError, RecursionError) as error:
        services.spawn(answer(services, reply, wire.encode_failure(BadRequest(f"not a control request: {error}"))))
    except MeshError as error:
        services.spawn(answer(services, reply, wire.encode_failure(error)))


def _take_probe(owner: Owner, message: Message) -> None:
    """Take what nobody waits for an answer to: a probe, or nothing."""
    if len(message.data) > MAX_PROBE:
        return
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        request = _decoder.decode(message.data)
        if request.op == "probe" and request.probe is not None:
            owner.prober.received(request.probe)


def _take(owner: Owner, services: Services, request: ControlRequest, reply: str) -> None:
    token = services.token()
    match request.op:
        case "status":
            # Behind the mail that came ahead of it: what is asked for is the agent as it is after that.
            services.rounds.put(partial(_tell_status, owner, services, content=request.content), reply)
        case "poll":
            services.spawn(_poll(owner, services, _needed(request.ref, "ref"), reply))
        case "resend":
            services.spawn(_resend(owner, services, _needed(request.ref, "ref"), reply))
        case "interrupt":
            spent = owner.runner.spent() if owner.runner is not None else None
            owner.ask_later(Interrupt(token, request.ref, spent), token, reply)
        case "resume":
            owner.ask_later(Resume(token), token, reply)
        case "cancel":
            owner.ask_later(Cancel(_needed(request.ref, "ref"), token), token, reply)
        case "set_timer":
            owner.ask_later(AskTimer(_timer(services, request), token), token, reply)
        case "cancel_timer":
            owner.ask_later(DropTimer(timer_token(_needed(request.id, "id")), token), token, reply)
        case _:
            raise BadRequest(f"unknown operation {request.op[:40]!r}")


def _tell_status(owner: Owner, services: Services, reply: str, *, content: bool) -> None:
    services.spawn(answer(services, reply, wire.encode(status(owner, services, content=content))))


def _needed(value: str | None, what: str) -> str:
    if not value:
        raise BadRequest(f"this operation needs {what!r}")
    return names.token(value, what)


def _timer(services: Services, request: ControlRequest) -> SetTimer:
    if (request.at is None) == (request.after_s is None):
        raise BadRequest("set_timer needs either 'at' or 'after_s'")
    due = wire.parse_time(request.at) if request.at is not None else services.now() + max(0.0, request.after_s or 0.0)
    wire.check_depth(request.event)
    size, limit = len(msgspec.json.encode(request.event)), outcome_limit(services.transport.max_payload, mailed=True)
    if size > limit:
        raise TooLarge(f"the event takes {size} bytes; a timer can carry {limit}: send a reference instead")
    return timer_of(_needed(request.id, "id"), due, request.every_s, request.event)


# --- replies ------------------------------------------------------------------------------------------------------
async def answer(services: Services, reply: str, body: bytes) -> None:
    """Send a reply. A requester that cannot be reached asks again."""
    if not reply:
        return
    try:
        await services.transport.publish(reply, body)
    except TooLarge:
        await services.transport.publish(reply, wire.encode_failure(TooLarge("the reply is larger than a message can be")))
    except Disconnected:
        log.debug("a control request could not be answered: no connection")


def status(owner: Owner, services: Services, *, content: bool) -> Status:
    """What `status` shows."""
    core = owner.core
    assert core is not None
    ledger = core.work
    return Status(
        name=owner.name,
        kind=owner.spec.kind,
        backend=owner.factory.backend_name(owner.spec),
        state="processing" if state_of(core) == "processing" else "idle",
        halted=ledger.halted,
        queued=depth(core),
        current_request=core.active.ref if core.active else None,
        node=services.settings.node_id,
        incarnation=core.ledger.incarnation,
        generation=core.ledger.generation,
        turn=ledger.turn,
        usage=ledger.usage,
        failed=core.ledger.failed or (core.reason if core.phase == "failed" else None),
        agent_state=_plain(core) if content else msgspec.UNSET,
    )


def _plain(core: Core) -> Any:
    return msgspec.json.decode(core.ledger.state) if core.ledger.state != NOTHING else None


# --- poll ---------------------------------------------------------------------------------------------------------
async def _poll(owner: Owner, services: Services, ref: str, reply: str) -> None:
    try:
        await answer(services, reply, wire.encode_reply(await _look_up(owner, services, ref)))
    except EDGE_ERRORS as error:
        shown = error if isinstance(error, MeshError) else BadRequest(str(error))
        await answer(services, reply, wire.encode_failure(shown))


async def _resend(owner: Owner, services: Services, letter: str, reply: str) -> None:
    """Send a dead letter again that came from another agent."""
    try:
        if not letter.isdecimal():
            raise BadRequest(f"a dead letter is named by its sequence, a number; this is {letter[:40]!r}")
        ref = await resend(services, owner.name, owner.claim.incarnation, int(letter))
        await answer(services, reply, wire.encode_reply({"ref": str(ref)}))
    except EDGE_ERRORS as error:
        shown = error if isinstance(error, MeshError) else Unavailable(str(error))
        await answer(services, reply, wire.encode_failure(shown))


async def _look_up(owner: Owner, services: Services, ref: str) -> dict[str, Any]:
    """`pending`, `completed` or `not_found`, as this owner can prove it."""
    subject = services.subjects.result(owner.name, ref)
    for _ in range(2):
        # While one place is read, a request may move on to one that was looked at before: from the lane to this owner, from
        # the ledger to the stored results. Once is enough for either.
        known = _known(owner, ref)
        if known is not None:
            return known
        stored = await get_last(services.transport, services.subjects.stream("result"), subject)
        if stored is not None:
            return _completed(stored.data)
        if ref.isdecimal() and int(ref) <= MAX_SEQUENCE and await _in_lane(owner, services, int(ref)):
            return {"status": "pending"}
    return {"status": "not_found"}


async def is_gone(owner: Owner, services: Services, ref: str) -> bool:
    """Whether a request that this agent has consumed was answered, and its outcome is kept no more.

    False also where that cannot be told just now: ask again.
    """
    before = owner.core
    if before is None or before.inflight is not None:
        return False  # the record on its way may hold the outcome
    found = await _look_up(owner, services, ref)
    return found["status"] == "not_found" and owner.core is before


def _completed(outcome: bytes) -> dict[str, Any]:
    return {"status": "completed", "outcome": msgspec.Raw(outcome)}


def _known(owner: Owner, ref: str) -> dict[str, Any] | None:
    """What this owner's memory says of a request."""
    core = owner.core
    assert core is not None
    if _pending(core, ref):
        return {"status": "pending"}
    for entry in core.ledger.effects.values():
        effect = entry.effect
        if isinstance(effect, Resolve) and effect.outcome.ref == ref:
            outcome = capped(effect.outcome, outcome_limit(core.config.max_payload))
            return _completed(wire.encode_outcome(outcome))  # committed; perhaps not stored yet
        if isinstance(effect, Echo) and effect.ref == ref:
            return {"status": "pending"}  # it gets the first one's outcome
    return None


def _pending(core: Core, ref: str) -> bool:
    active = core.active
    if active is not None and active.ref == ref and active.caller is not None:
        return True
    queued = [core.work.next, *core.work.queue]
    if any(q is not None and q.ref == ref and q.caller is not None for q in queued):
        return True
    return ref in core.work.deferred or any(m.ref == ref for m in core.prompts)


async def _in_lane(owner: Owner, services: Services, seq: int) -> bool:
    """Whether a prompt with this sequence is stored and not consumed: it has not reached this owner yet."""
    core = owner.core
    assert core is not None
    for lane in ("inbox", "peer-inbox"):
        if is_taken(core.ledger, lane, seq):
            continue
        subject = services.subjects.lane(lane, owner.name)
        page = await read(services.transport, services.subjects.stream("mail"), subject, from_seq=seq, batch=1)
        if page.messages and page.messages[0].seq == seq:
            return True
    return False


__all__ = ["answer", "handle", "is_gone", "status"]
