"""What goes wrong in turns of the codex backend: the model server, the network, the program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.tools import tool
from agentmesh_node.backends.codex import notifications
from fakes.responses import Call, Reply, ResponsesServer, Text, say
from node.backends.codex import KEY, KEY_NAME, backend, play, processes, program
from support import run

pytestmark = pytest.mark.processes

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def fake() -> Iterator[ResponsesServer]:
    with ResponsesServer() as server:
        yield server


WRONG = {
    "limited": (Reply.limited(0.1), "rate_limited", True),
    "key": (Reply(status=401), "unauthenticated", False),
    "overloaded": (Reply(status=503), "overloaded", True),
    "cut": (Reply((Text("half"),), end="cut"), "stream_broken", True),
    "garbage": (Reply((Text("half"),), end="garbage"), "stream_broken", True),
    "limit in the stream": (
        Reply(end="failed", failure={"code": "rate_limit_exceeded", "message": "Please try again in 1.5s"}),
        "rate_limited", True,
    ),
    "context": (Reply(end="failed", failure={"code": "context_length_exceeded", "message": "too long"}), "too_long", False),
    "quota": (Reply(end="failed", failure={"code": "insufficient_quota", "message": "pay"}), "spend_limit", False),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_the_model_server_does_wrong_has_a_reason_and_a_hint(what: str, fake: ResponsesServer, tmp_path: Path) -> None:
    reply, reason, retryable = WRONG[what]
    fake.script = [reply]

    async def main() -> None:
        made = backend(tmp_path, fake)
        events, _ = await play(made, await made.start_session(), "hello")
        data = events[-1].data
        assert (events[-1].kind, data["reason"], data["retryable"]) == ("error", reason, retryable)
        assert ("retry_after_s" in data) == retryable
        if what == "limit in the stream":
            assert data["retry_after_s"] == 1.5

    run(main(), PATIENCE_S)


@pytest.mark.case(407)
def test_an_answer_that_broke_begins_anew_and_says_so(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply((Text("half of an answer"),), end="cut"), say("whole")]

    async def main() -> None:
        made = backend(tmp_path, fake, stream_retries=3)
        events, _ = await play(made, await made.start_session(), "hello")
        assert events[-1].data.get("text") == "whole", events[-1]
        at = next(at for at, event in enumerate(events) if event.data.get("restart"))
        assert events[at].data["retry"]["reason"] == "stream_broken"
        assert "".join(event.data["text"] for event in events[at:] if event.kind == "text") == "whole"

    run(main(), PATIENCE_S)


@pytest.mark.case(408)
def test_a_gateway_that_cools_down_is_outlasted(fake: ResponsesServer, tmp_path: Path) -> None:
    told = {"type": "rate_limit_error", "message": "No deployments available"}
    fake.script = [Reply(status=429, failure=told), Reply(status=429, failure=told), say("now")]

    async def main() -> None:
        made = backend(tmp_path, fake, limit_retries=3)
        events, _ = await play(made, await made.start_session(), "hello")
        assert events[-1].data.get("text") == "now", events[-1]
        assert [event.data["retry"]["attempt"] for event in events if "retry" in event.data] == [2, 3]
        assert fake.requests[-1].texts("user") == ["hello"]

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setitem(notifications.REASONS, "rateLimitExceeded", ("rate_limited", 0.1))
        run(main(), PATIENCE_S)


@pytest.mark.case(407)
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("request (9124 tokens) exceeds the available context size (8192 tokens)", "too_long"),
        ("you sent nonsense", "bad_request"),
        ("triggering Azure OpenAI's content management policy", "refused"),
    ],
)
def test_a_complaint_of_the_provider_is_told_without_its_json(
    fake: ResponsesServer, tmp_path: Path, message: str, reason: str
) -> None:
    fake.script = [Reply(status=400, failure={"type": "invalid_request_error", "code": 400, "message": message})]

    async def main() -> None:
        made = backend(tmp_path, fake)
        events, _ = await play(made, await made.start_session(), "hello")
        assert (events[-1].data["reason"], events[-1].data["message"]) == (reason, message)

    run(main(), PATIENCE_S)


@pytest.mark.case(401)
@pytest.mark.case(402)
def test_an_answer_that_was_cut_says_so_and_runs_no_tool(fake: ResponsesServer, tmp_path: Path) -> None:
    made_calls = []

    @tool(effect="once")
    async def pay(amount: int) -> str:
        """Pay."""
        made_calls.append(amount)
        return "paid"

    class Payer(Agent[Any]):
        tools = (pay,)

    async def main() -> None:
        made = backend(tmp_path, fake, Payer())
        fake.script = [Reply((Text("I pay"), Call("pay", '{"amount": 5'))), say("done")]
        events, _ = await play(made, await made.start_session(), "hello")
        assert events[-1].data.get("text") == "done"
        assert any("parse" in text or "EOF" in text for text in fake.requests[-1].outputs())
        fake.script = [Reply((Text("half"),), end="incomplete")]
        events, _ = await play(made, await made.start_session(), "hello")
        assert (events[-1].data["reason"], events[-1].data["text"]) == ("max_tokens", "half")
        assert made_calls == []

    run(main(), PATIENCE_S)


def test_a_limit_that_passes_is_waited_for(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply.limited(1), say("now")]

    async def main() -> None:
        made = backend(tmp_path, fake, stream_retries=3)
        events, _ = await play(made, await made.start_session(), "hello")
        assert events[-1].data.get("text") == "now", events[-1]
        assert fake.calls == 2

    run(main(), PATIENCE_S)


def test_a_provider_that_cannot_be_reached_ends_the_turn_in_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        made = backend(tmp_path, "http://127.0.0.1:9/v1", unreachable_s=0.5, stream_retries=5)
        events, _ = await play(made, await made.start_session(), "hello")
        assert (events[-1].data["reason"], events[-1].data["retryable"]) == ("connection", True)

    run(main(), PATIENCE_S)


HALF_WAY = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        path = os.environ["CODEX_HOME"] + "/sessions/t.jsonl"
        result = {"thread": {"id": "t", "path": path}, "turn": {"id": "u"}}
        print(json.dumps({"id": message["id"], "result": result}), flush=True)
    if message["method"] == "turn/start":
"""
BROKEN = {
    "garbage": ("print('this is no JSON', flush=True); __import__('time').sleep(600)", "bad_output"),
    "no object": ("print('[1]', flush=True); __import__('time').sleep(600)", "bad_output"),
    "ends at once": ("__import__('sys').exit(7)", "crashed"),
    "says nothing": ("__import__('sys').stdin.read()", "start_timeout"),
    "refuses": ('print(\'{"id": 1, "error": {"message": "no"}}\', flush=True); __import__(\'time\').sleep(600)', "codex_refused"),
    "garbage half-way": (HALF_WAY + "        print('}{', flush=True)", "bad_output"),
    "dies half-way": (HALF_WAY + "        print('it hurts', file=sys.stderr); sys.exit(3)", "crashed"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_program_that_does_not_speak_as_codex_does_is_an_error(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reason = BROKEN[what]
    program(tmp_path / "codex-fake", source, monkeypatch)

    async def main() -> None:
        made = backend(tmp_path / "files", "http://127.0.0.1:9/v1", start_timeout_s=1.0 if reason == "start_timeout" else 60.0)
        events, _ = await play(made, await made.start_session(), "hello")
        assert (events[-1].kind, events[-1].data["reason"]) == ("error", reason)
        if what == "dies half-way":
            assert "exit code 3" in events[-1].data["message"]
            assert "it hurts" in events[-1].data["message"]
        assert not processes(str(tmp_path / "codex-fake"))

    run(main(), PATIENCE_S)
