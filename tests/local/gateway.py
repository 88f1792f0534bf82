"""LiteLLM as a real gateway in front of the real model: `make test-local`, where its program is on the PATH or named by LITELLM.

It is some hundred packages, so it is in no extra: `python -m venv V && V/bin/pip install 'litellm[proxy]==1.108.7'`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.protocols import Spoken, ask
from local.model import INSTALLED, MISSING
from local.test_server_faults import WAYS, talk, there
from support import free_ports, run

PROGRAM = os.environ.get("LITELLM") or shutil.which("litellm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not INSTALLED, reason=MISSING),
    pytest.mark.skipif(PROGRAM is None, reason="no litellm here: put it on the PATH, or name it by LITELLM"),
]
CONFIG = """
model_list:
  - model_name: smollm2
    litellm_params: {{model: openai/smollm2, api_base: "{address}/v1", api_key: none, use_chat_completions_api: true}}
litellm_settings: {{use_chat_completions_url_for_anthropic_messages: true}}
"""
START_S = 240.0


@pytest.fixture(scope="module")
def gateway(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "config.yaml").write_text(CONFIG.format(address=address))
    (port,) = free_ports(1)
    command = (str(PROGRAM), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    with Path(folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
        try:
            run(listening(f"http://127.0.0.1:{port}"), START_S + 10)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def listening(url: str) -> Spoken:
    """What it speaks, once it listens."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                return await ask(url, None)
            except BackendError:
                await asyncio.sleep(0.5)


def test_it_speaks_all_three_and_names_its_model(gateway: str) -> None:
    spoken = run(ask(gateway, None), 30)
    assert set(spoken.addresses) == {"messages", "chat", "responses"}
    assert [one.name for one in spoken.models] == ["smollm2"]


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
