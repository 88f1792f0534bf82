"""`mesh up --model local`: the agents of a folder, unchanged, on a real model, which ends with the mesh (cases 740, 742)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh_node.backends.model_server.local import MODEL
from commands import completed
from live.test_hosting import first_line, verb
from local.model import INSTALLED, MISSING
from node.backends.model_server.test_local import alive
from preloaded import MESH
from support import eventually, run

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.skipif(not INSTALLED, reason=MISSING)]

AGENTS = """
from agentmesh import Agent, Idle, Init

class Scripted(Agent[int]):
    backend = "scripted"
    script = staticmethod(lambda prompt: f"{len(prompt.split())} words")
    async def init_agent(self, options):
        return Init(0, backend={"max_tokens": 12})
    async def handle_response(self, ref, response, state):
        return Idle(state + 1)

class Claude(Scripted):
    backend = "anthropic"

class Open(Scripted):
    backend = "openai"
"""


@pytest.mark.case(740)
@pytest.mark.case(742)
def test_the_agents_of_a_folder_run_on_it_and_it_ends_with_the_mesh(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(AGENTS)
    with verb(tmp_path, "up", "mine.py", "--port", "0", "--model", "local") as process:
        ready = first_line(process)
        assert f"; model {MODEL} at http://127.0.0.1:" in ready
        env = {**os.environ, "MESH_NATS_URL": (tmp_path / ".mesh" / "url").read_text().strip()}

        def said(*arguments: str) -> str:
            done = completed(MESH, arguments, env, timeout=100)
            assert done.returncode == 0, done.stderr
            return done.stdout

        (node,) = json.loads(said("nodes", "-o", "json"))
        assert node["lease"]["labels"]["model"] == MODEL
        for kind in ("Scripted", "Claude", "Open"):
            said("start", kind, "--kind", kind)
            answer = said("ask", kind, "What is the capital of France? Answer in one sentence.", "--timeout", "90")
            assert "Paris" in answer or "France" in answer, "a model speaks, and no script"
        children = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
        )
        (model,) = [int(line.split()[0]) for line in children.stdout.splitlines() if "serve.py" in line]
        (server,) = [int(line.split()[0]) for line in children.stdout.splitlines() if "nats-server" in line]
        process.kill()

        async def ended() -> None:
            await eventually(lambda: not alive(model))

        try:
            run(ended())
        finally:
            os.kill(server, signal.SIGTERM)


@pytest.mark.case(740)
@pytest.mark.timeout(330)
def test_the_demo_runs_on_it_with_the_call_that_its_prompt_spells_out() -> None:
    demo = Path(__file__).parents[2] / "examples" / "triage" / "demo.py"
    env = {**os.environ, "MODEL": "local"}
    done = subprocess.run([sys.executable, demo], env=env, capture_output=True, text=True, timeout=320, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{MODEL} at http://127.0.0.1:" in done.stdout
    assert "execute_tool count_errors" in done.stdout
    assert re.search(r"triage +goes on on n[12], \d+\.\d\d s after the kill", done.stdout)
    assert len(re.findall(r"triage -> caller", done.stdout)) == 1
