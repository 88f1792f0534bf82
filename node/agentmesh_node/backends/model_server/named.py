"""The server of models that `--model URL` names, and the model of it that agents get."""

from __future__ import annotations

import os

from agentmesh.errors import BackendError, BadRequest, MeshError
from agentmesh_node.backends.api.clients import SERVER_KEY
from agentmesh_node.backends.api.protocols import Spoken, ask
from agentmesh_node.settings import ModelServer

MOST_NAMED = 10
"""Most models of a server that a message names."""


async def model_server(address: str, name: str | None) -> ModelServer:
    """What is at `address`.

    Args:
        name: the model that agents get (`--model-name`); None takes the only one that there is.

    Raises:
        BadRequest: it is no address, the server speaks nothing that agents understand, or which model is meant is not clear.
        BackendError: it cannot be reached now, or no SDK is there.
    """
    try:
        spoken = await ask(address, os.environ.get(SERVER_KEY))
    except BackendError as error:
        raise _meant(error) from None
    chosen = _chosen(address, spoken, name)
    listed = {one.name: one for one in spoken.models}
    return ModelServer(
        model=chosen,
        messages=spoken.addresses.get("messages"),
        chat=spoken.addresses.get("chat"),
        responses=spoken.addresses.get("responses"),
        models=tuple(listed),
        context=listed[chosen].context if chosen in listed else None,
    )


def _meant(error: BackendError) -> MeshError:
    match error.details.get("reason"):
        case "connection" | "timed_out" | "not_installed":
            return BackendError(f"--model: {error.message}", details=error.details)
        case "unauthenticated":
            return BadRequest(f"--model: {error.message}; set {SERVER_KEY} in this process's environment")
    return BadRequest(f"--model: {error.message}")


def _chosen(address: str, spoken: Spoken, name: str | None) -> str:
    names = [one.name for one in spoken.models]
    if name is not None:
        if names and name not in names:
            raise BadRequest(f"--model-name {name}: {address} has no such model; it has {_shown(names)}")
        return name
    if len(names) == 1:
        return names[0]
    if not names:
        raise BadRequest(f"--model: {address} does not say which models it has; name one by --model-name")
    raise BadRequest(f"--model: {address} has several models; choose one by --model-name: {_shown(names)}")


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
