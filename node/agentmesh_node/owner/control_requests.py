"""Control requests of an agent: `mesh.live.control.<agent>` (docs/protocol.md#control-requests)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from agentmesh import control_values, names, wire
from agentmesh.callback_context import timer_of, timer_token
from agentmesh.configuration import checked
from agentmesh.control_operations import CONTROL, request_in
from agentmesh.control_values import MAX_OPEN, ControlRequest, Probe, Status
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.results import read_outcome, standing_prompt
from agentmesh.edge.transport import Disconnected, Headers, Message
from agentmesh.errors import BadRequest, MeshError, TooLarge, Unavailable
from agentmesh.headers import trace_in
from agentmesh.keys import opens, refusal, shown_by
from agentmesh.ledger import is_taken, open_requests
from agentmesh.outcomes import answers, capped, outcome_limit
from agentmesh.records import NOTHING, Echo, Inner, Resolve, SetTimer
from agentmesh.registry_values import Spec
from agentmesh.structured import AnswerType, Misfit
from agentmesh.tool_runs import ToolRun
from agentmesh.turn import delegation
from agentmesh.turn.configuration import PENDING, shown
from agentmesh.turn.interruption import running_callback
from agentmesh.turn.request_keys import digest_for
from agentmesh.turn.values import (
    AnswerControl,
    AskTimer,
    Cancel,
    Configure,
    Core,
    DropTimer,
    Input,
    Interrupt,
    Phase,
    Reply,
    Resume,
)
from agentmesh.turn.withdrawal import open_ref
from agentmesh_node.owner.activity import activity_of
from agentmesh_node.owner.dead_letters import resend
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")
_decoder = msgspec.json.Decoder(ControlRequest)
MAX_PROBE = 2048
"""Most bytes of a probe, which holds some names and numbers, and is handed on."""


class ControlRequests:
    """Handles the control requests to one agent."""

    def __init__(
        self,
        loop: OwnerLoop,
        services: Services,
        life: str,
        *,
        spec: Callable[[], Spec],
        backend_name: Callable[[Spec], str],
        spent: Callable[[], dict[str, Any] | None],
        turn: Callable[[], int | None] = lambda: None,
        tool: Callable[[], str | None] = lambda: None,
        ran: Callable[[], tuple[ToolRun, ...]] = lambda: (),
        inner: Callable[[], tuple[Inner, ...]] = lambda: (),
        on_probe: Callable[[Probe], None],
        answer_type: AnswerType[Any] | None = None,
    ) -> None:
        """
        Args:
            life: the agent's incarnation.
            spec: returns the agent's spec as its owner knows it now.
            backend_name: returns the name of a spec's backend.
            spent: returns the newest turn's spending so far.
            turn: returns the number of that turn.
            tool: returns the tool that the running turn waits for.
            ran: returns the tools that ran in it so far.
            inner: returns its calls so far that no step has.
            on_probe: called with another agent's probe for circles of waits.
            answer_type: what a reply in the agent's place must be.
        """
        self._answer_type = answer_type
        self._loop = loop
        self._s = services
        self._life = life
        self._spec = spec
        self._backend_name = backend_name
        self._spent = spent
        self._turn = turn
        self._tool = tool
        self._ran = ran
        self._inner = inner
        self._on_probe = on_probe
        self._replies: dict[str, str] = {}
        """Reply subjects for the machine's answers, by the token of each request."""

    def handle(self, message: Message) -> None:
        """Handle one request. A malformed one is answered with an error."""
        lane, _ = self._s.subjects.parse_copy(message.subject) or (CONTROL, "")
        if not message.reply:
            # A probe is the mesh's own: one whose subject names an operation comes from somebody who was permitted that one only.
            if lane == CONTROL:
                self._handle_probe(message)
            return
        reply = usable_reply(message, self._s.subjects.root)
        if reply is None:
            return
        try:
            self._dispatch(request_in(lane, message.data), reply, message.headers)
        except (msgspec.DecodeError, RecursionError) as error:
            self._reply_soon(reply, wire.encode_failure(BadRequest(f"not a control request: {error}")))
        except MeshError as error:
            self._reply_soon(reply, wire.encode_failure(error))

    def _handle_probe(self, message: Message) -> None:
        """Handle a message without a reply subject: only probes have none."""
        if len(message.data) > MAX_PROBE:
            return
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            request = _decoder.decode(message.data)
            if request.op == "probe" and request.probe is not None:
                self._on_probe(request.probe)

    def _dispatch(self, request: ControlRequest, reply: str, headers: Headers) -> None:
        token = self._s.token()
        match request.op:
            case "status":
                # After the mail that came before it: the status shows the agent as it is after that mail.
                self._loop.work.put(self._reply_status, (reply, request.content))
            case "poll":
                self._s.spawn(self._poll(_needed(control_values.ref_of(request), "ref"), shown_by(headers), reply))
            case "resend":
                self._s.spawn(self._resend(_needed(control_values.ref_of(request), "ref"), reply))
            case "interrupt":
                ref, so_far = control_values.ref_of(request), (self._spent(), self._ran(), self._inner(), self._turn())
                interrupt = Interrupt(token, ref, *so_far)
                self._feed(interrupt, token, reply)
            case "resume":
                self._feed(Resume(token), token, reply)
            case "cancel":
                ref = _needed(control_values.ref_of(request), "ref")
                spent = (self._spent(), self._turn()) if request.tree else (None, None)
                self._feed(Cancel(ref, token, request.tree, *spent, shown_by(headers)), token, reply)
            case "open":
                # After the mail that came before it, as a status.
                sender = None if request.sender is None else names.agent_name(request.sender)
                self._loop.work.put(self._reply_open, (reply, sender, request.origin or ""))
            case "reply":
                self._feed(self._reply(request, token), token, reply)
            case "set_timer":
                timer = msgspec.structs.replace(_timer(self._s, request), trace=trace_in(headers))
                self._feed(AskTimer(timer, token), token, reply)
            case "cancel_timer":
                self._feed(DropTimer(timer_token(_needed(request.id, "id")), token), token, reply)
            case "set":
                self._feed(self._configure(request, token), token, reply)
            case _:
                raise BadRequest(f"unknown operation {request.op[:40]!r}")

    # --- replies ----------------------------------------------------------------------------------------------------
    def _feed(self, item: Input, token: str, reply: str) -> None:
        """Feed a request whose answer goes to `reply` when the machine gives it (`answer`)."""
        if self._loop.core is not None and self._loop.core.phase is Phase.HANDED_ON:
            self._refuse(reply)
            return
        self._replies[token] = reply
        self._loop.feed(item)

    def handed_on(self) -> None:
        """The running turn is handed on: the machine takes no request any more, and has done nothing for those that it has not
        answered. Their senders are told to ask again: the next owner answers."""
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            self._refuse(reply)

    def _refuse(self, reply: str) -> None:
        gone = Unavailable("the agent goes on at another node; ask again", details={"agent": self._loop.name, "nobody": True})
        self._reply_soon(reply, wire.encode_failure(gone))

    def answer(self, command: AnswerControl) -> None:
        """Send the machine's answer to the request that it belongs to."""
        reply = self._replies.pop(command.token, "")
        if command.body == PENDING and reply in self._replies.values():
            return  # one message that has come twice: its sender gets the answer alone
        self._reply_soon(reply, wire.encode_reply(command.body))

    def _reply_soon(self, reply: str, body: bytes) -> None:
        self._s.spawn(self._send_reply(reply, body))

    async def _send_reply(self, reply: str, body: bytes) -> None:
        """Send a reply. If that fails the requester asks again."""
        if not reply:
            return
        try:
            await self._s.transport.publish(reply, body)
        except TooLarge:
            size, limit = len(body), self._s.transport.max_payload
            text = f"the reply takes {size} bytes; the server takes {limit}: ask for the status without content"
            refused = TooLarge(text, details={"size": size, "limit": limit})
            await self._s.transport.publish(reply, wire.encode_failure(refused))
        except Disconnected:
            log.debug("a control request could not be answered: no connection")

    # --- status -----------------------------------------------------------------------------------------------------
    def _reply_status(self, asked: tuple[str, bool]) -> None:
        reply, content = asked
        self._reply_soon(reply, wire.encode(self._status(content=content)))

    def _reply_open(self, asked: tuple[str, str | None, str]) -> None:
        """Answer whether a request that another agent has sent is open here, by its origin; or which ones this agent has sent."""
        reply, sender, origin = asked
        core = self._loop.core
        assert core is not None
        if sender is None:
            self._reply_soon(reply, wire.encode_reply({"asked": delegation.all_open(core)}))
            return
        ref = open_ref(core, sender, origin)
        failed = core.ledger.failed or (core.reason if core.phase is Phase.FAILED else None)
        body: dict[str, Any] = {"open": ref is not None, "ref": ref, "waits": any(mail.ref == ref for mail in core.prompts)}
        body |= {"halted": core.work.halted, "failed": failed}
        self._reply_soon(reply, wire.encode_reply(body))

    def _status(self, *, content: bool) -> Status:
        core, spec = self._loop.core, self._spec()
        assert core is not None
        opened = open_requests(core.ledger)
        ledger, doing = core.work, activity_of(self._loop.name, core, self._spent, self._tool)
        return Status(
            name=self._loop.name,
            kind=spec.kind,
            backend=self._backend_name(spec),
            state=doing.state,
            halted=doing.halted,
            queued=doing.queued,
            current_request=core.active.ref if core.active else None,
            node=self._s.settings.node_id,
            incarnation=core.ledger.incarnation,
            generation=core.ledger.generation,
            turn=ledger.turn,
            usage=ledger.usage,
            failed=core.ledger.failed or (core.reason if core.phase == "failed" else None),
            since=doing.since,
            sender=doing.sender,
            tool=doing.tool,
            callback=running_callback(core),
            open=opened[:MAX_OPEN],
            open_more=len(opened[MAX_OPEN:]),
            configuration=shown(core, spec.labels),
            agent_state=_plain_state(core) if content else msgspec.UNSET,
        )

    # --- deferred requests ------------------------------------------------------------------------------------------
    def _reply(self, request: ControlRequest, token: str) -> Reply:
        if request.text is None:
            raise BadRequest("this operation needs 'text', the answer")
        try:
            text = request.text if self._answer_type is None else self._answer_type.fitting(request.text)
        except Misfit as misfit:
            raise BadRequest(f"the agent's answers have a type, and this text does not fit: {misfit}") from None
        return Reply(ref=_needed(control_values.ref_of(request), "ref"), text=text, token=token)

    # --- configuration ----------------------------------------------------------------------------------------------
    def _configure(self, request: ControlRequest, token: str) -> Configure:
        if request.set is None:
            raise BadRequest("this operation needs 'set', an object")
        own_id = token if request.id is None else _needed(request.id, "id")
        change = checked(request.set)
        return Configure(id=own_id, change=change, labels=self._spec().labels, expect=request.expect, token=token)

    # --- dead letters -----------------------------------------------------------------------------------------------
    async def _resend(self, letter: str, reply: str) -> None:
        """Send a dead letter of another agent again."""
        try:
            if not letter.isdecimal():
                raise BadRequest(f"a dead letter is named by its sequence, a number; this is {letter[:40]!r}")
            ref = await resend(self._s, self._loop.name, self._life, int(letter))
            await self._send_reply(reply, wire.encode_reply({"ref": str(ref)}))
        except EDGE_ERRORS as error:
            shown = error if isinstance(error, MeshError) else Unavailable(str(error))
            await self._send_reply(reply, wire.encode_failure(shown))

    # --- poll -------------------------------------------------------------------------------------------------------
    async def _poll(self, ref: str, key: str | None, reply: str) -> None:
        try:
            found = await self._look_up(ref)
            if not opens(found.key, key):
                raise refusal(ref, key)
            await self._send_reply(reply, wire.encode_reply(found.body))
        except EDGE_ERRORS as error:
            shown = error if isinstance(error, MeshError) else BadRequest(str(error))
            await self._send_reply(reply, wire.encode_failure(shown))

    async def is_gone(self, ref: str) -> bool:
        """Whether a request that this agent has consumed was answered and its outcome is no longer kept.

        False also if that cannot be told now: ask again.
        """
        before = self._loop.core
        if before is None or before.inflight is not None:
            return False  # the record in flight may hold the outcome
        found = await self._look_up(ref)
        return found.body["status"] == "not_found" and self._loop.core is before

    async def _look_up(self, ref: str) -> _PollAnswer:
        """`pending`, `completed` or `not_found`, as this owner can prove it."""
        s, name = self._s, self._loop.name
        for _ in range(2):
            # While one place is read, a request may move to a place that was read before: from the lane to this owner, from the
            # ledger to the stored results. Each happens at most once, so reading twice is enough.
            core = self._loop.core
            assert core is not None
            known = _known(core, ref)
            if known is not None:
                return _PollAnswer(known, digest_for(core, ref))
            stored = await read_outcome(s.transport, s.subjects, name, ref)
            standing = await standing_prompt(s.transport, s.subjects, name, ref)
            if stored is not None and (standing is None or answers(stored.outcome, standing.asked, stored.time)):
                key = stored.key if stored.key is not None or standing is None else standing.key
                return _PollAnswer(_completed(stored.body), key)
            ledger = (self._loop.core or core).ledger
            if standing is not None and not is_taken(ledger, standing.lane, int(ref)):
                return _PollAnswer({"status": "pending"}, standing.key)  # it has not reached this owner yet
        return _PollAnswer({"status": "not_found"})


