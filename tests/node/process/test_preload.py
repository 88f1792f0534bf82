"""What a node imports before it takes agents, so that none of them waits for that in the middle of a turn (case 722)."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentmesh.agent import Agent
from agentmesh.subjects import Subjects
from agentmesh_node.process.preload import preload
from agentmesh_node.settings import NodeSettings
from live.mesh import process_mesh
from support import Server, run

pytestmark = [pytest.mark.case(722), pytest.mark.processes]

ASKED = """
import sys
from agentmesh.agent import Agent
from agentmesh.tools.declared import McpHttp
from agentmesh_node.process.preload import preload
from agentmesh_node.settings import ModelServer, NodeSettings

class Plain(Agent): ...
class Broken(Agent):
    backend = "nowhere"
class Anthropic(Agent):
    backend = "anthropic"
class Own:
    imports = ("colorsys", "no_such_module")
class Owner(Agent):
    backend = Own
class Mcp(Agent):
    tools = (McpHttp(name="search", url="http://127.0.0.1:9"),)

kinds, model = sys.argv[1].split(","), ModelServer(model="m", messages="http://h") if sys.argv[2:] else None
preload(NodeSettings(node_id="n1", agents={name: globals()[name] for name in kinds}, model=model))
print(*(name for name in ("anthropic", "openai", "mcp", "colorsys") if name in sys.modules))
"""


def loaded(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", ASKED, *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


def test_what_the_backends_of_its_kinds_and_their_tools_need_is_imported_and_nothing_else() -> None:
    assert loaded("Plain,Broken") == []
    assert loaded("Owner,Broken") == ["colorsys"], "what is not installed is told by the turn that needs it"
    assert loaded("Mcp") == ["mcp"]
    assert loaded("Anthropic") == ["anthropic"]
    assert loaded("Plain", "model") == ["anthropic"], "a server of models stands in for what has none"


class Odd(Agent[None]):
    """Declares what it should not."""

    backend: ClassVar[Any] = type("Backend", (), {"imports": ["colorsys", 7]})
    tools: ClassVar[Any] = 7


def test_what_a_class_declares_wrongly_is_left_to_the_first_turn(caplog: pytest.LogCaptureFixture) -> None:
    preload(NodeSettings(node_id="n1", agents={"Odd": Odd}))
    Odd.backend.imports = ("no_such_module", 7)
    caplog.set_level(logging.DEBUG)
    preload(NodeSettings(node_id="n1", agents={"Odd": Odd}))
    assert "a module is not loaded" in caplog.text


AGENTS = """
from agentmesh.agent import Agent, Idle, Init
from agentmesh_node.backends.scripted import ScriptedBackend

class Own(ScriptedBackend):
    imports = ("slow_to_import",)

class Slow(Agent[dict]):
    backend = Own

    async def init_agent(self, options):
        return Init({})

    async def handle_response(self, ref, response, state):
        return Idle(state)
"""


def test_a_node_is_ready_when_that_is_done(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    (tmp_path / "slow_agents.py").write_text(AGENTS)
    (tmp_path / "slow_to_import.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.done').touch()\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, env=env) as mesh:
            await mesh.start("node", "n1", "--agents", str(tmp_path / "slow_agents.py"))
            assert await asyncio.to_thread((tmp_path / "slow_to_import.done").exists)

    run(main())
