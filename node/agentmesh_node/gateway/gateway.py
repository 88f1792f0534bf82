"""`mesh.ask.<agent>`, `mesh.tell.<agent>`, `mesh.event-to.<agent>`, `mesh.poll.<agent>`: plain requests, durable underneath.

Every node and supervisor serves every agent. What is asked or told is put into the agent's mailbox. The reply to an ask is the
agent's outcome: the owner answers the requester's inbox, or, where the asker names a `Mesh-Reply-To`, that one, and the process
that took the ask sends the stored outcome on to the inbox. The reply to the others is like that of a control request, and comes
from the process that took them. The same four are served where they come from another account, `mesh.caller.<way>.<agent>`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from agentmesh import names, semconv, wire
from agentmesh.edge.failures import EDGE_ERRORS, ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.registry import Registry
from agentmesh.edge.replies import report_unanswerable, usable_reply
from agentmesh.edge.transport import Disconnected, Message, Subscription, Transport
from agentmesh.errors import BadRequest, MeshError, NotPermitted, Unavailable
from agentmesh.keys import KEY_DIGEST, opens, refusal
from agentmesh.subjects import Subjects
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.formats import Formats
from agentmesh_node.gateway.intake import Intake, StoredRequest, patience_s
from agentmesh_node.gateway.older_owners import OlderOwners
from agentmesh_node.gateway.outcome_waits import OutcomeWaits
from agentmesh_node.gateway.polls import Polls
from agentmesh_node.gateway.prefix_bounds import CALLERS_WAITING, PrefixBounds
from agentmesh_node.gateway.rates import PrefixRates
from agentmesh_node.gateway.requesters import ReceivedRequest, own_address, received
from agentmesh_node.gateway.shares import NOBODYS, Shares
from agentmesh_node.telemetry.instruments import own

log = logging.getLogger("agentmesh.node")


class Gateway:
    """Serves what is asked by plain requests, in the queue group of the mesh."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        *,
        now: Callable[[], float],
        token: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, Any]], object],
        callers_waiting: int = CALLERS_WAITING,
        callers_rate: float = 0.0,
        formats: Formats | None = None,
        exists: Callable[[str], bool] = lambda agent: True,
    ) -> None:
        """`now` is the servers' time, `token` makes ids, `spawn` runs work beside the caller, `callers_waiting` is the bound of
        one prefix (`PrefixBounds`), `callers_rate` how many requests for one are taken in a second (0: all), `formats` tells of
        older owners (None: there are none), `exists` whether the registry has an agent, as far as this process knows (it decides
        whose share a request takes, and nothing else)."""
        self._t = transport
        self._subjects = subjects
        self._now = now
        self._spawn = spawn
        self._exists = exists
        self._bounds = PrefixBounds(registry, callers_waiting)
        self._intake = Intake(transport, subjects, registry, now=now, token=token, take=self._bounds.take)
        self._waits = OutcomeWaits(transport, subjects)
        self._shares, self._polling = Shares(), Shares()
        self._rates = PrefixRates(callers_rate)
        self._polls = Polls(transport, subjects, registry)
        self._older = None if formats is None else OlderOwners(transport, subjects, formats, spawn)
        self._subscriptions: list[Subscription] = []
        self._instruments = own()
        self._taken = self._instruments.tally(semconv.ASKS_COUNTER)

    async def start(self) -> None:
        """Begin to serve."""
        for subject in self._subjects.ways_in():
            self._subscriptions.append(await self._t.subscribe(subject, self._on_request, queue=self._subjects.ask_queue))
        if self._older is not None:
            await self._older.start()

    async def close(self) -> None:
        """Take no more requests. Those that this process has got are still served."""
        while self._subscriptions:
            await self._subscriptions.pop().drain()
        if self._older is not None:
            await self._older.close()
        self._waits.close()
        await self._bounds.close()

    def _on_request(self, message: Message) -> None:
        way_in = self._subjects.parse_way(message.subject)
        if way_in is not None:
            request = received(way_in, message)
            self._spawn(self._ask(request) if way_in.way == "ask" else self._reply(request))

    def _count(self, code: str) -> None:
        self._instruments.tally(semconv.ASKS_COUNTER, {semconv.ERROR_TYPE: code}).value += 1

    # --- tell, event-to, poll ---------------------------------------------------------------------------------------
    async def _reply(self, request: ReceivedRequest) -> None:
        """Serve a request that this process answers itself, as a control request is answered."""
        way_in = request.way_in
        reply = usable_reply(request.message, self._subjects.root)
        if reply is None:
            return
        try:
            body = await (self._poll(request) if way_in.way == "poll" else self._put(request))
        except Disconnected:
            log.debug("a request was left: no connection", extra={"agent": way_in.agent})
            return
        except EDGE_ERRORS as error:
            shown = error if isinstance(error, MeshError) else _unsure(error)
            if way_in.way != "poll":
                self._count(shown.code)
            body = wire.encode_failure(shown)
        with contextlib.suppress(Disconnected):
            await self._t.publish(reply, body)

    async def _poll(self, request: ReceivedRequest) -> bytes:
        way_in, message, requester = request
        if not way_in.imported:
            return await self._polls.answer(way_in.agent, message)
        async with self._polling.place(self._tenant(way_in.agent), requester):
            return await self._polls.answer(way_in.agent, message)

    def _take(self, request: ReceivedRequest, reply_to: str | None) -> Awaitable[StoredRequest]:
        """Store a request as mail, in the share of its caller if it came from another account."""
        take = self._take_in_share if request.way_in.imported else self._intake.take
        return take(request, reply_to)

    async def _take_in_share(self, request: ReceivedRequest, reply_to: str | None) -> StoredRequest:
        tenant = self._tenant(request.way_in.agent)
        async with self._shares.place(tenant, request.requester):
            await self._rates.turn(tenant)
            await self._bounds.start()
            return await self._intake.take(request, reply_to)

    def _tenant(self, agent: str) -> str:
        """Whose share a request for `agent` takes."""
        return names.prefix_of(agent) if self._exists(agent) else NOBODYS

    async def _put(self, request: ReceivedRequest) -> bytes:
        """Store what is told; the reply says where."""
        way_in, message, _ = request
        reply_to = message.headers.get(wire.REPLY_TO) if way_in.way == "tell" else None
        if way_in.way == "tell":
            for address in (reply_to, message.headers.get(wire.STREAM_TO)):
                self._own(address, request)
        taken = await self._take(request, reply_to)
        self._taken.value += 1
        return wire.encode_reply({"ref": str(taken.seq), **({"duplicate": True} if taken.repeats else {})})

    # --- ask --------------------------------------------------------------------------------------------------------
    async def _ask(self, request: ReceivedRequest) -> None:
        agent = request.way_in.agent
        addresses, problem = self._addresses(request)
        if not addresses:
            return
        stream_to = None
        try:
            if problem is not None:
                raise problem
            stream_to = self._own(request.message.headers.get(wire.STREAM_TO), request)
            taken = await self._take(request, addresses[0])
            await self._answer(agent, taken, addresses)
            self._taken.value += 1
        except MeshError as error:
            self._count(error.code)
            await self._refuse(addresses, agent, error, stream_to)
        except (Uncertain, ApiError, WrongLastSequence) as error:
            self._count(Unavailable.code)
            await self._refuse(addresses, agent, _unsure(error))
        except Disconnected:
            # Without a connection the caller gets no answer: it repeats the ask, and a connected process answers.
            log.debug("an ask was left: no connection", extra={"agent": agent})

    def _own(self, address: str | None, request: ReceivedRequest) -> str | None:
        """`address`, which a header of the request gives, if anything may be sent there for its sender.

        Raises:
            BadRequest, NotPermitted: nothing may.
        """
        if address is None:
            return None
        return own_address(address, self._subjects.root, request.way_in, request.requester)

    def _addresses(self, request: ReceivedRequest) -> tuple[tuple[str, ...], MeshError | None]:
        """Where the outcome goes (`Mesh-Reply-To`, which the owner answers as for all mail, and the request's reply subject), and
        what is wrong with an address that was given."""
        found: list[str] = []
        problem: MeshError | None = None
        message = request.message
        try:
            asked = self._own(message.headers.get(wire.REPLY_TO), request)
            found += [] if asked is None else [asked]
        except (BadRequest, NotPermitted) as error:
            problem = error
        try:
            if message.reply and names.reply_subject(message.reply, self._subjects.root) not in found:
                found.append(message.reply)
        except BadRequest as error:
            problem = error
        if not found or (problem is not None and message.reply not in found):
            report_unanswerable(message.subject, "it has no reply subject" if problem is None else problem.message)
        return tuple(found), problem

    async def _answer(self, agent: str, taken: StoredRequest, addresses: tuple[str, ...]) -> None:
        """Send the outcome where the owner does not: to further addresses; of a repetition, to all but the first one's."""
        if not taken.repeats:
            await self._tell(agent, taken, addresses[1:])
            return
        first = taken.first_reply_to
        if first in addresses and not await self._waits.is_there(agent, str(taken.seq), taken.headers[wire.MSG_ID]):
            # The owner answers there. If it has done so already, the caller that asks again has missed it.
            addresses = tuple(address for address in addresses if address != first)
        await self._tell(agent, taken, addresses)

    async def _tell(self, agent: str, taken: StoredRequest, addresses: Sequence[str]) -> None:
        """Send the outcome of a stored prompt, once it is there, to addresses that its owner does not know."""
        if not addresses:
            return
        try:
            patience = patience_s(taken.headers, self._now())
            outcome = await self._waits.outcome(agent, str(taken.seq), taken.headers[wire.MSG_ID], patience)
            if outcome is not None and not opens(outcome.key, taken.headers.get(KEY_DIGEST)):
                raise refusal(str(taken.seq), taken.headers.get(KEY_DIGEST))
        except Disconnected:
            raise
        except EDGE_ERRORS as error:
            stored = f"the prompt {taken.seq} is stored"
            text = f"{stored}; its outcome cannot be read now ({error}); poll it, or ask again with the same id"
            shown = error if isinstance(error, MeshError) else Unavailable(text)
            await self._refuse(addresses, agent, shown)
            return
        if outcome is not None:
            for address in addresses:
                await self._t.publish(address, outcome.body)

    async def _refuse(self, addresses: Sequence[str], agent: str, error: MeshError, stream_to: str | None = None) -> None:
        """Answer the caller with an error, and end the turn's live events with it (docs/protocol.md#live-events)."""
        outcome = Outcome(agent=agent[:128], ref="", ok=False, error=ErrorBody.of(error))
        try:
            for address in addresses:
                await self._t.publish(address, wire.encode_outcome(outcome))
            if stream_to is not None:
                with contextlib.suppress(BadRequest):
                    self._t.post(names.reply_subject(stream_to, self._subjects.root), _last_event(outcome), though_full=True)
        except Disconnected:
            log.debug("an ask could not be refused: no connection", extra={"agent": agent})


def _unsure(error: Exception) -> Unavailable:
    return Unavailable(f"the message may not have been stored: {error}; ask again, with the same id", details={"uncertain": True})


def _last_event(outcome: Outcome) -> bytes:
    """The only live event of a request without a turn: its outcome."""
    event = {"type": "outcome", "outcome": msgspec.Raw(wire.encode_outcome(outcome)), "agent": outcome.agent, "ref": outcome.ref}
    return msgspec.json.encode({"v": wire.VERSION, **event, "seq": 1, "owner": 0})