class _PollAnswer(NamedTuple):
    """What is known of a request: the reply to a poll, and the digest of its key."""

    body: dict[str, Any]
    key: str | None = None


def _needed(value: str | None, what: str) -> str:
    if not value:
        raise BadRequest(f"this operation needs {what!r}")
    return names.token(value, what)


def _timer(services: Services, request: ControlRequest) -> SetTimer:
    if (request.at is None) == (request.after_s is None):
        raise BadRequest("set_timer needs either 'at' or 'after_s'")
    due = wire.parse_time(request.at) if request.at is not None else services.timers_now() + max(0.0, request.after_s or 0.0)
    wire.check_depth(request.event)
    size, limit = len(msgspec.json.encode(request.event)), outcome_limit(services.transport.max_payload, mailed=True)
    if size > limit:
        raise TooLarge(
            f"the event takes {size} bytes; a timer can carry {limit}: send a reference instead",
            details={"size": size, "limit": limit},
        )
    return timer_of(_needed(request.id, "id"), due, request.every_s, request.event)


def _plain_state(core: Core) -> Any:
    return msgspec.json.decode(core.ledger.state) if core.ledger.state != NOTHING else None


def _completed(outcome: bytes) -> dict[str, Any]:
    return {"status": "completed", "outcome": msgspec.Raw(outcome)}


def _known(core: Core, ref: str) -> dict[str, Any] | None:
    """The answer to `poll` from the owner's memory, or None."""
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
