"""The verbs about agents against a real mesh: `-o json` prints the wire's own objects, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.subjects import Subjects
from agentmesh_client.cli.main import VERBS
from live.mesh import local_mesh
from live.test_between_agents import do
from live.test_history import command
from support import Server, run


@pytest.mark.slow
def test_every_verb_prints_json_on_demand(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            used: set[str] = set()

            async def said(*arguments: str) -> Any:
                used.add(arguments[0])
                return json.loads(await command(mesh, *arguments, "-o", "json"))

            started = await said("start", "coder", "--kind", "Puppet", "--option", "path=src", "--options", '{"depth": 2}')
            assert (started["name"], started["node"], started["status"]) == ("coder", "n1", "running")
            outcome = await said("ask", "coder", "hello")
            assert outcome | {"v": 1, "agent": "coder", "ok": True, "text": "hello", "turn": 1} == outcome
            told = await said("tell", "coder", "hello again")
            assert told | {"v": 1, "agent": "coder"} == told
            await mesh.saw("prompt_stop", "coder", 2)
            polled = await said("poll", "coder", told["ref"])
            assert (polled["v"], polled["status"]) == (1, "completed")
            assert await said("notify", "coder", '{"n": 1}') == {"v": 1, "agent": "coder", "stored": True}
            status = await said("status", "coder", "--content")
            assert (status["v"], status["state"], status["agent_state"]["options"]) == (1, "idle", {"path": "src", "depth": 2})
            assert [agent["name"] for agent in await said("ps")] == ["coder"]
            assert [node["id"] for node in await said("nodes")] == ["n1"]
            assert await said("interrupt", "coder") == {"v": 1, "interrupted": False}
            assert await said("cancel", "coder", told["ref"]) == {"v": 1, "cancelled": False}
            assert await said("reply", "coder", told["ref"], "too late") == {"v": 1, "replied": False}
            await mesh.client.ask("coder", do(["then", {"decision": "halt"}]))
            assert await said("resume", "coder") == {"v": 1, "resumed": True}
            done = await said("set", "coder", "--watchdog", "60", "--backend-option", "delay_s=0")
            assert (done["changed"], done["configuration"]["watchdog_s"]) == (True, 60.0)
            past = await said("history", "coder")
            assert [entry.get("turn", entry.get("set")) for entry in past] == [1, 2, 3, 1]
            assert await said("dead", "ls", "coder") == []
            assert (await said("owes"))["waits"] == []
            assert {edge["target"] for edge in (await said("graph"))["graph"]["edges"]} == {"coder"}
            assert {span["op"] for span in (await said("trace", f"coder/{told['ref']}"))["spans"]} == {"process", "invoke_agent"}
            assert await said("stop", "coder") == {"v": 1, "name": "coder", "status": "stopped"}
            others = ("admin:", "doctor:", "completion:", "access:")
            of_agents = {verb for verb, (home, _) in VERBS.items() if not home.startswith(others)}
            assert used == of_agents, "a verb that this test has forgotten"

    run(main(), 110)


@pytest.mark.slow
def test_what_goes_wrong_has_an_exit_code_of_its_own(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            codes = {
                ("ask", "coder", "fail:quota"): 1,
                ("start", "coder", "--kind", "Recorder"): 1,
                ("start", "a b", "--kind", "Recorder"): 2,
                ("ask", "coder"): 2,
                ("ask", "coder", ""): 2,
                ("explode",): 2,
                ("ask", "nobody", "hello"): 3,
                ("poll", "coder", "999"): 3,
                ("dead", "show", "coder", "1"): 3,
                ("ask", "coder", f"gate:{tmp_path / 'never'} x", "--timeout", "0.3"): 4,
                ("start", "odd", "--kind", "Nope", "--timeout", "0.3"): 4,
                ("ps", "--nats", "nats://127.0.0.1:1"): 5,
            }
            for arguments, code in codes.items():
                complaint = await command(mesh, *arguments, code=code)
                assert complaint.startswith("mesh: "), arguments

    run(main(), 110)
