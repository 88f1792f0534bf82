"""Performs each effect, once: answers to their callers, mail to agents, agents started and stopped, timers, dead letters.

This is the one place where a node changes the mesh on an agent's behalf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agentmesh import registry_values, wire
from agentmesh.carried import Carried
from agentmesh.edge.endings import bury, send_outcome
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.manage import purge
from agentmesh.edge.publish import Stored, schedule, store, store_soon
from agentmesh.edge.read import get_last, get_next, read_by_leader
from agentmesh.edge.registry import Entry, Registry, View, decode_spec
from agentmesh.edge.results import read_outcome, store_outcome
from agentmesh.errors import NotFound, StoreLost, Unavailable
from agentmesh.formats import relabelled
from agentmesh.keys import KEY_DIGEST, opens, refusal
from agentmesh.ledger import fold, origin_key
from agentmesh.outcomes import Asked, answers, capped, outcome_limit
from agentmesh.records import (
    Bury,
    CancelTimer,
    Echo,
    Effect,
    Open,
    Resolve,
    SendMail,
    SetTimer,
    StartAgent,
    StopAgent,
)
from agentmesh.registry_values import By, Restart, Spec
from agentmesh.subjects import applied_key, spec_key
from agentmesh.trace.context import sent_context
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.services import Services
from agentmesh_node.store_loss import has_ended

APPLIED_TTL_S = 7 * 24 * 3600


class Refused(Exception):
    """The effect cannot be performed: a definite answer."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(error.message)
        self.error = error


