"""Callers in the generated layout, who may send the gateway's requests and two operations: SDK and commands (case 624)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentmesh_client
from agentmesh.access.static_conf import User, rendered
from agentmesh.errors import AskTimeout, BadRequest, NotFound, NotPermitted
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from commands import completed
from live.mesh import local_mesh
from preloaded import MESH
from support import Server, eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(624)]

SUBJECTS = Subjects("mesh")
AGENT = "team-a.coder"


def layout() -> str:
    """What `mesh access` makes for two callers, and beside it a user of the mesh's own that may do everything."""
    agents, ops = (AGENT, "team-a.nobody"), ("status", "state", "cancel")
    users = [User(name, "caller", f"secret-of-{name}", agents, ops) for name in ("shop", "bank")]
    whole = '    users: [\n      { user: "mesh", password: "secret-of-mesh" }'
    return rendered("mesh", users).replace("    users: [", whole, 1)


@pytest.fixture(scope="module")
def callers() -> Iterator[Server]:
    with Server(config=layout()) as made:
        yield made


class As:
    """A server, as one of its users sees it."""

    def __init__(self, server: Server, user: str) -> None:
        self.url = server.url.replace("//", f"//{user}:secret-of-{user}@")


def violations(server: Server) -> list[str]:
    """What the server has refused so far, by subject."""
    return re.findall(r'(?:Publish|Subscription) Violation .*?Subject "([^"]+)"', server.log)


async def _completed(caller: Mesh, ref: str) -> bool:
    return (await caller.poll(AGENT, ref)).status == "completed"


async def _working(caller: Mesh) -> bool:
    return (await caller.status(AGENT)).state == "processing"


async def _asks(caller: Mesh) -> None:
    assert (await caller.ask(AGENT, "one", timeout=60)).text == "one"
    async with caller.stream(AGENT, "two", timeout=60) as turn:
        seen = [event async for event in turn]
        assert (await turn.response()).text == "two" and len(seen) > 1, seen
    ref = await caller.tell(AGENT, "three")
    await eventually(lambda: _completed(caller, ref), what="the outcome of what was told")
    await caller.notify(AGENT, {"n": 1})
    assert (await caller.status(AGENT)).state == "idle"
    assert (await caller.status(AGENT, content=True)).agent_state is not None
    with pytest.raises(NotPermitted):
        await caller.interrupt(AGENT)
    accepted: list[str] = []
    outcome = await caller.ask_outcome(AGENT, "four", timeout=60, on_accepted=accepted.append)
    assert (outcome.text, [outcome.ref]) == ("four", accepted)


async def _takes_up(caller: Mesh, again: Mesh, folder: Path) -> None:
    """An id that is repeated by another client of the user brings the first one's outcome, while it runs and later."""
    gate = folder / "gate"
    first = asyncio.ensure_future(caller.ask(AGENT, f"gate:{gate} five", timeout=60, idempotency_key="k5"))
    await eventually(lambda: _working(caller), what="the turn")
    second = asyncio.ensure_future(again.ask(AGENT, f"gate:{gate} five", timeout=60, idempotency_key="k5"))
    with pytest.raises(AskTimeout) as slow:
        await again.ask(AGENT, f"gate:{gate} five", timeout=10, idempotency_key="k5")
    ref = slow.value.details["ref"]
    assert (await again.poll(AGENT, ref)).status == "pending"
    waiting = await again.tell(AGENT, "never")
    assert await caller.cancel(AGENT, waiting), "each client of the user may cancel what another has told"
    gate.touch()
    answers = await asyncio.gather(first, second)
    assert {(answer.text, answer.ref) for answer in answers} == {("five", ref)}
    assert (await again.ask(AGENT, f"gate:{gate} five", timeout=60, idempotency_key="k5")).ref == ref


async def _is_told_the_cause(caller: Mesh) -> None:
    for call in (caller.ask("team-a.nobody", "x", timeout=600), caller.tell("team-a.nobody", "x", timeout=600)):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await caller.notify("team-a.nobody", 1, timeout=600)
    with pytest.raises(NotFound):
        await caller.status("team-a.nobody", timeout=600)
    with pytest.raises(NotFound):
        await caller.poll(AGENT, "999999", timeout=600)
    with pytest.raises(BadRequest):
        await caller.ask(AGENT, "x", key="short")
    refused: list[Any] = [
        caller.ask("team-b.coder", "x", timeout=600),
        caller.tell("team-b.coder", "x", timeout=600),
        caller.notify("team-b.coder", "x", timeout=600),
        caller.poll("team-b.coder", "1", timeout=600),
        caller.status("team-b.coder", timeout=600),
        caller.cancel("team-b.coder", "1", timeout=600),
    ]
    for call in refused:
        with pytest.raises(NotPermitted) as told:
            await call
        assert "team-b.coder" in told.value.details["subject"], "it names what is missing"


