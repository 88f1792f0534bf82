"""Auth callout: a service that tells NATS servers who a caller is and what it may do, asked at each connection.

Whom it knows could come from a directory or an identity provider; here it is a table. The mesh's own processes stay users of the
servers' file (`auth_users`), so that they connect again while this service is away; callers cannot, until it is back.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from agentmesh.access.jwt import Key, signed
from agentmesh.access.layout import callers_account
from agentmesh.access.roles import lists
from agentmesh.subjects import Subjects

SUBJECT = "$SYS.REQ.USER.AUTH"


class KnownCaller(NamedTuple):
    """Somebody who may connect."""

    password: str
    agents: tuple[str, ...]


def decided(request: Mapping[str, Any], callers: Mapping[str, KnownCaller], issuer: Key, subjects: Subjects, now: float) -> str:
    """The answer to a server's question (the claims of its JWT), signed: a user with its lists, or a refusal."""
    asked = request["nats"]
    key, server, shown = asked["user_nkey"], asked["server_id"]["id"], asked["connect_opts"]
    name = shown.get("user", "")
    known = callers.get(name)
    if known is None or not hmac.compare_digest(known.password, shown.get("pass", "")):
        return signed(issuer, key, name, "authorization_response", {"error": "not known"}, at=now, audience=server)
    granted = lists("caller", subjects, user=name, agents=known.agents)
    permissions = {"pub": {"allow": granted.publish_allow}, "sub": {"allow": granted.subscribe_allow}}
    limits = {"subs": -1, "data": -1, "payload": -1}
    user = signed(issuer, key, name, "user", {**permissions, **limits}, at=now, audience=callers_account(subjects))
    return signed(issuer, key, name, "authorization_response", {"jwt": user}, at=now, audience=server)


async def serve(url: str, callers: Mapping[str, KnownCaller], issuer: Key, subjects: Subjects) -> Client:
    """Answer servers' questions. Returns the connection; closing it ends the service. Run several: they share the questions."""
    connection = await nats.connect(url, max_reconnect_attempts=-1)

    async def answer(message: Msg) -> None:
        body = message.data.split(b".")[1]
        request = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
        await message.respond(decided(request, callers, issuer, subjects, time.time()).encode())

    await connection.subscribe(SUBJECT, queue="callout", cb=answer)
    await connection.flush()
    return connection
