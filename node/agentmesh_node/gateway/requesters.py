"""Who has sent a request to the gateway, as far as a server says so, and what mail becomes of it for that. Pure.

Of a request that crosses from one account to another the server tells who sent it (`Nats-Request-Info`): the account always, the
user where the import shares it. Inside one account that header is what the sender has written, so there it is not looked at.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from agentmesh import names
from agentmesh.edge.transport import Headers, Message
from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.identity import Chain, user_of
from agentmesh.outcomes import CALLERS_MARK, CALLERS_SIZE
from agentmesh.subjects import WayIn

REQUEST_INFO = "Nats-Request-Info"
INBOX = "_INBOX"


class Requester(NamedTuple):
    """Who has sent a request; what is None is not known."""

    account: str | None = None
    user: str | None = None


UNVERIFIED = Requester()


class ReceivedRequest(NamedTuple):
    """A request to the gateway, as it has come."""

    way_in: WayIn
    message: Message
    requester: Requester
    """Who has sent it: what the server says of that is read once."""


def received(way_in: WayIn, message: Message) -> ReceivedRequest:
    """The request in a message that has come this way."""
    return ReceivedRequest(way_in, message, requester_of(way_in, message.headers) if way_in.imported else UNVERIFIED)


class _SenderInfo(msgspec.Struct):
    """What the server says of the client that sent a request."""

    acc: str | None = None
    user: str | None = None
    """Of a user with a JWT its public key, which another takes the place of when it is rotated."""
    name_tag: str | None = None
    """Of a user with a JWT its name."""


_info = msgspec.json.Decoder(_SenderInfo)


def requester_of(way_in: WayIn, headers: Headers) -> Requester:
    """Who has sent a request that came in this way."""
    if not way_in.imported:
        return UNVERIFIED
    try:
        info = _info.decode(headers.get(REQUEST_INFO, "{}"))
    except (msgspec.DecodeError, RecursionError):
        return UNVERIFIED
    return Requester(info.acc or None, info.name_tag or info.user or None)


def own_address(text: str, root: str, way_in: WayIn, requester: Requester) -> str:
    """Return `text` if an outcome or live events may be sent there for this requester.

    The mesh's processes may publish to every inbox, and a caller only asks them to. So one that came through an import gets what
    it asks for at addresses that it may hear itself, below `_INBOX.<user>`, and nobody else gets anything.

    Raises:
        BadRequest: it is no reply subject.
        NotPermitted: it is another's.
    """
    names.reply_subject(text, root)
    if not way_in.imported:
        return text
    inboxes = _inboxes(requester)
    if not text.startswith(inboxes):
        raise NotPermitted(f"{text!a} is no inbox of this caller's; name a subject below {inboxes!a}")
    return text


def _inboxes(requester: Requester) -> str:
    """What the inboxes of a requester begin with: its user, where that is known and can be part of a subject."""
    if requester.user is None:
        return f"{INBOX}."
    try:
        return f"{names.reply_subject(f'{INBOX}.{requester.user}', '_')}."
    except BadRequest:
        return f"{INBOX}."


def lane_for(way_in: WayIn, chain: Chain) -> str:
    """The mail lane that a request is put into: of those that only the mesh's processes write to, where it is known who asks."""
    lane = "notify" if way_in.way == "event-to" else "inbox"
    return f"peer-{lane}" if chain else lane


def chain_of(way_in: WayIn, requester: Requester) -> Chain:
    """On whose behalf a request is, as far as the server has told; empty if it is not known."""
    return user_of(requester.account, requester.user) if way_in.imported else ()


def id_for(way_in: WayIn, requester: Requester, own_id: str) -> str:
    """The `Nats-Msg-Id` of the mail for a request whose sender has given it `own_id`.

    The server shares ids among all subjects of a stream. So the ids of one caller get a prefix that no other's have: who guesses
    an id takes nobody's place. Outcomes name the id without it (`agentmesh.outcomes.id_in_outcome`).
    """
    if not way_in.imported:
        return own_id
    account, user = requester.account or "", requester.user or ""
    named = hashlib.sha256(f"{len(account)}:{account}{user}".encode()).hexdigest()
    return f"{named[:CALLERS_SIZE]}{CALLERS_MARK}{own_id}"
