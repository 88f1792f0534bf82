"""Each control request between clients and nodes of both builds (case 617), and both of its forms at the newer node; and those of
a user who may send single operations only (cases 690 and 691)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

import agentmesh_client
from agentmesh.access.static_conf import User, rendered
from agentmesh.control_operations import GIVEN, OPERATIONS
from agentmesh.edge.transport import Message
from agentmesh.errors import MeshError, Unavailable
from agentmesh.wire import RELAYED
from agentmesh_client import Mesh
from compat.two_builds import builds
from compat.two_builds.stage import NEW_NODES, NEW_SUPERVISOR, OLD_NODES, OLD_SUPERVISOR, Stage
from compat.two_builds.verbs import WAIT_S, verbs
from support import Server, run

UNDERSTOOD = {
    "status": "Status",
    "state": "Status",
    "poll": "PollResult",
    "interrupt": "bool",
    "cancel": "bool",
    "resume": "bool",
    "set_timer": "TimerSet",
    "cancel_timer": "bool",
}
BODY = {"ref": "99999999", "id": "t", "after_s": 600, "text": "x", "set": {"watchdog_s": 5}}


async def _said(stage: Stage, name: str, agent: str) -> dict[str, str]:
    """What a client of that name is told of each request to `agent`."""
    command = [sys.executable, str(builds.HERE / "verbs.py"), agent, stage.server.url, stage.subjects.root]
    env = builds.environment(stage.tree(name))
    client = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(client.communicate(), 60)
    assert client.returncode == 0, err.decode()[-2000:]
    said: dict[str, str] = json.loads(out)
    return said


async def _both_forms(stage: Stage, agent: str) -> None:
    """Each operation of the table means the same in both forms."""
    async with agentmesh_client.connect(stage.server.url, root=stage.subjects.root) as mesh:
        for name in OPERATIONS:
            answers = []
            for subject, body in (
                (stage.subjects.control(agent), {"op": name, **BODY}),
                (stage.subjects.control_op(name, agent), BODY),
            ):
                reply = await mesh.transport.request(subject, json.dumps(body).encode(), timeout=10)
                found = json.loads(reply.data)
                answers.append((set(found), (found.get("error") or {}).get("code")))
            assert answers[0] == answers[1], name


@pytest.mark.slow
@pytest.mark.case(617)
def test_each_control_request_is_understood_between_both_builds(tmp_path: Path) -> None:
    old, logs = tmp_path / "old", tmp_path / "logs"
    old.mkdir()
    logs.mkdir()
    builds.unpack(old)

    async def scenario(stage: Stage) -> None:
        try:
            for node, supervisor in ((OLD_NODES[0], OLD_SUPERVISOR), (NEW_NODES[0], NEW_SUPERVISOR)):
                await stage.start(supervisor, node)
                for client in ("c-old", "c-new"):
                    assert await _said(stage, client, f"{client}-{node}") == UNDERSTOOD, f"{client} asks {node}"
                if node in NEW_NODES:
                    await _both_forms(stage, f"c-new-{node}")
                await stage.terminate(node)
                await stage.kill(supervisor)
        finally:
            await stage.close()

    with Server() as server:
        stage = Stage(server, old, logs)
        try:
            run(scenario(stage), timeout=170)
        except BaseException:
            print("\n".join(stage.notes), stage.said())
            raise


# --- a user who may send single operations only ------------------------------------------------------------------------
AGENT = "team-a.one"


class As:
    """A server, as one of its users sees it."""

    def __init__(self, server: Server, user: str) -> None:
        self._server, self._user = server, user

    @property
    def url(self) -> str:
        return self._server.url.replace("//", f"//{self._user}:secret-of-{self._user}@")


def _layout() -> str:
    """Accounts for the mesh and its callers: one of these, and a user of the mesh's own for the processes of both builds."""
    users = [User("shop", "caller", "secret-of-shop", ("team-a.",), GIVEN)]
    everything = '    users: [\n      { user: "mesh", password: "secret-of-mesh" }'
    return rendered("mesh", users).replace("    users: [", everything, 1)


async def _sends(caller: Mesh, agent: str, ref: str | None = None) -> dict[str, str]:
    """What a caller is told of each operation that it may send. `ref`: what it polls; None: something new."""
    said = {name: await _told(request) async for name, request in verbs(caller, agent, ref)}
    said["reply"] = await _told(caller.reply(agent, "99999999", "x", timeout=WAIT_S))
    said["set"] = await _told(caller.update_agent(agent, watchdog_s=60, timeout=WAIT_S))
    return said


async def _told(request: Awaitable[Any]) -> str:
    try:
        return type(await request).__name__
    except MeshError as error:
        return error.code


async def _hears_it_once(mesh: Mesh, agent: str) -> None:
    """An owner of this build passes over what a gateway sends on: it has heard the request itself."""
    subject, body = mesh.subjects.control(agent), json.dumps({"op": "interrupt"}).encode()
    heard: list[Message] = []
    inbox = f"{mesh.inbox}.relayed"
    await mesh.transport.subscribe(inbox, heard.append)
    await mesh.transport.publish(subject, body, headers={RELAYED: "1"}, reply=inbox)
    await mesh.transport.request(subject, body, timeout=WAIT_S)
    assert heard == []


@pytest.mark.slow
@pytest.mark.case(690, 691)
def test_a_user_of_single_operations_is_served_beside_older_owners_and_told_where_all_are_older(tmp_path: Path) -> None:
    old, logs = tmp_path / "old", tmp_path / "logs"
    old.mkdir()
    logs.mkdir()
    builds.unpack(old)
    older = UNDERSTOOD | {"reply": "unavailable", "set": "unavailable"}

    async def scenario(stage: Stage, url: str) -> None:
        try:
            async with (
                agentmesh_client.connect(stage.server.url) as inside,
                agentmesh_client.connect(url) as caller,
            ):
                await stage.start(OLD_SUPERVISOR, OLD_NODES[0])
                await inside.start_agent(AGENT, kind="Cell", options={"next": ""}, restart="permanent", timeout=30)
                await inside.ask(AGENT, "add first", timeout=30)
                with pytest.raises(Unavailable, match="all that run are of an older build"):
                    await caller.status(AGENT, timeout=WAIT_S)
                assert set((await _sends(caller, AGENT, "99999999")).values()) == {"unavailable"}

                await stage.start(NEW_SUPERVISOR)
                assert await _sends(caller, AGENT) == older, "a supervisor of this build sends them on"
                with pytest.raises(Unavailable, match="older build, which does not know the control request 'set'"):
                    await caller.update_agent(AGENT, watchdog_s=60, timeout=WAIT_S)
                with pytest.raises(Unavailable, match="older build, which does not know the control request 'reply'"):
                    await inside.reply(AGENT, "99999999", "x", timeout=WAIT_S)

                await stage.start(NEW_NODES[0])
                await stage.terminate(OLD_NODES[0])
                # What the older process would lose is not written yet.
                assert await _sends(caller, AGENT) == UNDERSTOOD | {"reply": "bool", "set": "unavailable"}
                await _hears_it_once(inside, AGENT)
        finally:
            await stage.close()

    with Server(config=_layout()) as server:
        stage = Stage(As(server, "mesh"), old, logs)
        try:
            run(scenario(stage, As(server, "shop").url), timeout=230)
        except BaseException:
            print("\n".join(stage.notes), stage.said())
            raise
