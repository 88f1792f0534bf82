"""The layout with signed users, on a real server: a role gets its lists by its signing key, a caller its agents by tags."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.access.jwt import Key, new_key
from agentmesh.access.roles import ROLES, Role, lists
from agentmesh.access.signed_conf import (
    Keys,
    Revoked,
    SignedUser,
    all_keys,
    key_names,
    rendered,
    template,
    user_credentials,
)
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.login import Login
from agentmesh.edge.transport import Message, NoResponders
from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.subjects import Subjects
from support import Server, eventually, run

pytestmark = pytest.mark.case(655)

SPECS = "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents"
OPS = ("status", "cancel")
MADE = 1_790_000_000.0


def keys() -> Keys:
    return all_keys({name: new_key("operator" if name == "operator" else "account", os.urandom(32)) for name in key_names()})


def made(of: Keys, folder: Path, name: str, role: Role, **more: Any) -> tuple[Login, Key]:
    """A user's credentials, and its key."""
    own = new_key("user", os.urandom(32))
    path = folder / f"{name}.creds"
    path.write_text(user_credentials(of, SignedUser(name=name, role=role, public=own.public, **more), own, at=time.time()))
    return Login(creds=str(path)), own


async def permissions(t: NatsTransport) -> tuple[list[str], list[str]]:
    found = msgspec.json.decode((await t.request("$SYS.REQ.USER.INFO", timeout=5)).data)["data"]["permissions"]
    return sorted(found["publish"]["allow"]), sorted(found["subscribe"]["allow"])


def without_queues(subjects: Sequence[str]) -> list[str]:
    return sorted({subject.partition(" ")[0] for subject in subjects})


@pytest.mark.processes
def test_each_role_is_permitted_what_its_lists_say_and_a_caller_what_its_tags_say(tmp_path: Path) -> None:
    of = keys()
    agents, subjects = ("team-a.", "Solo.One"), Subjects("mesh")

    async def main(server: Server) -> None:
        for role in ROLES:
            more: dict[str, Any] = {"agents": agents, "ops": OPS} if role == "caller" else {}
            login, _ = made(of, tmp_path, f"my-{role}", role, **more)
            granted = lists(role, subjects, user=f"my-{role}", **more)
            t = await connect(server.url, name="test", login=login)
            try:
                assert await permissions(t) == (sorted(granted.publish_allow), without_queues(granted.subscribe_allow)), role
            finally:
                await t.close()

    with Server(config=rendered("mesh", of, made=MADE, ops=OPS)) as server:
        run(main(server))


@pytest.mark.processes
def test_a_caller_reaches_its_agents_through_the_import_and_nothing_else(tmp_path: Path) -> None:
    of = keys()

    async def main(server: Server) -> None:
        node = await connect(server.url, name="node", login=made(of, tmp_path, "n1", "node")[0])
        login, own = made(of, tmp_path, "shop", "caller", agents=("team-a.", "Solo.One"), ops=OPS)
        shop = await connect(server.url, name="shop", login=login)
        heard: list[Message] = []

        async def answer(message: Message) -> None:
            heard.append(message)
            await node.publish(message.reply, b"yes")

        try:
            await node.subscribe("mesh.caller.ask.>", answer, queue="mesh")
            await node.subscribe("mesh.live.*.>", answer)
            await node.flush()
            for subject in (
                "mesh.ask.team-a.x", "mesh.ask.Solo.One", "mesh.live.control-status.team-a.x", "mesh.live.control-cancel.Solo.One"
            ):  # fmt: skip
                assert (await shop.request(subject, timeout=5)).data == b"yes", subject
            info = msgspec.json.decode(heard[0].headers["Nats-Request-Info"])
            assert (info["user"], info["name_tag"], info["acc"]) == (own.public, "shop", of.callers.public)
            with pytest.raises(NoResponders):  # there is no stream, and it may ask
                await shop.request(f"{SPECS}.Solo.One", timeout=5)
            for subject in (
                "mesh.ask.solo.one", "mesh.ask.team-b.x", "mesh.inbox.team-a.x", "mesh.live.control-interrupt.team-a.x",
                "mesh.live.control.team-a.x", f"{SPECS}.team-a.x", f"{SPECS}.team-a.>", f"{SPECS}.>", "mesh.caller.ask.team-a.x",
            ):  # fmt: skip
                with pytest.raises(NotPermitted):
                    await shop.request(subject, timeout=30)
            with pytest.raises(NotPermitted):  # what came through the import is the server's word
                await node.request("mesh.caller.ask.team-a.x", timeout=30)
        finally:
            await shop.close()
            await node.close()

    with Server(config=rendered("mesh", of, made=MADE, ops=OPS)) as server:
        run(main(server))


@pytest.mark.processes
def test_a_revoked_user_is_cut_off_by_a_reload_and_one_whose_credentials_end_by_itself(tmp_path: Path) -> None:
    of = keys()

    async def main(server: Server) -> None:
        login, own = made(of, tmp_path, "shop", "caller", agents=("a",))
        brief, _ = made(of, tmp_path, "brief", "caller", agents=("a",), expires=time.time() + 2)
        stays, _ = made(of, tmp_path, "stays", "caller", agents=("a",))
        node = await connect(server.url, name="node", login=made(of, tmp_path, "n1", "node")[0])
        heard: list[Message] = []
        await node.subscribe("mesh.caller.ask.>", heard.append, queue="mesh")
        shop, short, other = [await connect(server.url, name="test", login=one) for one in (login, brief, stays)]
        try:
            await eventually(lambda: not short.connected, what="the end of its credentials")
            assert shop.connected and other.connected
            # What is asked before a reload is answered behind it.
            asked = asyncio.ensure_future(other.request("mesh.ask.a", timeout=30))
            await eventually(lambda: heard, what="the request")
            server.reload(rendered("mesh", of, made=MADE, ops=OPS, revoked=[Revoked(own.public, "caller", time.time())]))
            await eventually(lambda: not shop.connected, what="the end of its connection")
            with pytest.raises(NotPermitted, match="refuses the credentials of user 'shop'"):
                await connect(server.url, name="test", login=login)
            await node.publish(heard[0].reply, b"yes")
            assert (await asked).data == b"yes" and other.connected and node.connected
            # Its new credentials are good at once.
            again = await connect(server.url, name="test", login=made(of, tmp_path, "shop2", "caller", agents=("a",))[0])
            await again.close()
        finally:
            for t in (shop, short, other, node):
                await t.close()

    with Server(config=rendered("mesh", of, made=MADE, ops=OPS)) as server:
        run(main(server))


def test_what_no_jwt_can_hold_is_refused_where_it_is_made(tmp_path: Path) -> None:
    of = keys()
    with pytest.raises(BadRequest, match="give a prefix that ends in a dot"):
        made(of, tmp_path, "shop", "caller", agents=tuple(f"team-a.agent-{number}" for number in range(60)))
    with pytest.raises(BadRequest, match="needs agents"):
        made(of, tmp_path, "shop", "caller")
    for role in ROLES:
        heard = template(role, Subjects("mesh"))["sub"]["allow"]
        assert heard and not any(" " in subject for subject in heard), "a queue group in a template is refused"
        longest = user_credentials(of, SignedUser(name="n" * 64, role=role, public=of.mesh.public, agents=("a",)), of.mesh, at=1)
        assert len(longest) < 1_300, "no list of a role stands in it"
    text = rendered("mesh", of, made=1, ops=OPS)
    assert not any(key.seed in text for key in (of.operator, of.system, of.mesh, of.callers, *of.roles.values()))
