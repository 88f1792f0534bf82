"""The server that `--model URL` names (case 743): which of its models agents get, and what is said where it cannot be used."""

from __future__ import annotations

import pytest

from agentmesh.errors import BackendError, BadRequest, MeshError
from agentmesh_node.backends.model_server.named import model_server
from fakes.model_paths import CHAT, COMPLAINT, MODELS, Given, ModelPaths, listing
from support import free_ports, run

pytestmark = pytest.mark.case(743)
SPOKEN = {CHAT: Given(400, COMPLAINT)}


def refused(kind: type[MeshError], address: str, name: str | None = None) -> str:
    with pytest.raises(kind) as error:
        run(model_server(address, name))
    return error.value.message


def test_the_only_model_is_taken_with_what_is_known_of_it() -> None:
    with ModelPaths({**SPOKEN, MODELS: listing("small", context_length=4096)}) as server:
        found = run(model_server(server.url, None))
    assert (found.model, found.models, found.context) == ("small", ("small",), 4096)
    assert (found.messages, found.chat, found.responses) == (None, f"{server.url}/v1", None)


def test_of_several_one_must_be_named() -> None:
    names = [f"m{number}" for number in range(12)]
    with ModelPaths({**SPOKEN, MODELS: listing(*names)}) as server:
        assert "choose one by --model-name: m0, m1," in refused(BadRequest, server.url)
        assert refused(BadRequest, server.url).endswith("m9 and 2 more")
        assert "--model-name m99: " in refused(BadRequest, server.url, "m99")
        assert run(model_server(server.url, "m3")).model == "m3"


def test_a_server_that_lists_none_needs_the_name() -> None:
    with ModelPaths(SPOKEN) as server:
        assert "name one by --model-name" in refused(BadRequest, server.url)
        assert run(model_server(server.url, "mine")).model == "mine"


def test_a_missing_key_is_named_by_its_variable() -> None:
    with ModelPaths({}, otherwise=Given(401, {"error": {"message": "no key"}})) as server:
        assert refused(BadRequest, server.url).endswith("no key; set MESH_MODEL_KEY in this process's environment")


def test_a_server_that_is_not_there_is_no_wrong_use() -> None:
    assert refused(BackendError, f"http://127.0.0.1:{free_ports(1)[0]}").startswith("--model: http://127.0.0.1:")
