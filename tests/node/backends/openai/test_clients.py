"""The client of the openai backend: its key, and when it is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.openai.clients import CLIENTS, secrets
from fakes.messages import FakeMessages
from node.backends.openai_chat import KEY, environment, talk

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def test_without_a_key_a_server_of_ones_own_is_asked_and_the_vendor_is_not(
    fake: FakeMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert talk()[-1].kind == "result"
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(BackendError) as caught:
        talk()
    assert caught.value.details["reason"] == "no_credentials"
    assert "OPENAI_API_KEY" in caught.value.message


def test_the_sdk_is_imported_by_the_first_prompt() -> None:
    program = """
import sys
from agentmesh.agent import Agent
from agentmesh_node.backends.openai import OpenAIBackend
OpenAIBackend(Agent(), {})
assert "openai" not in sys.modules and "httpx2" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_key_is_a_secret_and_the_stand_in_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, "http://127.0.0.1:1/v1")
    assert secrets(CLIENTS.make()) == (KEY,)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert secrets(CLIENTS.make()) == ()
