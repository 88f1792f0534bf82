"""Requests to the server's JetStream API, `$JS.API.<call>`, and what its errors mean to the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentmesh.edge.address import API
from agentmesh.edge.failures import ApiError
from agentmesh.edge.server_errors import NO_META_LEADER, ServerError, leaderless
from agentmesh.edge.store_errors import counted
from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout, Transport
from agentmesh.errors import NoLeader, Unavailable

_NOT_FOUND = 404


class _ApiReply(msgspec.Struct):
    error: ServerError | None = None
    domain: str = ""


_reply = msgspec.json.Decoder(_ApiReply)
_encode = msgspec.json.Encoder().encode


async def call_api(t: Transport, call: str, body: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> bytes:
    """Make the JetStream API request `$JS.API.<call>` and return its JSON reply.

    Raises:
        ApiError: a definite error.
        Unavailable: no connection, no leader, no answer in time, or the server says so.
    """
    reply = await ask_server(t, f"{API}.{call}", b"" if body is None else _encode(body), timeout)
    _raise_error(_reply.decode(reply.data).error)
    return reply.data


async def ask_server(t: Transport, subject: str, body: bytes, timeout: float) -> Message:
    """The server's reply, whatever it says.

    Raises:
        NotPermitted: the server forbids it.
        Unavailable: nobody answers, no connection, no answer in time.
    """
    try:
        return await t.request(subject, body, timeout=timeout)
    except NoResponders as silence:
        counted(silence)
        there = silence.args[0] if silence.args else subject
        elsewhere = f"no JetStream answers at {there} (--domain, MESH_DOMAIN), " if there != subject else ""
        raise NoLeader(
            f"nobody answers for {_asked(subject)} now: {elsewhere}too few of its servers are up to lead it, or JetStream is off "
            "for this account; bring its servers back, or switch it on",
            details={"subject": there},
        ) from None
    except RequestTimeout as error:
        counted(error)
        raise Unavailable(
            f"no answer about {_asked(subject)} within {timeout:g} s; try again", details={"subject": subject}
        ) from None
    except Disconnected as error:
        counted(error)
        raise Unavailable("there is no connection to a NATS server now; try again", details={"subject": subject}) from None


def _asked(subject: str) -> str:
    """What a request of the API is about, in words."""
    tokens = subject.removeprefix(f"{API}.").split(".")
    if tokens[0] == "STREAM":
        return f"stream {tokens[-1]}"
    return f"stream {tokens[2]}" if tokens[:2] == ["DIRECT", "GET"] else "JetStream"


def domain_of(reply: bytes) -> str:
    """The JetStream domain that an answer about a stream bears; "" is one, too.

    Raises:
        ValueError: it is an error, or no answer.
    """
    answer = _reply.decode(reply)
    if answer.error is not None:
        raise ValueError(answer.error.description)
    return answer.domain


def _raise_error(error: ServerError | None) -> None:
    if error is None:
        return
    if error.err_code == NO_META_LEADER:
        raise counted(leaderless())
    if error.code in (429, 503):
        raise counted(Unavailable(f"JetStream: {error.description}; try again", details={"err_code": error.err_code}))
    definite = ApiError(error.code, error.err_code, error.description)
    raise definite if error.code == _NOT_FOUND else counted(definite)
