"""LiteLLM as a real gateway in front of the real model, in `make test-local`: what CI has of it is in front of a fake one
(tests/node/backends/test_behind_litellm.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentmesh.backend import Event
from agentmesh_node.backends.api.protocols import ask
from agentmesh_node.backends.model_server.local import MODEL
from local.model import INSTALLED, MISSING
from local.test_server_faults import WAYS, talk, there
from node.backends import litellm_proxy
from support import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not INSTALLED, reason=MISSING),
    pytest.mark.skipif(litellm_proxy.PROGRAM is None, reason=litellm_proxy.MISSING),
]


@pytest.fixture(scope="module")
def gateway(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with litellm_proxy.proxy(address, tmp_path_factory.mktemp("gateway"), MODEL) as url:
        yield url


def test_it_speaks_all_three_and_names_its_model(gateway: str) -> None:
    spoken = run(ask(gateway, None), 30)
    assert set(spoken.addresses) == {"messages", "chat", "responses"}
    assert [one.name for one in spoken.models] == [MODEL]


@pytest.mark.parametrize("name", WAYS)
def test_a_turn_through_it_has_its_answer_and_its_tokens(gateway: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    there(monkeypatch, gateway)

    async def main() -> list[Event]:
        async with talk(name, max_tokens=30) as conversation:
            return await conversation.say("What is the capital of France? Answer in one sentence.")

    events = run(main(), 110)
    assert events[-1].kind == "result", events[-1].data
    assert "Paris" in events[-1].data["text"]
    assert sum(event.kind == "text" for event in events) > 1, "it streams"
    assert next(event.data for event in events if event.kind == "usage")["output_tokens"] > 0
