"""The backends whose server is LiteLLM: each of its cells in the table of docs/backends.md is played, and the suite for backends
passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Backend
from agentmesh.testing import BackendConformance
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.api.protocols import ask
from agentmesh_node.backends.openai import OpenAIBackend
from fakes.messages import FakeMessages
from node.backends.case_table import CASES, LITELLM, Row, cells, rows_of
from node.backends.litellm_proxy import MISSING, PROGRAM, START_S, proxy
from node.backends.test_conformance import Calculator, model
from node.backends.test_each_case import KEY, OF_MESSAGES, Doubler, played, word
from support import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(START_S + 300),
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
]
MODEL = "m"


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeMessages]:
    with FakeMessages() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(fake: FakeMessages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; that program takes its time to start."""
    with proxy(fake.url, tmp_path_factory.mktemp("litellm"), MODEL) as url:
        yield url


@pytest.fixture(autouse=True)
def there(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ANTHROPIC", gateway), ("OPENAI", f"{gateway}/v1")):
        monkeypatch.setenv(f"{name}_BASE_URL", value)
        monkeypatch.setenv(f"{name}_API_KEY", KEY)


def backend_of(row: Row, agent: Agent[Any], attempts: int = 1) -> Backend:
    options = {"model": MODEL, "attempts": attempts}
    if row[0] == "anthropic":
        return AnthropicBackend(agent, options)
    return OpenAIBackend(agent, options | ({"api": "responses"} if row[1] == "Responses" else {}))


def test_each_cell_behind_litellm_is_what_happens(fake: FakeMessages, gateway: str) -> None:
    spoken = run(ask(gateway, None), 60)
    assert set(spoken.addresses) == {"messages", "chat", "responses"}
    assert [one.name for one in spoken.models] == [MODEL]
    found = {}
    for row in rows_of(LITELLM):
        for case in CASES:
            fake.play(list(OF_MESSAGES[case]))
            found[(*row, case)] = word(case, run(played(backend_of(row, Doubler()), case), 60))
    assert found == {key: said for key, said in cells().items() if key[2] == LITELLM}
    assert {call.path for call in fake.calls} == {"/v1/chat/completions"}


class Behind(BackendConformance):
    """Of a row."""

    row: Row
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _script(self, fake: FakeMessages) -> None:
        fake.play(model)

    def backend(self) -> Backend:
        return backend_of(self.row, Calculator(), attempts=3)


class TestMessages(Behind):
    row = ("anthropic", "Messages", LITELLM)


class TestChat(Behind):
    row = ("openai", "Chat Completions", LITELLM)


class TestResponsesBehind(Behind):
    row = ("openai", "Responses", LITELLM)
