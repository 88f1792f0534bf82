"""`--model`: the server of models that speaks for the agents of a node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agentmesh.budget import Prices
from agentmesh.errors import BackendError, BadRequest, MeshError
from agentmesh_node.backends.api import protocols
from agentmesh_node.backends.model_server import report
from agentmesh_node.backends.model_server.agents import STAND_IN
from agentmesh_node.backends.model_server.local import LOCAL, LocalModel
from agentmesh_node.backends.model_server.named import model_server
from agentmesh_node.process.signals import EXIT_FAILED, EXIT_OK, report_error
from agentmesh_node.settings import ModelServer, NodeSettings
from agentmesh_node.turns.budget_meter import prices_of


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
) -> tuple[NodeSettings, list[Callable[[], Coroutine[Any, Any, None]]]]:
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
    return _with(settings, local.server), [local.keep]


async def check(settings: NodeSettings) -> None:
    """Make one real call of each backend on an API that the classes of a node's agents name, or that its server gives them.

    Raises:
        BackendError: one has failed: the message has the setting to change.
    """
    server = settings.model
    names = {cls.backend if isinstance(cls.backend, str) else "" for cls in settings.agents.values()}
    if server is not None and STAND_IN in names:
        names.add("openai" if server.chat or server.responses else "anthropic")
    rows = await asyncio.to_thread(report.reachable, prices_of(), server)
    rows = [row for row in rows if row.backend in names]
    for row in await report.checked(rows, server, model=server.model if server is not None else None):
        if row.checked is not None and not row.checked.ok:
            raise BackendError(f"--check: {row.backend}: {row.checked.message}", details={"reason": row.checked.reason})


def models(model: str | None, name: str | None, *, check: bool, as_json: bool) -> int:
    """Print which backends and models agents have here. Returns the exit code: 1 where a call that was made has failed."""
    try:
        makes_sense(model, name if model is not None else None, hosts=True)
        prices = prices_of()
        rows = asyncio.run(_reported(prices, model, name, check=check))
    except MeshError as error:
        return report_error(error)
    text = msgspec.json.encode(rows).decode() if as_json else report.table(rows)
    print(text)  # noqa: T201
    return EXIT_FAILED if any(row.checked is not None and not row.checked.ok for row in rows) else EXIT_OK


async def _reported(prices: Prices, model: str | None, name: str | None, *, check: bool) -> list[report.ReachableModel]:
    async with contextlib.AsyncExitStack() as stack:
        settings, _ = await settled(stack, NodeSettings(node_id="models", agents={}), model, name)
        server = settings.model
        rows = await asyncio.to_thread(report.reachable, prices, server)
        return await report.checked(rows, server, model=name or (server.model if server else None)) if check else rows


def _with(settings: NodeSettings, server: ModelServer) -> NodeSettings:
    """The settings with this server, which the node's labels name unless they say something else by these names."""
    labels = {"model": server.model, "model_server": server.address, **settings.labels}
    return msgspec.structs.replace(settings, model=server, labels=labels)


def shown(settings: NodeSettings) -> str:
    """The model, for the line that says that a process is ready."""
    server = settings.model
    return "" if server is None else f"; model {server.model} at {server.address}"