class EffectHandlers:
    """Performs the effects of one agent."""

    def __init__(
        self,
        services: Services,
        agent: str,
        life: str,
        *,
        emit: Callable[[str, dict[str, Any]], None],
        end_stream: Callable[[Resolve], None],
        is_gone: Callable[[str], Awaitable[bool]],
        sampled: float | None = None,
    ) -> None:
        """
        Args:
            life: the agent's incarnation.
            emit: publishes a lifecycle fact: its kind and its fields.
            end_stream: ends the live events of a request with its outcome.
            is_gone: whether a request was answered and its outcome is no longer kept.
            sampled: where records tell spans, the share of the traces begun here that is sampled; None where they do not.
        """
        self.agent = agent
        self._life = life
        self._t = services.transport
        self._subjects = services.subjects
        self._registry = services.registry
        self._specs = services.specs
        self._journal = services.journal
        self._token = services.token
        self._now = services.now
        self._emit = emit
        self._end_stream = end_stream
        self._is_gone = is_gone
        self._sampled = sampled

    def perform(self, origin: str, entry: Open) -> Awaitable[None]:
        """Perform the effect, or find that it is performed already.

        Raises:
            Refused: it cannot be performed.
            MailboxFull, TooLarge, Unavailable, Uncertain, WrongLastSequence: as `store`.
        """
        effect: Effect = entry.effect
        match effect:
            case Resolve():
                return self._resolve(effect)
            case Echo():
                return self._echo(effect)
            case SendMail():
                return self._mail(origin, entry.nonce, effect)
            case StartAgent():
                return self._start(origin, effect)
            case StopAgent():
                return self._stop(origin, effect)
            case SetTimer():
                return self._set_timer(origin, effect)
            case CancelTimer():
                return self._cancel_timer(origin, effect)
            case Bury():
                return bury(self._t, self._subjects, self.agent, effect, origin=origin, nonce=entry.nonce)

    # --- outcomes -------------------------------------------------------------------------------------------------
    def resolve_soon(self, effect: Resolve, resolved: Callable[[Exception | None], None]) -> bool:
        """Send the outcome to the caller and store it, without a task that waits: `resolved` is called once, with the error if
        there is one, in the loop callback in which that is known.

        Returns: False if more is needed, or it cannot be sent at once: use `perform`.
        """
        body = wire.encode_outcome(effect.outcome)
        if effect.stream_to is not None or len(body) > outcome_limit(self._t.max_payload):
            return False
        if effect.reply_to is not None and not self._t.send(effect.reply_to, body):
            return False

        def stored(result: Stored | Exception) -> None:
            # If an outcome is stored already, `perform` sees whether it is this one.
            resolved(result if isinstance(result, Exception) else None)

        subject = self._subjects.result(self.agent, effect.outcome.ref)
        headers = None if effect.key is None else {KEY_DIGEST: effect.key}
        return store_soon(self._t, subject, body, stored, headers=headers, expected=0)

    def _resolve(self, effect: Resolve) -> Awaitable[None]:
        return self._send_and_store(msgspec.structs.replace(effect, outcome=self._capped(effect.outcome, mailed=False)))

    def _capped(self, outcome: Outcome, *, mailed: bool) -> Outcome:
        """The outcome in the form that everybody gets: a record of an older version may hold one that is too large."""
        return capped(outcome, outcome_limit(self._t.max_payload, mailed=mailed))

    async def _send_and_store(self, effect: Resolve) -> None:
        """Send the outcome to the caller, and store it under the ref: of one message the first outcome stays."""
        if effect.stream_to is not None:
            self._end_stream(effect)  # first: a reader that has the outcome reads no more events
        await send_outcome(self._t, effect)
        await store_outcome(self._t, self._subjects, effect.outcome, effect.key)

    async def _echo(self, effect: Echo) -> None:
        """Give a repeated request the first one's outcome, once that is stored; an error if it is no longer stored."""
        first = await read_outcome(self._t, self._subjects, self.agent, effect.of)
        if first is not None and answers(first.outcome, Asked(effect.msg_id), first.time):
            outcome = first.outcome
            if not opens(first.key, effect.key):
                error = ErrorBody.of(refusal(effect.of, effect.key))
                outcome = Outcome(agent=self.agent, ref=effect.ref, ok=False, error=error)
        elif await self._is_gone(effect.of):
            message = f"this repeats the request {effect.of}, which was answered; its outcome is kept no more"
            outcome = Outcome(agent=self.agent, ref=effect.ref, ok=False, error=ErrorBody(code="not_found", message=message))
        else:
            raise Unavailable(f"the request {effect.of} has no outcome yet")
        outcome = msgspec.structs.replace(outcome, ref=effect.ref, msg_id=effect.msg_id, stored=effect.stored)
        # Not capped again: with a longer ref it may exceed the bound, and yet it must be the same outcome.
        resolved = Resolve(outcome=outcome, reply_to=effect.reply_to, stream_to=effect.stream_to, key=effect.key)
        await self._send_and_store(resolved)

    # --- mail -----------------------------------------------------------------------------------------------------
    async def _mail(self, origin: str, nonce: str, effect: SendMail) -> None:
        spec = await spec_of(self._specs, self._registry, effect.to)
        if effect.outcome is not None:
            if spec is None and not await has_ended(self._registry, self._journal, effect.to, effect.life):
                raise Unavailable(f"the registry does not know agent {effect.to}, whose journal says that it lives")
            if spec is None or spec.status == "stopped" or (effect.life is not None and spec.incarnation != effect.life):
                return  # an answer to a life that has ended needs no sending
        elif effect.lane == "peer-answer" and (spec is None or spec.status == "stopped"):
            return  # nor has the withdrawal of a request to one
        elif spec is None or spec.status == "stopped":
            error = no_agent(effect.to)
            if spec is None and not await has_ended(self._registry, self._journal, effect.to, None):
                raise NotFound(error.message)  # which is believed only if it stays so
            raise Refused(error)
        body, headers = self._letter(effect)
        headers[wire.FROM] = self.agent
        headers[wire.FROM_LIFE] = self._life
        headers[wire.ORIGIN] = origin
        headers[wire.FOR] = effect.life or (spec.incarnation if spec is not None else "")
        if effect.tag is not None:
            headers[wire.TAG] = effect.tag
        elif effect.wait is not None:
            headers[wire.TAG] = origin  # the answer is matched by it
        headers.update(_carried_by(effect, self._trace_of(origin, effect)).headers())
        subject = self._subjects.lane(effect.lane, effect.to)
        # Ids are stream-wide. The name comes first, so that two agents' ids differ; the nonce makes them impossible to guess.
        msg_id = f"{effect.to}.{self.agent}.{origin}.{nonce}"
        stored = await store(self._t, subject, body, headers=headers, msg_id=msg_id)
        if (
            stored.duplicate
            and not await self._is_stored_in(subject, stored.seq)
            and not await self.was_delivered(origin, effect)
        ):
            # Another sender has used this id. If it is a repetition after all, the receiver recognises it by the origin.
            await store(self._t, subject, body, headers=headers, msg_id=f"{msg_id}.{self._token()}")
        self._emit("sent", {"to": effect.to, "lane": effect.lane, "tag": effect.tag, "answer": effect.outcome is not None})

    def _trace_of(self, origin: str, effect: SendMail) -> dict[str, str]:
        """The context of mail as its receiver sees it: that of the span in which it is sent, if records tell of that. Answers and
        withdrawals belong to their request's."""
        if self._sampled is None or effect.outcome is not None or effect.lane == "peer-answer":
            return effect.trace
        return sent_context(self.agent, self._life, origin, effect.trace, self._sampled)[0].headers()

    def _letter(self, effect: SendMail) -> tuple[bytes, dict[str, str]]:
        if effect.outcome is not None:
            return wire.encode_outcome(self._capped(effect.outcome, mailed=True)), {}
        if effect.prompt is not None:
            return wire.encode_prompt(effect.prompt)
        return msgspec.json.encode(effect.event), {}

    async def _is_stored_in(self, subject: str, seq: int) -> bool:
        """Whether message `seq` of the mail stream has this subject, according to the leader."""
        found = await get_next(self._t, self._subjects.stream("mail"), subject, seq)
        return found is not None and found.seq == seq

    async def was_delivered(self, origin: str, effect: SendMail) -> bool:
        """Whether the receiver's lane or its journal shows this origin.

        Raises:
            Unavailable: the store cannot be read now.
            StoreLost: the receiver's journal is gone.
        """
        subject = self._subjects.lane(effect.lane, effect.to)
        async for message in read_by_leader(self._t, self._subjects.stream("mail"), subject):
            if message.headers.get(wire.FROM) == self.agent and message.headers.get(wire.ORIGIN) == origin:
                return True
        contents = await self._journal.read(effect.to)
        if contents.wiped:
            raise StoreLost(f"the journal of {effect.to} was rolled up by a message that is not the mesh's")
        ledger, _ = fold(contents.records)
        newest = ledger.origins.get(f"{self.agent}/{effect.lane}") if ledger is not None else None
        return newest is not None and origin_key(newest) >= origin_key(origin)

    # --- agents ---------------------------------------------------------------------------------------------------
    async def _start(self, origin: str, effect: StartAgent) -> None:
        key = spec_key(effect.name)
        spec = Spec(
            kind=effect.kind,
            incarnation=self._token(),
            backend=effect.backend,
            options=effect.options,
            labels=effect.labels,
            restart=effect.restart or Restart(),
            watchdog_s=effect.watchdog_s,
            parent=self.agent if effect.link else None,
            parent_life=self._life if effect.link else None,
            by=By(sender=self.agent, origin=origin),
            since=wire.format_time(self._now()),
        )
        entry = await self._registry.get(key)
        if entry is None:
            if await self._applied(origin, effect.name, None):
                return
            await self._registry.create(key, wire.encode(spec))
            return
        old = decode_spec(entry)
        if await self._applied(origin, effect.name, old):
            return
        if old.status == "stopping":
            raise Unavailable(f"{effect.name} is being stopped")  # its name is free soon: try again
        if old.status != "stopped":
            if effect.use:
                return
            raise Refused(ErrorBody(code="already_started", message=f"the name {effect.name} is taken"))
        await self._replace(entry, old, spec, effect.name)

    async def _stop(self, origin: str, effect: StopAgent) -> None:
        entry = await self._registry.get(spec_key(effect.name))
        old = decode_spec(entry) if entry is not None else None
        if await self._applied(origin, effect.name, old) or (old is not None and old.status == "stopping"):
            return
        if entry is None or old is None or old.status == "stopped":
            raise Refused(ErrorBody(code="not_found", message=f"no agent {effect.name} exists"))
        reason = ErrorBody(code="stopped", message=f"stopped by {self.agent}")
        spec = msgspec.structs.replace(
            old, status="stopping", reason=reason, by=By(sender=self.agent, origin=origin), since=wire.format_time(self._now())
        )
        await self._replace(entry, old, spec, effect.name)

    async def _applied(self, origin: str, name: str, spec: Spec | None) -> bool:
        """Whether this effect, or a newer one of this agent on that name, was performed: repeated, it must neither restart nor
        stop an agent."""
        if spec is not None and spec.by is not None and spec.by.sender == self.agent:
            return origin_key(spec.by.origin) >= origin_key(origin)
        entry = await self._registry.get(applied_key(name, _hash(self.agent)))
        if entry is None or entry.value is None:
            return False
        return _applied_origin(entry) >= origin_key(origin)

    async def _replace(self, entry: Entry, old: Spec, new: Spec, name: str) -> None:
        """Write a spec over another. If that replaces `by`, the old `by` is kept first."""
        if old.by is not None and (new.by is None or old.by.sender != new.by.sender):
            await keep_applied(self._registry, name, old.by)
        same_life = new.incarnation == old.incarnation
        if not same_life:
            new = msgspec.structs.replace(new, labels=relabelled(old.labels, new.labels))
        await self._registry.update(
            spec_key(name), registry_values.encode_spec(new, entry.value if same_life else None), entry.revision
        )

    # --- timers ---------------------------------------------------------------------------------------------------
    async def _set_timer(self, origin: str, effect: SetTimer) -> None:
        """Set a timer, unless a newer setting of that timer is stored."""
        subject = self._subjects.timer(self.agent, effect.id)
        last = await get_last(self._t, self._subjects.stream("timer"), subject)
        if last is not None and origin_key(last.headers.get(wire.ORIGIN, "")) >= origin_key(origin):
            return
        await schedule(
            self._t,
            subject,
            self._subjects.due(self.agent),
            effect.due,
            msgspec.json.encode(effect.event),
            headers={wire.ORIGIN: origin, wire.FOR: self._life, **effect.trace},
            expected=last.seq if last is not None else 0,
        )

    async def _cancel_timer(self, origin: str, effect: CancelTimer) -> None:
        """Purge a timer, if it was set by an older effect."""
        stream, subject = self._subjects.stream("timer"), self._subjects.timer(self.agent, effect.id)
        last = await get_last(self._t, stream, subject)
        if last is not None and origin_key(last.headers.get(wire.ORIGIN, "")) < origin_key(origin):
            await purge(self._t, stream, subject, below=last.seq + 1)


