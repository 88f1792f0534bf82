"""`mesh.poll.<agent>`: what became of a request, for callers who may read neither results nor mail.

The stored outcome tells it, else the agent's owner, else, while nobody owns the agent, the stored mail.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh import names, wire
from agentmesh.control_values import ControlRequest
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import get_next
from agentmesh.edge.registry import Registry
from agentmesh.edge.results import LAST_REF, read_outcome, standing_prompt
from agentmesh.edge.transport import Message, NoResponders, RequestTimeout, Transport
from agentmesh.errors import BadRequest, NotFound, Unavailable
from agentmesh.keys import KEY, opens, refusal, shown_by
from agentmesh.outcomes import answers
from agentmesh.subjects import Subjects, spec_key

OWNER_S = 2.0
"""Wait for the owner's word."""


class PollRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is polled. The subject says that it is a poll; `op` may say so, too."""

    ref: str | int
    op: str = "poll"


_decoder = msgspec.json.Decoder(PollRequest)


class Polls:
    """Answers polls."""

    def __init__(self, transport: Transport, subjects: Subjects, registry: Registry) -> None:
        self._t = transport
        self._subjects = subjects
        self._registry = registry

    async def answer(self, agent: str, message: Message) -> bytes:
        """The reply to a poll: as an owner gives it to the control request `poll` (docs/protocol.md#control-requests).

        Raises:
            BadRequest: it is no poll.
            NotPermitted: the request had a key, and the poll has not.
            Unavailable: only the owner could tell, and there is none now; or nothing can be read.
        """
        ref, key = _ref(message), shown_by(message.headers)
        names.agent_name(agent)
        if ref.isdecimal() and not 0 < int(ref) <= LAST_REF:
            return wire.encode_reply({"status": "not_found"})
        known = await self._stored(agent, ref, key)
        if known is not None:
            return known
        try:
            request = wire.encode(ControlRequest(op="poll", ref=ref))
            headers = None if key is None else {KEY: message.headers[KEY]}
            return (await self._t.request(self._subjects.control(agent), request, headers=headers, timeout=OWNER_S)).data
        except (NoResponders, RequestTimeout):
            return await self._without_owner(agent, ref, key)

    async def _stored(self, agent: str, ref: str, key: str | None) -> bytes | None:
        """The reply for an outcome that is stored, and answers what stands in the mail under this ref; else None.

        Raises:
            NotPermitted: its request had another key.
        """
        stored = await read_outcome(self._t, self._subjects, agent, ref)
        if stored is None:
            return None
        standing = await standing_prompt(self._t, self._subjects, agent, ref)
        if standing is not None and not answers(stored.outcome, standing.asked, stored.time):
            return None
        if not opens(stored.key if stored.key is not None or standing is None else standing.key, key):
            raise refusal(ref, key)
        return _reply("completed", outcome=msgspec.Raw(stored.body))

    async def _without_owner(self, agent: str, ref: str, key: str | None) -> bytes:
        """What mail and results show while no owner answers.

        A prompt of this agent that is stored is pending: it waits for an owner, or for an agent of that name. A sequence that is
        another's mail, or not issued yet, is not found. One that was issued and is gone may be a request that is kept open.
        """
        waits = await standing_prompt(self._t, self._subjects, agent, ref)
        exists = await self._registry.get(spec_key(agent)) is not None
        # In this order: what waits no longer at the second look has an outcome by then.
        known = await self._stored(agent, ref, key)
        if known is not None:
            return known
        if waits is not None:
            if not opens(waits.key, key):
                raise refusal(ref, key)
            reason = {} if exists else {"reason": {"code": NotFound.code, "message": _no_agent(agent)}}
            return _reply("pending", **reason)
        if not exists or not ref.isdecimal() or await self._is_no_request(int(ref)):
            return _reply("not_found")
        raise Unavailable(
            f"nobody runs agent {agent!r} now, and only its owner can tell whether request {ref} is still open; poll again",
            details={"agent": agent, "ref": ref, "status": "wanted"},
        )

    async def _is_no_request(self, seq: int) -> bool:
        """Whether this sequence is other mail, or none yet."""
        mail = self._subjects.stream("mail")
        found = await get_next(self._t, mail, f"{self._subjects.root}.>", seq)
        if found is not None:
            return found.seq == seq
        return seq > (await stream_state(self._t, mail)).last_seq


def _ref(message: Message) -> str:
    try:
        request = _decoder.decode(message.data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f'not a poll, which is as {{"ref":"17"}}: {error}') from None
    if request.op != "poll":
        raise BadRequest(f"this subject is for polls alone; the operation {request.op[:40]!r} is asked elsewhere")
    return names.token(str(request.ref), "ref")


def _reply(status: str, **more: Any) -> bytes:
    return wire.encode_reply({"status": status, **more})


def _no_agent(agent: str) -> str:
    return (
        f"no agent has the name {agent!r}: the request waits for one, for an hour by default; start it with "
        f"`mesh start {agent} --kind KIND`"
    )
