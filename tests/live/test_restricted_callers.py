"""A caller with a list of permissions, and everything else denied: what it needs works, in one account and in one of its own.

The list is that of docs/operations.md#users, for the agents below `team-a.`, by the SDK and by the commands.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import agentmesh_client
from agentmesh.edge.connection import connect
from agentmesh.errors import AskTimeout, MeshError, NotFound, NotPermitted
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from commands import completed
from live.mesh import local_mesh
from preloaded import MESH
from support import Server, eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(605)]

MINE = "team-a.>"
PUBLISH = [
    *(f"mesh.{lane}.{MINE}" for lane in ("ask", "inbox", "notify", "live.control")),
    f"$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.{MINE}",
    f"$JS.API.DIRECT.GET.MESH_RESULT.mesh.result.{MINE}",
]
SUBSCRIBE = ["_INBOX.shop.>", f"mesh.registry.agents.{MINE}", f"mesh.done.{MINE}"]
OF_THE_MESH = '{ user: "mesh", password: "p" }'
SERVICES = [
    "mesh.ask.>",
    "mesh.inbox.>",
    "mesh.notify.>",
    "mesh.live.control.>",
    "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.>",
    "$JS.API.DIRECT.GET.MESH_RESULT.mesh.result.>",
]
STREAMS = ["_INBOX.>", "mesh.registry.agents.>", "mesh.done.>"]


def _caller() -> str:
    return (
        '{ user: "shop", password: "p", permissions: {'
        f" publish: {{ allow: {json.dumps(PUBLISH)} }}, subscribe: {{ allow: {json.dumps(SUBSCRIBE)} }} }} }}"
    )


def one_account() -> str:
    return f"accounts {{\n MESH {{ jetstream: enabled\n users: [\n{OF_THE_MESH}\n{_caller()}\n] }}\n }}"


def an_account_of_its_own() -> str:
    exports = [*(f'{{ service: "{one}" }}' for one in SERVICES), *(f'{{ stream: "{one}" }}' for one in STREAMS)]
    imports = [
        *(f'{{ service: {{ account: MESH, subject: "{one}" }} }}' for one in SERVICES),
        *(f'{{ stream: {{ account: MESH, subject: "{one}" }} }}' for one in STREAMS),
    ]
    lines = "\n".join
    return (
        f"accounts {{\n MESH {{ jetstream: enabled\n exports: [\n{lines(exports)}\n]\n users: [\n{OF_THE_MESH}\n] }}\n"
        f" CALLERS {{\n imports: [\n{lines(imports)}\n]\n users: [\n{_caller()}\n] }}\n }}"
    )


class Place(NamedTuple):
    """A server, as one of its users sees it."""

    server: Server
    user: str

    @property
    def url(self) -> str:
        return self.server.url.replace("//", f"//{self.user}:p@")


@pytest.fixture(scope="module", params=[one_account, an_account_of_its_own], ids=["one account", "its own account"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(config=request.param()) as made:
        yield made


def violations(server: Server) -> set[str]:
    """What the server has refused so far, by subject."""
    return set(re.findall(r'(?:Publish|Subscription) Violation .*?Subject "([^"]+)"', server.log))


async def _works(caller: Mesh, theirs: Mesh, folder: Path) -> None:
    """All that a caller does with an agent of its own."""
    agent, other = "team-a.coder", "team-b.coder"
    assert (await caller.ask(agent, "one", timeout=60)).text == "one"
    async with caller.stream(agent, "two", timeout=60) as turn:
        seen = [event async for event in turn]
        assert (await turn.response()).text == "two" and len(seen) > 1, seen
    ref = await caller.tell(agent, "three")
    await eventually(lambda: _completed(caller, agent, ref), what="the outcome of what was told")
    outcome = (await caller.poll(agent, ref)).outcome
    assert outcome is not None and outcome.text == "three"
    await caller.notify(agent, {"n": 1})
    assert (await caller.status(agent)).state == "idle"

    # A key that is repeated brings the outcome of the first, also from another connection, and while the first still runs.
    gate = folder / "gate"
    first = asyncio.ensure_future(caller.ask(agent, f"gate:{gate} four", timeout=60, idempotency_key="k4"))
    await eventually(lambda: _working(caller, agent), what="the turn")
    again = asyncio.ensure_future(caller.ask(agent, f"gate:{gate} four", timeout=60, idempotency_key="k4"))
    with pytest.raises(AskTimeout) as slow:
        await caller.ask(agent, f"gate:{gate} four", timeout=10, idempotency_key="k4")
    assert (await caller.poll(agent, slow.value.details["ref"])).status == "pending"
    gate.touch()
    answers = await asyncio.gather(first, again)
    assert {answer.text for answer in answers} == {"four"} and len({answer.ref for answer in answers}) == 1

    for name in ("team-a.nobody",):
        with pytest.raises(NotFound):
            await caller.ask(name, "hello", timeout=60)
    assert (await theirs.ask(other, "hello", timeout=60)).text == "hello"
    for refused in (caller.ask(other, "hello", timeout=600), caller.tell(other, "x"), caller.status(other)):
        with pytest.raises(NotPermitted):
            await refused
    with pytest.raises(MeshError) as hidden:
        await caller.poll(other, "1")
    assert hidden.value.code == "not_permitted"


async def _completed(caller: Mesh, agent: str, ref: str) -> bool:
    return (await caller.poll(agent, ref)).status == "completed"


async def _working(caller: Mesh, agent: str) -> bool:
    return (await caller.status(agent)).state == "processing"


def test_a_restricted_caller_does_all_that_callers_do_by_the_sdk(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        subjects = Subjects("mesh")
        async with local_mesh(Place(server, "mesh"), subjects) as mesh:
            for name in ("team-a.coder", "team-b.coder"):
                await mesh.client.start_agent(name, kind="Puppet", timeout=60)
            before = violations(server)
            async with agentmesh_client.connect(Place(server, "shop").url) as caller:
                assert caller.inbox.startswith("_INBOX.shop.")
                await _works(caller, mesh.client, tmp_path)
            refused = {subject for subject in violations(server) - before if "team-b" not in subject}
            # What it tries once for each connection, as it may not even ask what it may: that, and then reads by subject.
            tried = r"\$JS\.API\.(STREAM\.INFO|STREAM\.MSG\.GET|DIRECT\.GET)\.\w|\$SYS\.REQ\.USER\.INFO$"
            assert all(re.match(tried, one) for one in refused), refused
            for name in ("team-a.coder", "team-b.coder"):
                await mesh.client.stop(name, timeout=60)

    run(main(), timeout=110)


def test_and_by_the_commands(server: Server) -> None:
    async def main() -> None:
        async with local_mesh(Place(server, "mesh"), Subjects("mesh")) as mesh:
            await mesh.client.start_agent("team-a.cli", kind="Puppet", timeout=60)
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
            env = {**clean, "MESH_NATS_URL": server.url, "MESH_USER": "shop", "MESH_PASSWORD": "p"}

            async def said(*verb: str) -> str:
                done = await asyncio.to_thread(completed, MESH, verb, env, timeout=60)
                assert done.returncode == 0, f"{verb}: {done.stderr}"
                return str(done.stdout)

            assert "hello" in await said("ask", "team-a.cli", "hello")
            assert "hello" in await said("ask", "team-a.cli", "hello", "--stream")
            ref = (await said("tell", "team-a.cli", "later")).strip()
            await eventually(lambda: _completed(mesh.client, "team-a.cli", ref))
            assert "later" in await said("poll", "team-a.cli", ref)
            assert "idle" in await said("status", "team-a.cli")
            await said("notify", "team-a.cli", "{}")
            again = [await said("ask", "team-a.cli", "once", "--key", "k", "-o", "json") for _ in range(2)]
            assert json.loads(again[0]) == json.loads(again[1])
            await mesh.client.stop("team-a.cli", timeout=60)

    run(main(), timeout=110)


@pytest.mark.case(606)
def test_a_read_by_subject_is_confined_by_its_subject(server: Server) -> None:
    async def main() -> None:
        transport = await connect(Place(server, "shop").url, name="caller")
        try:
            for subject in (
                "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.team-b.coder",
                "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.>",
                "$JS.API.DIRECT.GET.MESH_RESULT.mesh.result.team-b.coder.1",
                "$JS.API.DIRECT.GET.MESH_RESULT",
                "$JS.API.STREAM.MSG.GET.MESH_RESULT",
            ):
                with pytest.raises(NotPermitted):
                    await transport.request(subject, timeout=600)
        finally:
            await transport.close()

    run(main())
