"""Mail that a request becomes: checked, so that nothing is stored that cannot be meant, and stored once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from agentmesh import names, wire
from agentmesh.budget import limits_from
from agentmesh.edge.failures import Uncertain
from agentmesh.edge.publish import Stored, store
from agentmesh.edge.read import get_next
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.results import read_outcome
from agentmesh.edge.transport import Headers, Transport
from agentmesh.errors import AgentFailed, BadRequest, NotFound, Stopped, StoreLost
from agentmesh.headers import CONTENT_TYPE, content_type_in, legible, message_id, readable, trace_in
from agentmesh.identity import Chain, encoded
from agentmesh.keys import KEY, KEY_DIGEST, opens, refusal, shown_by, stored_digest
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects, spec_key
from agentmesh_node.gateway.requesters import ReceivedRequest, chain_of, id_for, lane_for

_PROMPTS = (wire.STREAM_TO, wire.DEADLINE, wire.TIMEOUT, wire.END_BY, wire.BUDGET, wire.MSG_ID, wire.FOR)
_EVENTS = (wire.DEADLINE, wire.TIMEOUT, wire.MSG_ID, wire.FOR)
"""Headers of a request that its mail has."""
TRIES = 3
AGAIN_S = 0.5
"""Pause before the same message is tried again: while the first try is still being stored, the server says so at once."""


class StoredRequest(NamedTuple):
    """A request that is stored as mail."""

    seq: int
    headers: dict[str, str]
    """Of the mail; of a repetition, as that would have been stored."""
    repeats: bool
    """Its sender's own id was stored before, at `seq`."""
    first_reply_to: str | None = None
    """Of a repetition: where the first one's outcome goes, while that message is stored."""


