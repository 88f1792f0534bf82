"""Looking up what became of a request (cases 22 to 29 and 211)."""

from __future__ import annotations

from contextlib import suppress

from agentmesh.control_values import ControlRequest
from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import get_next
from agentmesh.edge.results import StandingPrompt, read_outcome, standing_prompt
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotFound, NotPermitted, Unavailable
from agentmesh.keys import digest_of, opens, refusal
from agentmesh.names import agent_name, token
from agentmesh.outcomes import Asked, answers, id_in_outcome
from agentmesh.subjects import Subjects
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_client.by_request import poll_by_request
from agentmesh_client.control import Control, ControlReply
from agentmesh_client.results import PollResult
from agentmesh_client.retry import patiently
from agentmesh_client.spec_cache import SpecCache
from agentmesh_client.ways import Ways

_PENDING = PollResult(status="pending")


class Poller:
    """Answers `poll`: from the stored result, else from the owner, else from the stored mail."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        specs: SpecCache,
        control: Control,
        *,
        ways: Ways,
        reads: LastReads | None = None,
    ) -> None:
        self._ways = ways
        self._reads = reads
        self._transport = transport
        self._subjects = subjects
        self._specs = specs
        self._control = control

    async def poll(
        self, agent: str, ref: str, *, message_id: str | None = None, key: str | None = None, timeout: float
    ) -> PollResult:
        """See `Mesh.poll`. `message_id`: the prompt's `Nats-Msg-Id`, if the caller knows it; `key`: its `Mesh-Key`."""
        agent_name(agent)
        token(ref, "ref")
        key = await self._ways.key_of(agent, ref, key)
        if self._ways.access is not None and await self._ways.asks_for_results(agent, ref):
            return await patiently(lambda: self._by_request(agent, ref, message_id, key), timeout)
        return await self._by_reading(agent, ref, message_id, key, timeout)

    async def _by_request(self, agent: str, ref: str, message_id: str | None, key: str | None) -> PollResult:
        """As the gateway answers it: this user may not read outcomes."""
        found = await poll_by_request(self._transport, self._subjects, agent, ref, key=key)
        if found.status == "not_found":
            raise _unknown(agent, ref)
        outcome = found.outcome
        if outcome is not None and message_id is not None and id_in_outcome(outcome.msg_id) not in (None, message_id):
            raise _another(agent, outcome)
        return PollResult(status=found.status, outcome=outcome, reason=found.reason)

    async def _by_reading(self, agent: str, ref: str, message_id: str | None, key: str | None, timeout: float) -> PollResult:
        digest = None if key is None else digest_of(key)
        if ref.isdecimal() and int(ref) > _LAST_REF:
            return await self._last_look(agent, ref, message_id, digest)
        known = await self._stored(agent, ref, message_id, digest, direct=True)
        if known is not None:
            return known
        try:
            answer = await self._control.ask(
                agent, ControlRequest(op="poll", ref=ref), ControlReply, timeout=timeout, repeat=True, key=key
            )
        except NotFound:
            return await self._without_agent(agent, ref, message_id, digest)
        except Unavailable:
            return await self._without_owner(agent, ref, message_id, digest)
        if answer.outcome is not None:
            if message_id is not None and answer.outcome.msg_id not in (None, message_id):
                raise _another(agent, answer.outcome)
            return PollResult(status="completed", outcome=answer.outcome)
        return _PENDING if answer.status == "pending" else await self._last_look(agent, ref, message_id, digest)

    async def _stored(
        self, agent: str, ref: str, message_id: str | None, digest: str | None, *, direct: bool = False
    ) -> PollResult | None:
        """What the stored result says; None if there is none, or it answers an older message than the one that stands in the mail
        under this ref.

        Raises:
            NotFound: it answers another message than the one with `message_id`.
            NotPermitted: its request had a key, and this is not the digest of that.
            Unavailable: it has a form that this client does not know.
        """
        stored = await read_outcome(self._transport, self._subjects, agent, ref, direct=direct, reads=self._reads)
        if stored is None:
            return None
        standing: StandingPrompt | None = None
        with suppress(NotPermitted):  # who may not read the mail goes by what the outcome says
            standing = await standing_prompt(self._transport, self._subjects, agent, ref)
        if standing is not None and not answers(stored.outcome, standing.asked, stored.time):
            return None
        if not answers(stored.outcome, Asked(message_id), stored.time):
            raise _another(agent, stored.outcome)
        if not opens(stored.key, digest):
            raise refusal(ref, digest)
        return PollResult(status="completed", outcome=stored.outcome)

    async def _last_look(self, agent: str, ref: str, message_id: str | None, digest: str | None) -> PollResult:
        """The result from the stream's leader: it may have been stored since the first look, or missed by a replica.

        Raises:
            NotFound: there is none, so the ref was never issued or its result is no longer kept.
        """
        stored = await self._stored(agent, ref, message_id, digest)
        if stored is None:
            raise _unknown(agent, ref)
        return stored

    async def _without_agent(self, agent: str, ref: str, message_id: str | None, digest: str | None) -> PollResult:
        """What is stored, where no agent has the name: a request may wait for one (docs/architecture.md#mail-for-nobody).

        Raises:
            NotFound: nothing is.
        """
        # In this order: what waits no longer at the second look has an outcome by then.
        blind = False
        waits: StandingPrompt | None = None
        try:
            waits = await standing_prompt(self._transport, self._subjects, agent, ref)
        except NotPermitted:
            blind = True
        stored = await self._stored(agent, ref, message_id, digest)
        if stored is not None:
            return stored
        if blind:
            raise Unavailable(
                f"no agent has the name {agent!r}, and this user may not see whether request {ref} waits for one; poll again",
                details={"agent": agent, "ref": ref},
            )
        if waits is None:
            raise _unknown(agent, ref)
        if await self._specs.read(agent) is not None:
            return _PENDING  # it came behind the end of that name's last life, or a new one has just begun
        message = (
            f"no agent has the name {agent!r}: the request waits for one, for an hour by default; start it with "
            f"`mesh start {agent} --kind KIND`"
        )
        return PollResult(status="pending", reason=ErrorBody(code=NotFound.code, message=message))

    async def _without_owner(self, agent: str, ref: str, message_id: str | None, digest: str | None) -> PollResult:
        """What the stored mail shows while nobody owns the agent.

        A stored prompt of this agent is `pending`. A sequence that is another agent's mail, or not issued yet, is not found. A
        sequence that was this stream's and is gone may be a consumed prompt whose answer is still due (a deferred
        request): only an owner can tell.

        Raises:
            NotFound, Unavailable.
        """
        if not ref.isdecimal() or int(ref) == 0:
            return await self._last_look(agent, ref, message_id, digest)
        seq = int(ref)
        mail = self._subjects.stream("mail")
        with suppress(NotPermitted):  # a caller who may not read the mail waits for an owner
            found = await get_next(self._transport, mail, f"{self._subjects.root}.>", seq)
            if found is not None and found.seq == seq:
                if self._subjects.parse_lane(found.subject) in (("inbox", agent), ("peer-inbox", agent)):
                    return _PENDING
                return await self._last_look(agent, ref, message_id, digest)
            if found is None and seq > (await stream_state(self._transport, mail)).last_seq:
                return await self._last_look(agent, ref, message_id, digest)
        raise Unavailable(
            f"nobody runs agent {agent!r} now, and only its owner can tell whether request {ref} is still open; poll again",
            details={"agent": agent, "ref": ref, "status": "wanted"},
        )


_LAST_REF = 2**64 - 1
"""The largest ref. A ref is a stream sequence, and the server refuses to look for larger ones."""


def _unknown(agent: str, ref: str) -> NotFound:
    return NotFound(
        f"agent {agent!r} knows no request {ref!r}: check the ref; results are kept for an hour by default",
        details={"agent": agent, "ref": ref},
    )


def _another(agent: str, outcome: Outcome) -> NotFound:
    """The error for a ref that now stands for another message than the caller's."""
    return NotFound(
        f"what is stored as request {outcome.ref} of agent {agent!r} answers another message, of {outcome.stored}: mail was put "
        "back to an older state, and yours was lost with it; send it again",
        details={"agent": agent, "ref": outcome.ref, "asked": outcome.stored},
    )
