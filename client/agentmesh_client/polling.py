"""Looking up what became of a request (cases 22 to 29 and 211)."""

from __future__ import annotations

import msgspec

from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import get_last, get_last_direct, get_next
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotFound, Unavailable
from agentmesh.names import agent_name, token
from agentmesh.subjects import Subjects
from agentmesh.wire import ControlRequest, Outcome, decode_outcome
from agentmesh_client.control import Control, ControlReply
from agentmesh_client.results import PollResult
from agentmesh_client.spec_cache import SpecCache

_PENDING = PollResult(status="pending")


class Poller:
    """Answers `poll`: from the stored result, else from the owner, else from the stored mail."""

    def __init__(self, transport: Transport, subjects: Subjects, specs: SpecCache, control: Control) -> None:
        self._transport = transport
        self._subjects = subjects
        self._specs = specs
        self._control = control

    async def poll(self, agent: str, ref: str, *, timeout: float) -> PollResult:
        """See `Mesh.poll`."""
        agent_name(agent)
        token(ref, "ref")
        if ref.isdecimal() and int(ref) > _LAST_REF:
            return await self._last_look(agent, ref)
        stored = await get_last_direct(self._transport, self._subjects.stream("result"), self._subjects.result(agent, ref))
        if stored is not None:
            return _completed(stored.data)
        try:
            answer = await self._control.ask(
                agent, ControlRequest(op="poll", ref=ref), ControlReply, timeout=timeout, repeat=True
            )
        except NotFound:
            return await self._last_look(agent, ref)
        except Unavailable:
            return await self._without_owner(agent, ref)
        if answer.outcome is not None:
            return PollResult(status="completed", outcome=answer.outcome)
        return _PENDING if answer.status == "pending" else await self._last_look(agent, ref)

    async def _last_look(self, agent: str, ref: str) -> PollResult:
        """The result from the stream's leader: it may have been stored since the first look, or missed by a replica.

        Raises:
            NotFound: there is none, so the ref was never issued or its result is no longer kept.
        """
        stored = await get_last(self._transport, self._subjects.stream("result"), self._subjects.result(agent, ref))
        if stored is not None:
            return _completed(stored.data)
        raise NotFound(
            f"agent {agent!r} knows no request {ref!r}: check the ref; results are kept for an hour by default",
            details={"agent": agent, "ref": ref},
        )

    async def _without_owner(self, agent: str, ref: str) -> PollResult:
        """What the stored mail shows while nobody owns the agent.

        A stored prompt of this agent is `pending`. A sequence that is another agent's mail, or not issued yet, is not found. A
        sequence that was this stream's and is gone may be a consumed prompt whose answer is still due (a deferred
        request): only an owner can tell.

        Raises:
            NotFound, Unavailable.
        """
        if not ref.isdecimal() or int(ref) == 0:
            return await self._last_look(agent, ref)
        seq = int(ref)
        mail = self._subjects.stream("mail")
        found = await get_next(self._transport, mail, f"{self._subjects.root}.>", seq)
        if found is not None and found.seq == seq:
            if self._subjects.parse_lane(found.subject) in (("inbox", agent), ("peer-inbox", agent)):
                return _PENDING
            return await self._last_look(agent, ref)
        if found is None and seq > (await stream_state(self._transport, mail)).last_seq:
            return await self._last_look(agent, ref)
        raise Unavailable(
            f"nobody runs agent {agent!r} now, and only its owner can tell whether request {ref} is still open; poll again",
            details={"agent": agent, "ref": ref, "status": "wanted"},
        )


_LAST_REF = 2**64 - 1
"""The largest ref. A ref is a stream sequence, and the server refuses to look for larger ones."""


def _completed(body: bytes) -> PollResult:
    return PollResult(status="completed", outcome=_outcome(body))


def _outcome(body: bytes) -> Outcome:
    try:
        return decode_outcome(body)
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"the stored result has a form that this client does not know ({error}); is its version newer?"
        ) from None
