"""Users of another account, each with a key for each of its requests; and others that try to get at these.

What the server does at an import is done by the client here: it publishes where only imports lead to, with the word of the server
on who asks. All behind that is the mesh's own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from agentmesh import wire
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import MeshError
from agentmesh.keys import KEY
from agentmesh.subjects import Way
from agentmesh_client.client import Mesh
from judge.evidence import OTHERS_CANCEL, OTHERS_POLL, OWN_POLL, Operation

ACCOUNT = "CALLERS"
USERS = ("ann", "ben")
REQUEST_INFO = "Nats-Request-Info"
USER_WEIGHTS: Mapping[str, float] = MappingProxyType({"user": 10, "pry": 5})
"""How often there are such requests and such trials, beside what other clients do."""
TRIES = 3
PAUSE_S = 0.5
POLL_S = 5.0
RECENT = 24


class Users:
    """What users ask, and what is tried of it by others."""

    def __init__(self, history: Sequence[Operation], ask_s: float) -> None:
        """`history` has all operations so far."""
        self._history = history
        self._ask_s = ask_s

    async def ask(self, mesh: Mesh, op: Operation, way: Way, body: bytes) -> None:
        """Send a request of `op.user` with `op.key`, again under its id as long as no answer comes."""
        headers = {**_from(op.user), KEY: op.key, wire.MSG_ID: f"{op.agent}.u-{op.label}"}
        op.error = "ask_timeout"
        for _ in range(TRIES):
            reply = await _sent(mesh, mesh.subjects.caller(way, op.agent), body, headers, self._ask_s / TRIES)
            if reply is None:
                await asyncio.sleep(PAUSE_S)
                continue
            answer = msgspec.json.decode(reply)
            error = answer.get("error") or {}
            if way == "ask" and answer.get("ref"):
                op.outcome, op.ref, op.error = wire.decode_outcome(reply), answer["ref"], None
            elif "ref" in answer and not error:
                op.ref, op.error = "-" if way == "event-to" else answer["ref"], None
            else:
                op.error = error.get("code")
                if op.error == "unavailable":
                    continue
            return

    async def pry(self, mesh: Mesh, client: str, dice: random.Random, do: Callable[..., Awaitable[None]]) -> None:
        """Poll or cancel a request of a user: as that user; without its key, or with another one, as anybody."""
        known = [op for op in self._history[-RECENT:] if op.key and op.ref not in (None, "-")]
        if not known:
            return
        target = dice.choice(known)
        own = dice.random() < 0.3
        user = target.user if own else dice.choice((*USERS, ""))
        key = target.key if own else dice.choice(("", key_of(f"none of {target.label}")))
        cancels = not own and dice.random() < 0.3

        async def act(op: Operation) -> None:
            op.user = user
            headers = {**(_from(user) if user else {}), **({KEY: key} if key else {})}
            if cancels:
                body = msgspec.json.encode({"op": "cancel", "ref": target.ref, "tree": True})
                reply = await _sent(mesh, mesh.subjects.control(target.agent), body, headers, POLL_S)
            else:
                asked = msgspec.json.encode({"ref": target.ref})
                where = mesh.subjects.caller if user else mesh.subjects.way
                reply = await _sent(mesh, where("poll", target.agent), asked, headers, POLL_S)
            op.error = "unanswered" if reply is None else said(reply)

        kind = OWN_POLL if own else OTHERS_CANCEL if cancels else OTHERS_POLL
        await do(client, kind, target.agent, target.label, act)


def key_of(label: str) -> str:
    """The key of the request with this label."""
    return f"key of the request {label}".replace(" ", "-")


def said(reply: bytes) -> str | None:
    """How a poll or a cancel was turned down; None if it was told or did something."""
    answer = msgspec.json.decode(reply)
    if answer.get("status") in ("completed", "pending") or answer.get("cancelled") is True:
        return None
    return str((answer.get("error") or {"code": "not_found"})["code"])


def _from(user: str) -> dict[str, str]:
    return {REQUEST_INFO: msgspec.json.encode({"acc": ACCOUNT, "user": user}).decode()}


async def _sent(mesh: Mesh, subject: str, body: bytes, headers: dict[str, str], timeout: float) -> bytes | None:
    """The reply; None if none came."""
    try:
        return (await mesh.transport.request(subject, body, headers=headers, timeout=timeout)).data
    except (RequestTimeout, NoResponders, Disconnected, MeshError):
        return None
