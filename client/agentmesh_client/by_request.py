"""The way of callers that may publish to no mail and read no results: plain requests to the gateway
(docs/protocol.md#by-request)."""

from __future__ import annotations

from typing import Literal

import msgspec

from agentmesh.edge.failures import Uncertain
from agentmesh.edge.publish import Stored
from agentmesh.edge.transport import UNANSWERED, Headers, NoResponders, Transport, in_words
from agentmesh.errors import Unavailable
from agentmesh.keys import KEY
from agentmesh.subjects import Subjects
from agentmesh.wire import MSG_ID, ErrorBody, Outcome, encode


class _Told(msgspec.Struct, frozen=True):
    error: ErrorBody | None = None
    ref: str = ""
    duplicate: bool = False


class _Polled(msgspec.Struct, frozen=True):
    error: ErrorBody | None = None
    status: Literal["pending", "completed", "not_found"] | None = None
    outcome: Outcome | None = None
    reason: ErrorBody | None = None


_told = msgspec.json.Decoder(_Told)
_polled = msgspec.json.Decoder(_Polled)


async def store_by_request(
    t: Transport, subject: str, data: bytes, *, headers: Headers, msg_id: str, timeout: float = 5.0
) -> Stored:
    """As `agentmesh.edge.publish.store`, by a request to `mesh.tell.<agent>` or `mesh.event-to.<agent>`.

    Raises:
        As `store`; NotFound, AgentFailed, StoreLost: the agent takes no mail.
    """
    if not t.connected:
        raise Unavailable("there is no connection to a NATS server now; try again")
    try:
        reply = await t.request(subject, data, headers={**headers, MSG_ID: msg_id}, timeout=timeout)
        told = _told.decode(reply.data)
    except NoResponders:
        raise Unavailable(
            f"no process of the mesh serves {subject} now (none runs, or only older builds do); try again"
        ) from None
    except UNANSWERED as error:
        raise Uncertain(f"no answer for {subject}: {in_words(error)}") from None
    except msgspec.DecodeError:
        raise Uncertain(f"the answer for {subject} is none of the mesh's") from None
    if told.error is not None:
        if told.error.details.get("uncertain"):
            raise Uncertain(told.error.message)
        raise told.error.exception()
    if not told.ref.isdecimal():
        raise Uncertain(f"the answer for {subject} is none of the mesh's")
    return Stored(int(told.ref), told.duplicate)


class PollReply(msgspec.Struct, frozen=True):
    """What the gateway says of a request."""

    status: Literal["pending", "completed", "not_found"]
    outcome: Outcome | None = None
    reason: ErrorBody | None = None


async def poll_by_request(
    t: Transport, subjects: Subjects, agent: str, ref: str, *, key: str | None, timeout: float = 5.0
) -> PollReply:
    """What became of a request, by `mesh.poll.<agent>`.

    Args:
        key: the request's `Mesh-Key`, if it had one.

    Raises:
        NotPermitted: this user may not ask; or the request has another key.
        Unavailable: nobody answers, or nobody can tell now.
    """
    subject = subjects.poll(agent)
    try:
        reply = await t.request(subject, encode({"ref": ref}), headers=None if key is None else {KEY: key}, timeout=timeout)
        polled = _polled.decode(reply.data)
    except UNANSWERED as error:
        raise Unavailable(f"no answer for {subject}: {in_words(error)}; try again") from None
    except msgspec.DecodeError as error:
        raise Unavailable(f"the answer for {subject} has a form that this client does not know ({error})") from None
    if polled.error is not None:
        raise polled.error.exception()
    return PollReply(polled.status or "not_found", polled.outcome, polled.reason)