async def spec_of(specs: View, registry: Registry, name: str) -> Spec | None:
    """The spec of `name`: from the registry's copy, or, if that has none, from the leader."""
    entry = specs.get(spec_key(name))
    if entry is None:
        entry = await registry.get(spec_key(name))
    return decode_spec(entry) if entry is not None else None


def no_agent(name: str) -> ErrorBody:
    """What is said to who sends something to `name`, if no agent has that."""
    return ErrorBody(code="not_found", message=f"no agent {name} exists; start it first")


def _carried_by(effect: SendMail, trace: dict[str, str]) -> Carried:
    return Carried(
        root=effect.root,
        path=effect.path,
        trace=trace,
        deadline=effect.deadline,
        end_by=effect.end_by,
        budget=effect.budget,
        chain=effect.chain,
    )


async def keep_applied(registry: Registry, name: str, by: By) -> None:
    """Store which effect of `by.sender` last changed the spec of `name`, for as long as effects may be repeated."""
    key = applied_key(name, _hash(by.sender))
    value = msgspec.json.encode(by.origin)
    while True:
        entry = await registry.get(key)
        try:
            if entry is None:
                await registry.create(key, value, ttl_s=APPLIED_TTL_S)
            elif _applied_origin(entry) < origin_key(by.origin):
                await registry.update(key, value, entry.revision, ttl_s=APPLIED_TTL_S)
        except WrongLastSequence:
            continue
        return


def _applied_origin(entry: Entry) -> tuple[int, ...]:
    """A sort key of the origin in an `applied` key; what is of foreign form is older than any."""
    try:
        return origin_key(msgspec.json.decode(entry.value or b"", type=str))
    except (msgspec.DecodeError, RecursionError):
        return (-1,)


def _hash(sender: str) -> str:
    return hashlib.sha256(sender.encode()).hexdigest()[:16]
