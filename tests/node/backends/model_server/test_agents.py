"""The backend that an agent has on a model server (cases 740, 741)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.model_server.agents import on_server
from agentmesh_node.backends.openai import OpenAIBackend
from agentmesh_node.settings import ModelServer
from fakes.messages import FakeMessages
from node.backends.conversation import Conversation, Plain
from support import run

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine

ALL = ModelServer(model="m", messages="http://h", chat="http://h/v1", responses="http://h/v1", models=("m", "other"))
CHAT = ModelServer(model="m", chat="http://h/v1")
MESSAGES = ModelServer(model="m", messages="http://h")


def made(server: ModelServer, backend: str, **options: Any) -> Any:
    make = on_server(server, backend)
    assert make is not None
    return make(Plain(), options)


@pytest.mark.case(740)
@pytest.mark.parametrize(
    ("server", "backend", "kind"),
    [
        (ALL, "scripted", OpenAIBackend),
        (ALL, "openai", OpenAIBackend),
        (ALL, "anthropic", AnthropicBackend),
        (CHAT, "scripted", OpenAIBackend),
        (MESSAGES, "scripted", AnthropicBackend),
    ],
)
def test_an_agent_keeps_its_backend_and_one_without_a_model_gets_one(server: ModelServer, backend: str, kind: type) -> None:
    assert type(made(server, backend)) is kind


@pytest.mark.case(740)
@pytest.mark.parametrize("backend", ["claude", "codex", "mine"])
def test_a_program_with_a_model_of_its_own_is_left_alone(backend: str) -> None:
    assert on_server(ALL, backend) is None


@pytest.mark.case(740)
def test_the_model_is_one_that_the_server_has_and_bounds_are_held() -> None:
    bounded = ModelServer(
        model="m", messages="http://h", chat="http://h/v1", models=("m", "other"), most_tokens=200, most_answers=8
    )
    for backend in ("anthropic", "openai"):
        options = made(bounded, backend, model="gpt-9", max_tokens=9000)._options
        assert (options.model, options.max_tokens, options.max_iterations) == ("m", 200, 8)
        options = made(bounded, backend, model="other", max_tokens=60, max_iterations=2)._options
        assert (options.model, options.max_tokens, options.max_iterations) == ("other", 60, 2)
    with pytest.raises(BackendError, match="max_tokens"):
        made(bounded, "openai", max_tokens="many")


@pytest.mark.case(740)
def test_of_a_scripts_options_those_count_that_the_model_knows() -> None:
    options = made(ALL, "scripted", script=["hello"], delay_s=1, system="Be short.", max_tokens=60)._options
    assert (options.system, options.max_tokens, options.api) == ("Be short.", 60, "chat")


@pytest.mark.case(740)
@pytest.mark.parametrize(
    ("server", "backend", "options", "way"),
    [
        (CHAT, "anthropic", {}, "the Messages API, which the backend anthropic needs: start the agent with `--backend openai`"),
        (CHAT, "openai", {"api": "responses"}, "Responses: `mesh set AGENT --backend-option api=chat`"),
        (MESSAGES, "openai", {}, "Chat Completions: start the agent with `--backend anthropic`"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_speak_it_says_what_to_set(
    server: ModelServer, backend: str, options: dict[str, Any], way: str
) -> None:
    with pytest.raises(BackendError) as error:
        made(server, backend, **options)
    assert error.value.message == f"the model server at {server.address} does not speak {way}"
    assert error.value.details["reason"] == "bad_options"


@pytest.mark.case(741)
@pytest.mark.parametrize("backend", ["anthropic", "openai"])
@pytest.mark.parametrize("key", [None, "sk-of-this-server"])
def test_no_credential_of_the_environment_goes_to_a_server_that_was_named(
    monkeypatch: pytest.MonkeyPatch, backend: str, key: str | None
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, f"secret-of-another-{name.lower()}")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-gateway: secret-of-another-gateway")
    if key is None:
        monkeypatch.delenv("MESH_MODEL_KEY", raising=False)
    else:
        monkeypatch.setenv("MESH_MODEL_KEY", key)
    with FakeMessages() as fake:
        server = ModelServer(model="m", messages=fake.url, chat=f"{fake.url}/v1", models=("m",))
        served: Any = on_server(server, backend)

        class Served(Conversation):
            made: Any = staticmethod(served)

        async def check() -> None:
            async with Served(Plain) as talk:
                assert (await talk.say("hello"))[-1].kind == "result"

        fake.play(["hello"])
        run(check())
        said = fake.calls[0].headers
        assert "secret-of-another" not in str(said)
        assert (key or "no-key") in str(said)
        assert fake.calls[0].body["model"] == "m"