def test_the_sdk_does_it_all_without_one_refused_request(callers: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(As(callers, "mesh"), SUBJECTS) as mesh:
            await mesh.client.start_agent(AGENT, kind="Puppet", timeout=60)
            async with agentmesh_client.connect(As(callers, "shop").url) as caller:
                assert caller.inbox.startswith("_INBOX.shop.")
                await _asks(caller)
                async with agentmesh_client.connect(As(callers, "shop").url) as again:
                    await _takes_up(caller, again, tmp_path)
                await _is_told_the_cause(caller)
            await mesh.client.stop(AGENT, timeout=60)
        assert violations(callers) == []

    run(main(), timeout=110)


@pytest.mark.case(625)
def test_what_one_caller_asks_no_other_polls_cancels_or_takes_up(callers: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(As(callers, "mesh"), SUBJECTS) as mesh:
            await mesh.client.start_agent(AGENT, kind="Puppet", timeout=60)
            gate = tmp_path / "gate"
            async with (
                agentmesh_client.connect(As(callers, "shop").url) as shop,
                agentmesh_client.connect(As(callers, "bank").url) as bank,
            ):
                runs = await shop.tell(AGENT, f"gate:{gate} one", idempotency_key="order-7")
                waits = await shop.tell(AGENT, "two")
                for ref in (runs, waits):
                    for call in (bank.poll(AGENT, ref), bank.cancel(AGENT, ref, tree=True)):
                        with pytest.raises(NotPermitted):
                            await call
                own = await bank.tell(AGENT, "three", idempotency_key="order-7")
                assert own not in (runs, waits), "equal ids of two callers are two requests"
                gate.touch()
                for caller, ref, text in ((shop, runs, "one"), (shop, waits, "two"), (bank, own, "three")):
                    await eventually(lambda caller=caller, ref=ref: _completed(caller, ref))
                    outcome = (await caller.poll(AGENT, ref)).outcome
                    assert outcome is not None and outcome.text == text
                with pytest.raises(NotPermitted):
                    await bank.poll(AGENT, runs)
                with pytest.raises(NotPermitted):
                    await mesh.client.poll(AGENT, runs)
            await mesh.client.stop(AGENT, timeout=60)

    run(main(), timeout=110)


def test_an_outcome_whose_message_was_lost_is_taken_up_by_polling(callers: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(As(callers, "mesh"), SUBJECTS) as mesh:
            await mesh.client.start_agent(AGENT, kind="Puppet", timeout=60)
            async with agentmesh_client.connect(As(callers, "shop").url) as caller:
                gate = tmp_path / "gate"
                asked = asyncio.ensure_future(caller.ask(AGENT, f"gate:{gate} one", timeout=60))
                await eventually(lambda: _working(caller), what="the turn")
                caller._asks._on_reply = lambda message: None  # type: ignore[method-assign]
                subscription = caller._asks._subscription
                assert subscription is not None
                await subscription.unsubscribe()
                gate.touch()
                assert (await asked).text == "one"
            await mesh.client.stop(AGENT, timeout=60)

    run(main(), timeout=110)


async def _own_key(said: Callable[..., Awaitable[str]], key: str, gate: Path) -> None:
    """A request with a key of its own is nobody's without it, also not its own user's (case 692)."""
    await said("tell", AGENT, f"gate:{gate} first")
    taken, kept = [(await said("tell", AGENT, text, "--mesh-key", key)).strip() for text in ("taken back", "mine")]
    for verb in ("poll", "cancel"):
        assert "--mesh-key" in await said(verb, AGENT, taken, code=6)
    assert "cancelled" in await said("cancel", AGENT, taken, "--mesh-key", key)
    await asyncio.to_thread(gate.touch)

    async def polled() -> bool:
        return "mine" in await said("poll", AGENT, kept, "--mesh-key", key)

    await eventually(polled)
    assert "--mesh-key" in await said("poll", AGENT, kept, code=6)


@pytest.mark.case(692)
def test_and_the_commands(callers: Server, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(As(callers, "mesh"), SUBJECTS) as mesh:
            await mesh.client.start_agent(AGENT, kind="Puppet", timeout=60)
            before = len(violations(callers))
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}

            async def said(*verb: str, user: str = "shop", code: int = 0) -> str:
                env = {**clean, "MESH_NATS_URL": callers.url, "MESH_USER": user, "MESH_PASSWORD": f"secret-of-{user}"}
                done = await asyncio.to_thread(completed, MESH, verb, env, timeout=60)
                assert done.returncode == code, f"{verb}: {done.returncode} {done.stderr}"
                return str(done.stdout or done.stderr)

            assert "hello" in await said("ask", AGENT, "hello")
            assert "hello" in await said("ask", AGENT, "hello", "--stream")
            ref = (await said("tell", AGENT, "later")).strip()

            async def polled() -> bool:
                return "later" in await said("poll", AGENT, ref)

            await eventually(polled)
            assert "idle" in await said("status", AGENT)
            await said("notify", AGENT, "{}")
            again = [await said("ask", AGENT, "once", "--key", "k", "-o", "json") for _ in range(2)]
            assert json.loads(again[0]) == json.loads(again[1])
            assert "key" in await said("poll", AGENT, ref, user="bank", code=6)
            assert "team-b.x" in await said("ask", "team-b.x", "hello", code=6)
            await _own_key(said, f"@{tmp_path / 'order'}", tmp_path / "gate")
            assert violations(callers)[before:] == []
            await mesh.client.stop(AGENT, timeout=60)

    run(main(), timeout=110)
