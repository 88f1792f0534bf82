"""`--model`: what it may be given, and what a node is told of it (case 740)."""

from __future__ import annotations

import contextlib

import pytest

from agentmesh.agent import Agent
from agentmesh.errors import BackendError, BadRequest
from agentmesh_node.process.model_option import check, makes_sense, settled, shown
from agentmesh_node.settings import ModelServer, NodeSettings
from fakes.messages import FakeMessages, Refusal
from fakes.model_paths import CHAT, COMPLAINT, MODELS, Given, ModelPaths, listing
from support import run

pytestmark = [pytest.mark.case(740), pytest.mark.processes]


@pytest.mark.parametrize(
    ("model", "name", "hosts", "said"),
    [
        (None, "m", True, "--model-name chooses one of the models of a server"),
        ("local", "m", True, "--model-name chooses one of the models of a server"),
        ("local", None, False, "--model local is for `mesh up`"),
        (
            "loca",
            None,
            True,
            "'loca' is no address of a server of models: write http://HOST:PORT, or https://HOST/v1, or `local`",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    model: str | None, name: str | None, hosts: bool, said: str
) -> None:
    with pytest.raises(BadRequest, match=r"--model") as error:
        makes_sense(model, name, hosts=hosts)
    assert said in error.value.message


@pytest.mark.parametrize(("model", "name"), [(None, None), ("local", None), ("http://h", None), ("http://h", "m")])
def test_what_makes_sense_is_let_through(model: str | None, name: str | None) -> None:
    makes_sense(model, name, hosts=True)


def test_the_nodes_labels_and_its_ready_line_name_the_server() -> None:
    settings = NodeSettings(node_id="n1", agents={}, labels={"model": "mine", "gpu": "yes"})

    async def check() -> None:
        with ModelPaths({CHAT: Given(400, COMPLAINT), MODELS: listing("m")}) as server:
            async with contextlib.AsyncExitStack() as stack:
                served, beside = await settled(stack, settings, server.url, None)
                assert beside == []
                assert served.labels == {"model": "mine", "model_server": f"{server.url}/v1", "gpu": "yes"}
                assert shown(served) == f"; model m at {server.url}/v1"
                assert await settled(stack, settings, None, None) == (settings, [])
                assert shown(settings) == ""

    run(check())


class Scripted(Agent[None]):
    backend = "scripted"


class OnMessages(Agent[None]):
    backend = "anthropic"


@pytest.mark.case(745)
def test_a_check_calls_what_the_agents_have_and_says_what_to_set() -> None:
    async def called(fake: FakeMessages, *kinds: type[Agent[None]], served: bool = True) -> list[str]:
        server = ModelServer(model="m", messages=fake.url, chat=f"{fake.url}/v1", models=("m", "other")) if served else None
        await check(NodeSettings(node_id="n1", agents={kind.__name__: kind for kind in kinds}, model=server))
        return [call.path for call in fake.calls]

    with FakeMessages(["yes"]) as fake:
        assert run(called(fake, Scripted, served=False)) == [], "a script is no model"
        assert run(called(fake, Scripted, OnMessages)) == ["/v1/messages", "/v1/chat/completions"]
        assert {call.body["model"] for call in fake.calls} == {"m"}
        fake.play([Refusal(status=401, kind="authentication_error", message="invalid key")])
        with pytest.raises(BackendError, match=r"--check: anthropic: the API refused: invalid key; check the credentials"):
            run(called(fake, OnMessages))
