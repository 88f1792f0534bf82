"""Each control request between clients and nodes of both builds (case 617); and both of its forms at the newer node."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.control_operations import OPERATIONS
from compat.two_builds import builds
from compat.two_builds.stage import NEW_NODES, NEW_SUPERVISOR, OLD_NODES, OLD_SUPERVISOR, Stage
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
@pytest.mark.timeout(180)
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
