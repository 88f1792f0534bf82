"""`--model`: what it may be given, and what a node is told of it (case 740)."""

from __future__ import annotations

import contextlib

import pytest

from agentmesh.errors import BadRequest
from agentmesh_node.process.model_option import makes_sense, settled, shown
from agentmesh_node.settings import NodeSettings
from fakes.model_paths import CHAT, COMPLAINT, MODELS, Given, ModelPaths, listing
from support import run

pytestmark = pytest.mark.case(740)


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
