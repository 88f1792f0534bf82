"""Dead letters: mail that an agent could not deal with, kept with its reason (case 210)."""

from __future__ import annotations

import base64
import datetime as dt

from agentmesh.control_values import ControlRequest
from agentmesh.edge.manage import delete, purge
from agentmesh.edge.read import StoredMessage, get_last, get_next, read_all
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, NotFound
from agentmesh.headers import CONTENT_TYPE, TRACE_HEADERS
from agentmesh.identity import chain_in, told
from agentmesh.names import agent_name
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import CHAIN, FROM, ErrorBody
from agentmesh_client.control import Control, ControlReply
from agentmesh_client.mailer import Mailer
from agentmesh_client.results import DeadLetter
from agentmesh_client.spec_cache import SpecCache

REASON, REASON_TEXT, LANE, REF = "Mesh-Reason", "Mesh-Reason-Text", "Mesh-Lane", "Mesh-Ref"
_KEPT = (CONTENT_TYPE, *TRACE_HEADERS)
"""Headers that are kept when a letter is sent again. The others no longer hold: its caller has been answered, its deadline and
the life that it was meant for are over."""


class DeadLetters:
    """Lists, reads, sends again and removes dead letters."""

    def __init__(self, transport: Transport, subjects: Subjects, specs: SpecCache, mailer: Mailer, control: Control) -> None:
        self._t = transport
        self._subjects = subjects
        self._specs = specs
        self._mailer = mailer
        self._control = control
        self._stream = subjects.stream("dead")

    async def list(self, agent: str, *, content: bool) -> list[DeadLetter]:
        """The agent's dead letters, oldest first."""
        agent_name(agent)
        found = await read_all(self._t, self._stream, self._subjects.dead(agent))
        return [_letter(agent, message, content) for message in found]

    async def retry(self, agent: str, seq: int, *, timeout: float) -> str:
        """Send one again, and remove it. See `Mesh.retry_dead_letter`."""
        message = await self._find(agent, seq)
        life = await self._specs.life(agent)
        lane = message.headers.get(LANE, "inbox")
        known = LANES.get(lane)
        if known is not None and known.trusted and (FROM in message.headers or CHAIN in message.headers):
            # Only a node may send mail in another's name, an agent's or a user's: the owner sends it again.
            request = ControlRequest(op="resend", ref=str(seq))
            ref = (await self._control.ask(agent, request, ControlReply, timeout=timeout, repeat=True)).ref
            await delete(self._t, self._stream, seq)
            return ref or ""
        prompt = lane == "self" or (known is not None and known.kind == "prompt")
        subject = self._subjects.inbox(agent) if prompt else self._subjects.notify(agent)
        headers = {key: message.headers[key] for key in _KEPT if key in message.headers}
        headers["Mesh-For"] = life
        # One id per letter: a retry of unknown fate can be repeated.
        stored = await self._mailer.put(subject, message.data, headers, message_id=f"{agent}.dead-{seq}", timeout=timeout)
        await delete(self._t, self._stream, seq)
        return str(stored.seq)

    async def purge(self, agent: str, seq: int | None) -> int:
        """Remove one, or all that exist now. Returns how many were removed."""
        if seq is not None:
            await self._find(agent, seq)
            return int(await delete(self._t, self._stream, seq))
        last = await get_last(self._t, self._stream, self._subjects.dead(agent_name(agent)))
        if last is None:
            return 0
        return await purge(self._t, self._stream, self._subjects.dead(agent), below=last.seq + 1)

    async def _find(self, agent: str, seq: int) -> StoredMessage:
        if isinstance(seq, bool) or not isinstance(seq, int) or seq < 1:
            raise BadRequest(f"a dead letter is named by its sequence, a number above 0; this is {seq!r}")
        found = await get_next(self._t, self._stream, self._subjects.dead(agent_name(agent)), seq)
        if found is None or found.seq != seq:
            raise NotFound(
                f"agent {agent!r} has no dead letter {seq}; see `mesh dead ls {agent}`", details={"agent": agent, "seq": seq}
            )
        return found


def _letter(agent: str, message: StoredMessage, content: bool) -> DeadLetter:
    headers = message.headers
    ref = headers.get(REF, "0")
    known = LANES.get(headers.get(LANE, ""))
    trusted = known is not None and known.trusted
    text, raw = None, None
    if content:
        try:
            text = message.data.decode()
        except UnicodeDecodeError:
            raw = base64.b64encode(message.data).decode("ascii")
    return DeadLetter(
        seq=message.seq,
        agent=agent,
        lane=headers.get(LANE, ""),
        time=dt.datetime.fromtimestamp(message.time, dt.UTC),
        reason=ErrorBody(code=headers.get(REASON, "dead_letter"), message=headers.get(REASON_TEXT, "")),
        ref=None if ref == "0" else ref,
        sender=headers.get(FROM) if trusted else None,  # on the open lanes anyone may claim it
        chain=told(chain_in(headers.get(CHAIN, ""))) if trusted else "",
        text=text,
        base64=raw,
    )
