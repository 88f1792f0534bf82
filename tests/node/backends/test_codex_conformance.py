"""The codex backend against the suite that third parties run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.backend import Backend, Room
from agentmesh.testing import BackendConformance
from agentmesh_node.backends.codex.backend import CodexBackend
from agentmesh_node.backends.codex.rollout import MemoryStore
from fakes.responses import Call, Reply, ResponsesServer, Seen, Text, say, shell
from node.backends.codex import KEY, KEY_NAME, options
from node.backends.test_codex_turns import Librarian

pytestmark = pytest.mark.processes


def model(body: dict[str, Any]) -> Reply:
    """Runs a command and a tool, then answers."""
    seen = Seen(body, {})
    prompt = seen.texts("user")[-1]
    if prompt == "fail":
        return Reply(status=400)
    if prompt == "endless":
        return Reply((Text("well"),), end="open")
    if len(seen.outputs()) == 2 * seen.texts("user").count(prompt):
        return say(f"you said {prompt}")
    return Reply((Text("a moment"), shell("echo x"), Call("look_up", {"word": prompt})))


class TestCodex(BackendConformance):
    prompts = ("hello",)
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _surroundings(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        with ResponsesServer(model) as fake:
            monkeypatch.setenv(KEY_NAME, KEY)
            self.fake, self.place, self.store = fake, tmp_path, MemoryStore()
            yield

    def backend(self) -> Backend:
        room = Room("coder", "life", str(self.place))
        return CodexBackend(Librarian(), options(self.fake), room=room, store=self.store)
