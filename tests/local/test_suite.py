"""The suite for backends, with llama.cpp's own server and a real, small model behind them. What it says is another matter."""

from __future__ import annotations

import pytest

from agentmesh.backend import Backend
from agentmesh.testing import BackendConformance
from local.model import INSTALLED, MISSING
from local.test_server_faults import talk, there

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.skipif(not INSTALLED, reason=MISSING)]


class Asked(BackendConformance):
    """In one of the three ways."""

    way: str
    prompts = ("Say hello.", "Again.")
    failing_prompt = "word " * 9000
    patience_s = 110.0

    @pytest.fixture(autouse=True)
    def _model(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        there(monkeypatch, address)

    def backend(self) -> Backend:
        # That server closes a connection that was kept at times just when it is used again: the backend asks once more.
        return talk(self.way, max_tokens=4, attempts=3).backend


class TestMessages(Asked):
    way = "messages"


class TestChatCompletions(Asked):
    way = "chat"


class TestResponses(Asked):
    way = "responses"
