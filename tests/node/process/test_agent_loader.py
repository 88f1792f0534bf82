"""Loading agents from modules and files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.agent import state_type
from agentmesh.errors import InvalidAgent
from agentmesh_node.process.agent_loader import load_agents

AGENTS = """
from __future__ import annotations
import msgspec
from agentmesh import Agent, Idle, Init
class State(msgspec.Struct):
    seen: int = 0
class {kind}(Agent[State]):
    async def init_agent(self, options):
        return Init(State())
    async def handle_response(self, ref, response, state):
        return Idle(state)
class _Base(Agent[State]):
    pass
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def write(directory: Path, name: str, kind: str) -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(AGENTS.format(kind=kind))
    return path


def test_modules_files_and_lists_of_them(tmp_path: Path) -> None:
    write(tmp_path, "first_agents.py", "Coder")
    write(tmp_path, "team/__init__.py", "Lead")
    write(tmp_path, "team/second.py", "Reader")
    third = write(tmp_path / "else where", "third.py", "Writer")
    kinds = load_agents(["first_agents,team.second", "team", str(third)], directory=tmp_path)
    assert sorted(kinds) == ["Coder", "Lead", "Reader", "Writer"]
    assert kinds["Writer"].__module__ == "third"
    assert state_type(kinds["Coder"]).__name__ == "State"
    again = load_agents(["first_agents.py"], directory=tmp_path)
    assert again["Coder"] is kinds["Coder"]


def test_a_file_named_like_a_known_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    kinds = load_agents([str(write(tmp_path, "json.py", "Coder"))])
    assert list(kinds) == ["Coder"]
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty_agents", "x = 1", "defines no agents"),
        ("broken_agents", "def (", "cannot be imported: SyntaxError"),
        (
            "raising_agents",
            "raise RuntimeError('no key')",
            r"cannot be imported: RuntimeError: no key \(raising_agents.py, line 1\)",
        ),
        (
            "misusing_agents",
            "from agentmesh import tool\n\ntool(effect='twice')",
            r"not 'twice' \(misusing_agents.py, line 3\)",
        ),
        ("needy_agents", "import not_installed_here", "No module named 'not_installed_here'"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    for source in (name, f"{name}.py"):
        with pytest.raises(InvalidAgent, match=message):
            load_agents([source], directory=tmp_path)
        sys.modules.pop(name, None)


FAMILY = """
import abc
from typing import Any
from agentmesh import Agent, Idle, Init
class Base(Agent[Any]):
    async def init_agent(self, options):
        return Init(None)
class Coder(Base):
    async def handle_response(self, ref, response, state):
        return Idle(state)
class Abstract(Coder, abc.ABC):
    @abc.abstractmethod
    def speciality(self): ...
class Slow(Coder):
    pass
"""


@pytest.mark.case(481)
def test_base_classes_are_no_kinds_and_what_lacks_a_callback_is_refused(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    assert sorted(load_agents(["family"], directory=tmp_path)) == ["Coder", "Slow"]
    (tmp_path / "bases.py").write_text(FAMILY.partition("class Coder")[0])
    with pytest.raises(InvalidAgent, match="Base has no handle_response"):
        load_agents(["bases"], directory=tmp_path)
    heir = "from agentmesh import Idle\nfrom bases import Base\nclass Heir(Base):\n    def handle_response(self, *given): ...\n"
    (tmp_path / "heirs.py").write_text(heir)
    assert list(load_agents(["bases,heirs"], directory=tmp_path)) == ["Heir"]
    with pytest.raises(InvalidAgent, match="Base: only base classes"):
        load_agents(["bases"], directory=tmp_path)


def test_absent_sources_and_two_agents_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidAgent, match="there is no module 'nowhere'"):
        load_agents(["nowhere"], directory=tmp_path)
    with pytest.raises(InvalidAgent, match=r"there is no file .*nowhere\.py"):
        load_agents(["nowhere.py"], directory=tmp_path)
    write(tmp_path, "one_agents.py", "Coder")
    write(tmp_path, "two_agents.py", "Coder")
    with pytest.raises(InvalidAgent, match="both define an agent Coder"):
        load_agents(["one_agents", "two_agents"], directory=tmp_path)


@pytest.mark.case(450)
def test_tools_that_may_outlast_the_watchdog_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "agents.py", "Slow")
    text = path.read_text().replace(
        "class Slow(Agent[State]):",
        "from agentmesh import agent_tool, tool\n@tool(timeout_s=90)\ndef dig(): ...\n@tool\ndef look(): ...\n"
        "class Slow(Agent[State]):\n    watchdog_s = 60\n    tools = (dig, look, agent_tool('boss'))",
    )
    path.write_text(text)
    load_agents([str(path)])
    (said,) = [record.getMessage() for record in caplog.records]
    assert "Slow: these tools may take longer" in said and said.endswith(
        "(60 s), so their calls are cut short before it: dig (90 s), ask_boss (600 s)"
    )
