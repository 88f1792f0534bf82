"""What `mesh models` tells of backends and models (case 745)."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentmesh.backend import Event, Stream
from agentmesh.budget import Price, Prices
from agentmesh.errors import BackendError
from agentmesh_node.__main__ import main
from agentmesh_node.backends.model_server import report
from agentmesh_node.backends.model_server.report import ReachableModel, checked, reachable, table
from agentmesh_node.settings import ModelServer
from fakes.messages import FakeMessages, Refusal
from fakes.model_paths import CHAT, COMPLAINT, MODELS, Given, ModelPaths, listing
from support import run

pytestmark = [pytest.mark.case(745), pytest.mark.processes]
SECRET = "sk-never-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "MESH_MODEL_KEY"):
        monkeypatch.delenv(name, raising=False)


def by_backend(rows: list[ReachableModel]) -> dict[str, ReachableModel]:
    return {row.backend: row for row in rows}


def test_each_backend_is_told_with_its_key_price_and_server_and_never_the_key() -> None:
    rows = reachable(Prices(), None, {"OPENAI_API_KEY": SECRET, "ANTHROPIC_BASE_URL": "http://gateway"})
    found = by_backend(rows)
    assert set(found) >= {"scripted", "anthropic", "openai", "claude", "codex"}
    assert (found["anthropic"].key, found["anthropic"].key_set, found["anthropic"].server) == (
        "ANTHROPIC_API_KEY", False, "http://gateway",
    )  # fmt: skip
    assert (found["openai"].key_set, found["openai"].model, found["openai"].input_usd) == (True, "gpt-5.4", 2.5)
    assert found["scripted"].key is None
    assert SECRET not in table(rows) + msgspec.json.encode(rows).decode()
    assert "OPENAI_API_KEY set" in table(rows)
    assert "ANTHROPIC_API_KEY not set" in table(rows)
    rows = reachable(Prices(), None, {"OPENAI_BASE_URL": f"http://me:{SECRET}@gateway/v1"})
    assert by_backend(rows)["openai"].server == "http://gateway/v1"
    assert SECRET not in table(rows) + msgspec.json.encode(rows).decode()


def test_with_a_server_its_models_are_told_where_it_speaks_the_backends_protocol() -> None:
    server = ModelServer(model="a", chat="http://h/v1", models=("a", "b"), context=4096)
    rows = reachable(Prices({}, {"a": Price(0, 0)}), server, {"MESH_MODEL_KEY": SECRET})
    of_api = [row for row in rows if row.backend in ("anthropic", "openai")]
    assert [(row.backend, row.model, row.context, row.input_usd) for row in of_api] == [
        ("openai", "a", 4096, 0),
        ("openai", "b", None, None),
    ]
    assert {(row.key, row.key_set) for row in of_api} == {("MESH_MODEL_KEY", True)}


def call(monkeypatch: pytest.MonkeyPatch, script: list[Any], backend: str, **more: Any) -> ReachableModel:
    """One row, after its call to a server that answers so."""
    with FakeMessages(script) as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
        monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
        (row,) = run(checked([ReachableModel(backend=backend, model="m", **more)], None))
        return row


@pytest.mark.parametrize("backend", ["anthropic", "openai"])
def test_a_call_that_is_answered_is_ok(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    row = call(monkeypatch, ["yes"], backend)
    assert row.checked is not None
    assert row.checked.ok
    assert f"ok, {row.checked.ms} ms" in table([row])


@pytest.mark.parametrize(
    ("refusal", "setting"),
    [
        (
            Refusal(status=401, kind="authentication_error", message=f"invalid key {SECRET}"),
            "credentials in the node's environment",
        ),
        (Refusal(status=404, kind="not_found_error", message="model: m"), "--backend-option model="),
        (Refusal(status=400, message="prompt is too long: 9000 tokens > 8000 maximum"), "compact_at"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_setting(monkeypatch: pytest.MonkeyPatch, refusal: Refusal, setting: str) -> None:
    row = call(monkeypatch, [refusal], "anthropic")
    assert row.checked is not None
    assert not row.checked.ok
    last = table([row]).splitlines()[-1]
    assert last.startswith("anthropic: ")
    assert setting in last
    assert SECRET not in last


def test_a_missing_key_and_a_context_that_is_too_small_cost_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    (row,) = run(checked([ReachableModel(backend="anthropic", model="m")], None))
    assert row.checked is not None
    assert row.checked.reason == "no_credentials"
    assert "ANTHROPIC_API_KEY" in (row.checked.message or "")
    small = call(monkeypatch, [], "anthropic", context=4096)
    assert small.checked is not None
    assert small.checked.reason == "too_long"
    assert "--backend-option max_tokens=2048" in (small.checked.message or "")


def test_a_call_leaves_nothing_open_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Broken:
        """A backend whose events break off, and the events."""

        options = SimpleNamespace(max_tokens=None)

        async def start_session(self) -> None: ...

        async def terminate_session(self, session: None) -> None: ...

        async def prompt(self, *_: Any) -> Stream:
            return Stream(self, None)

        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> Event:
            raise BackendError("it broke off", details={"reason": "server_error"})

        async def aclose(self) -> None:
            closed.append(True)

    monkeypatch.setattr(report, "_backend", lambda *_: Broken())
    (row,) = run(checked([ReachableModel(backend="anthropic", model="m")], None))
    assert row.checked is not None and row.checked.reason == "server_error"
    assert closed == [True]


def test_the_command_prints_json_and_exits_by_its_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with ModelPaths({CHAT: Given(400, COMPLAINT), MODELS: listing("m")}) as server:
        assert main(["models", "--model", server.url, "-o", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [(row["backend"], row["model"]) for row in rows if row["server"] == f"{server.url}/v1"] == [("openai", "m")]
        assert main(["models", "--model", server.url, "--check"]) == 1
        assert "openai: the API refused: " in capsys.readouterr().out
    assert main(["models", "--model", "nowhere"]) == 2
    assert "is no address of a server of models" in capsys.readouterr().err
