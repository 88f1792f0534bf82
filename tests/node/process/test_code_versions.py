"""The version of the code of a kind: what is part of it, and what is not."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmesh_node.process import code_versions as tested
from agentmesh_node.process.agent_loader import load_agents
from agentmesh_node.process.code_versions import code_versions

AGENT = """from agentmesh import Agent


class Kind(Agent):
    def init_agent(self, options):
        return None

    def handle_response(self, response):
        return None
"""


@pytest.fixture
def load() -> Iterator[Callable[..., str | None]]:
    """The version of the kind `Kind` of a source in a folder, with the modules loaded anew."""
    before, paths = set(sys.modules), list(sys.path)

    def forget() -> None:
        for name in set(sys.modules) - before:
            del sys.modules[name]
        sys.path[:] = paths
        importlib.invalidate_caches()

    def version(folder: Path, source: str) -> str | None:
        try:
            return code_versions(load_agents([source], directory=folder)).get("Kind")
        finally:
            forget()

    yield version
    forget()


def package(folder: Path, name: str = "team") -> Path:
    inner = folder / name / "parts"
    inner.mkdir(parents=True)
    for place in (inner.parent, inner):
        (place / "__init__.py").write_text("")
    (inner / "coder.py").write_text(AGENT)
    (inner.parent / "helpers.py").write_text("x = 1\n")
    return inner.parent


@pytest.mark.case(715)
def test_a_package_has_one_version_wherever_it_lies(tmp_path: Path, load: Callable[..., str | None]) -> None:
    one, other = package(tmp_path / "one"), package(tmp_path / "other")
    version = load(tmp_path / "one", "team.parts.coder")
    assert version is not None and len(version) == 12
    assert load(tmp_path / "other", "team.parts.coder") == version
    assert load(tmp_path / "one", "team/parts/coder.py") is not None
    (one / "notes.txt").write_text("no source")
    (one / "__pycache__").mkdir(exist_ok=True)
    (one / "__pycache__" / "old.py").write_text("byte code lies here")
    os.utime(one / "helpers.py", (0, 0))
    assert load(tmp_path / "one", "team.parts.coder") == version, "no times, no byte code, nothing but sources"
    (other / "helpers.py").write_text("x = 2\n")
    assert load(tmp_path / "other", "team.parts.coder") != version, "another part of the package is another version"
    (other / "helpers.py").rename(other / "more.py")
    (other / "more.py").write_text("x = 1\n")
    assert load(tmp_path / "other", "team.parts.coder") != version, "so is another name"


@pytest.mark.case(715)
def test_a_module_in_no_package_is_its_file_alone(tmp_path: Path, load: Callable[..., str | None]) -> None:
    (tmp_path / "lone_agents.py").write_text(AGENT)
    (tmp_path / "other_script.py").write_text("x = 1\n")
    version = load(tmp_path, "lone_agents")
    assert version is not None and load(tmp_path, "lone_agents.py") == version
    (tmp_path / "other_script.py").write_text("x = 2\n")
    assert load(tmp_path, "lone_agents") == version
    (tmp_path / "lone_agents.py").write_text(AGENT + "\n")
    assert load(tmp_path, "lone_agents") != version


@pytest.mark.case(715)
def test_what_is_too_large_or_has_no_file_has_no_version(
    tmp_path: Path, load: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path)
    assert code_versions({"Odd": type("Odd", (), {"__module__": "nowhere"})}) == {}
    monkeypatch.setattr(tested, "MOST_FILES", 2)
    assert load(tmp_path, "team.parts.coder") is None
    monkeypatch.setattr(tested, "MOST_FILES", 100)
    monkeypatch.setattr(tested, "MOST_BYTES", 10)
    assert load(tmp_path, "team.parts.coder") is None
