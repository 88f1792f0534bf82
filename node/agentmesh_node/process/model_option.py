"""`--model`: the server of models that speaks for the agents of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import Any

import msgspec

from agentmesh.errors import BackendError, BadRequest
from agentmesh_node.backends.api import protocols
from agentmesh_node.backends.model_server.local import LOCAL, LocalModel
from agentmesh_node.backends.model_server.named import model_server
from agentmesh_node.settings import ModelServer, NodeSettings


def makes_sense(model: str | None, name: str | None, *, hosts: bool) -> None:
    """
    Args:
        model, name: what `--model` and `--model-name` were given.
        hosts: whether this verb may run a model of its own.

    Raises:
        BadRequest: they cannot be meant.
    """
    if name is not None and model in (None, LOCAL):
        raise BadRequest("--model-name chooses one of the models of a server: name that by --model URL")
    if model == LOCAL and not hosts:
        raise BadRequest("--model local is for `mesh up`, which runs the model beside the node; name a server here: --model URL")
    if model is not None and model != LOCAL:
        try:
            protocols.roots(model)
        except BackendError as error:
            raise BadRequest(f"--model: {error.message}, or `local`") from None


async def settled(
    stack: contextlib.AsyncExitStack, settings: NodeSettings, model: str | None, name: str | None
) -> tuple[NodeSettings, list[Coroutine[Any, Any, None]]]:
    """The settings with the server that `--model` names, and what is to be run beside the node. A local one ends with `stack`.

    Raises:
        BackendError: it cannot be used now.
        BadRequest: it can never be used as it is named.
    """
    if model is None:
        return settings, []
    if model != LOCAL:
        return _with(settings, await model_server(model, name)), []
    local = await stack.enter_async_context(LocalModel())
    return _with(settings, local.server), [local.keep()]


def _with(settings: NodeSettings, server: ModelServer) -> NodeSettings:
    """The settings with this server, which the node's labels name unless they say something else by these names."""
    labels = {"model": server.model, "model_server": server.address, **settings.labels}
    return msgspec.structs.replace(settings, model=server, labels=labels)


def shown(settings: NodeSettings) -> str:
    """The model, for the line that says that a process is ready."""
    server = settings.model
    return "" if server is None else f"; model {server.model} at {server.address}"