class Intake:
    """Puts requests into the mailboxes of their agents."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        *,
        now: Callable[[], float],
        token: Callable[[], str],
        take: Callable[[str], None],
    ) -> None:
        """`now` is the servers' time, `token` makes ids, `take` counts a message from another account for an agent, or refuses
        it."""
        self._take = take
        self._t = transport
        self._subjects = subjects
        self._registry = registry
        self._now = now
        self._token = token

    async def take(self, request: ReceivedRequest, reply_to: str | None) -> StoredRequest:
        """Store a request as mail whose outcome goes to `reply_to`, a reply subject.

        Raises:
            NotFound, AgentFailed, StoreLost: the registry says that the agent takes no mail.
            BadRequest: what is sent cannot be meant; or its id belongs to other mail.
            NotPermitted: it repeats the id of a request with another key; or the server forbids it. Nothing was stored.
            MailboxFull, TooLarge, Unavailable: nothing was stored.
            Uncertain: it may be stored.
        """
        way_in, message, requester = request
        agent = names.agent_name(way_in.agent)
        spec = await self._addressed(agent)
        prompt = way_in.way != "event-to"
        (wire.decode_prompt if prompt else wire.decode_event)(message.data, message.headers)
        headers = self._passed_on(message.headers, reply_to, prompt=prompt)
        patience_s(headers, self._now())  # what cannot be read is refused before anything is stored
        if wire.BUDGET in headers:
            limits_from(headers[wire.BUDGET])
        own_id = headers.get(wire.MSG_ID)
        headers.setdefault(wire.FOR, spec.incarnation)
        given = f"{agent}.{self._token()}" if own_id is None else own_id
        if prompt and KEY in message.headers and (key := shown_by(message.headers)) is not None:
            headers[KEY_DIGEST] = key
        headers[wire.MSG_ID] = given
        chain: Chain = ()
        if way_in.imported:
            headers[wire.MSG_ID] = id_for(way_in, requester, given)
            chain = chain_of(way_in, requester)
            if chain:
                headers[wire.CHAIN] = encoded(chain)
            self._take(agent)
        subject = self._subjects.lane(lane_for(way_in, chain), agent)
        stored = await self._store(subject, message.data, headers)
        if own_id is None or not stored.duplicate:
            return StoredRequest(stored.seq, headers, repeats=False)
        first_reply_to = await self._first_reply_to(subject, agent, stored.seq, headers)
        return StoredRequest(stored.seq, headers, repeats=True, first_reply_to=first_reply_to)

    async def _addressed(self, agent: str) -> Spec:
        entry = await self._registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        if spec is None or spec.status == "stopped":
            ended = spec.reason if spec is not None else None
            why = "" if ended is None or ended.code == Stopped.code else f" (it has ended with {ended.code}: {ended.message})"
            raise NotFound(f"no agent {agent} exists{why}; start it with `mesh start {agent} --kind KIND`")
        if spec.status == "failed":
            why = spec.reason.message if spec.reason else "it failed"
            if spec.reason is not None and spec.reason.code == StoreLost.code:
                raise StoreLost(f"{agent} does not run: {why}; or give up what is lost: `mesh stop {agent}`")
            raise AgentFailed(f"{agent} has failed ({why}); revive it with `mesh resume {agent}`")
        return spec

    def _passed_on(self, given: Headers, reply_to: str | None, *, prompt: bool) -> dict[str, str]:
        """The headers of the mail that a request becomes: those of its own that mean something, as every client can read them.

        Raises:
            BadRequest: an address or the id is not fit for it.
        """
        headers = {name: legible(given[name]) for name in (_PROMPTS if prompt else _EVENTS) if given.get(name)}
        stream_to = given.get(wire.STREAM_TO, "") if prompt else ""
        if prompt and wire.STREAM_TO in given:
            names.reply_subject(stream_to, self._subjects.root)
        for address in (reply_to or "", stream_to):
            if not readable(address):
                raise BadRequest(f"the reply subject {address!a} is not printable ASCII, which a header of mail is")
        if wire.MSG_ID in headers:
            headers[wire.MSG_ID] = message_id(given[wire.MSG_ID])
        if (declared := content_type_in(given)) is not None:
            headers[CONTENT_TYPE] = legible(declared)
        headers.update(trace_in(given))
        if prompt and reply_to is not None:
            headers[wire.REPLY_TO] = reply_to
        return headers

    async def _store(self, subject: str, body: bytes, headers: dict[str, str]) -> Stored:
        for attempt in range(TRIES):
            try:
                return await store(self._t, subject, body, headers=headers)
            except Uncertain:
                # With the same id, so that it cannot be stored twice.
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(AGAIN_S)
        raise AssertionError("the last try returns or raises")

    async def _first_reply_to(self, subject: str, agent: str, seq: int, headers: Headers) -> str | None:
        """Where the outcome of the message goes that had this id first; None if it says nowhere, or is no longer stored.

        Raises:
            BadRequest: the id belongs to other mail.
            NotPermitted: that message had a key, and the repetition has not.
        """
        first = await get_next(self._t, self._subjects.stream("mail"), f"{self._subjects.root}.>", seq)
        if first is None or first.seq != seq:
            answered = await read_outcome(self._t, self._subjects, agent, str(seq))
            if answered is not None and not opens(answered.key, headers.get(KEY_DIGEST)):
                raise refusal(str(seq), headers.get(KEY_DIGEST))
            return None
        if first.subject != subject:
            raise BadRequest(f"this {wire.MSG_ID} was used for other mail; begin an id with the agent's name, and use it once")
        if not opens(stored_digest(first.headers), headers.get(KEY_DIGEST)):
            raise refusal(str(seq), headers.get(KEY_DIGEST))
        return first.headers.get(wire.REPLY_TO)


REPEAT_WAIT_S = 600.0
"""How long a repeated ask waits for the first one's outcome, unless its deadline is sooner: as long as the default
watchdog lets a turn run."""
LEAST_S = 5.0


def patience_s(headers: Headers, now: float) -> float:
    """How long a repeated ask waits, in seconds.

    Raises:
        BadRequest: its deadline, its end or its time-out cannot be read.
    """
    patience = REPEAT_WAIT_S
    for bound in (wire.DEADLINE, wire.END_BY):
        if bound in headers:
            patience = min(patience, wire.parse_time(headers[bound]) - now)
    if wire.TIMEOUT in headers:
        patience = min(patience, wire.parse_timeout(headers[wire.TIMEOUT]))
    return max(LEAST_S, patience)
