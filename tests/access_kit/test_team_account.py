"""The account of a tenant's own that docs/security.md shows, on a server (case 704)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path

import pytest

import agentmesh_client
from access_kit.place import PASSWORD, place, secured_mesh
from access_kit.raw import Raw
from support import eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(704)]
PAGE = Path(__file__).parents[2] / "docs" / "security.md"
MINE, THEIRS = "team-a.coder", "team-b.coder"


def account() -> str:
    """It, as it stands on the page, with a password that this test knows."""
    (block,) = re.findall(r"^```text\n(  TEAM_A \{\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    made, times = re.subn(r'password: "[^"]*"', f'password: "{PASSWORD}"', block)
    assert times == 1
    return str(made)


async def refused(subject: str, desk: Raw) -> bool:
    """Whether nobody hears what this user sends there."""
    inbox = desk.inbox()
    desk.publish(subject, b"hello", reply=inbox)
    await desk.until(lambda: any(message.subject == inbox for message in desk.messages))
    return next(message for message in desk.messages if message.subject == inbox).status == "503"


def test_a_tenants_account_reaches_its_own_agents_and_is_limited() -> None:
    async def main() -> None:
        with place(more=account()) as there:
            async with secured_mesh(there), agentmesh_client.connect(there.url("operator")) as operator:
                for name in (MINE, THEIRS):
                    await operator.start_agent(name, kind="Recorder", timeout=60)
                desk, shop = await Raw.connect(there.url("desk")), await Raw.connect(there.url("shop"))
                try:
                    desk.subscribe("_INBOX.>")
                    shop.subscribe("_INBOX.shop.>")
                    await asyncio.gather(desk.flush(), shop.flush())
                    asked, outcome = desk.inbox(), desk.inbox()
                    desk.publish(f"mesh.ask.{MINE}", b"hello", reply=asked)
                    desk.publish(f"mesh.tell.{MINE}", b"told", {"Mesh-Reply-To": outcome}, reply=desk.inbox())
                    await desk.until(lambda: {asked, outcome} <= {message.subject for message in desk.messages})
                    texts = {message.subject: json.loads(message.body) for message in desk.messages}
                    assert (texts[asked]["text"], texts[outcome]["text"]) == ("hello", "told")
                    for subject in (f"mesh.ask.{THEIRS}", f"mesh.inbox.{MINE}", f"mesh.live.control.{MINE}"):
                        assert await refused(subject, desk), subject

                    heard = len(desk.messages)
                    others = shop.inbox()
                    shop.publish(f"mesh.tell.{MINE}", b"a secret", {"Mesh-Reply-To": others}, reply=shop.inbox())
                    await shop.until(lambda: any(message.subject == others for message in shop.messages))
                    assert (await operator.ask(MINE, "another", timeout=60)).text == "another"
                    await desk.flush()
                    assert len(desk.messages) == heard, "what is answered to others"

                    desk.publish(f"mesh.ask.{MINE}", b"x" * 65537, reply=desk.inbox())
                    await eventually(lambda: any("Maximum Payload" in error for error in desk.errors), what="the refusal")
                finally:
                    await desk.close()
                    await shop.close()
                await _connections(there.url("desk"))
                for name in (MINE, THEIRS):
                    await operator.stop(name, timeout=60)
            assert not there.violations()

    run(main(), timeout=110)


async def _connections(url: str) -> None:
    """As many as the account has, and not one more."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            stack.push_async_callback((await Raw.connect(url)).close)
        with pytest.raises(ConnectionError, match="maximum account active connections"):
            stack.push_async_callback((await Raw.connect(url)).close)
