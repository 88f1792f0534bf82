"""`mesh models`: the backends and models that this node can reach, and one real call of each (case 745).

It never tells a key, only the name of its variable and whether that is set.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Backend, Turn
from agentmesh.budget import Prices
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BackendError, InvalidAgent
from agentmesh_node.backends.anthropic.options import DEFAULT_MODEL as CLAUDE
from agentmesh_node.backends.api.clients import SERVER_KEY
from agentmesh_node.backends.api.protocols import shown
from agentmesh_node.backends.model_server.agents import on_server
from agentmesh_node.backends.openai.options import DEFAULT_MODEL as GPT
from agentmesh_node.settings import ModelServer

PROMPT = "Answer with the word yes and nothing else."
CHECK_S = 90.0
"""Longest that the call of one backend may take."""
_REACHED = frozenset({"max_tokens"})
"""Reasons of a failure that only a model that was reached can give."""


class Known(msgspec.Struct, frozen=True):
    """What the mesh knows of a backend of its own."""

    module: str = ""
    """What its extra installs."""
    keys: tuple[str, ...] = ()
    """Variables, one of which holds the key."""
    variable: str = ""
    """That with the server's address."""
    address: str = ""
    """The server's, where the variable names none."""
    model: str = ""


KNOWN = {
    "scripted": Known(),
    "anthropic": Known(
        "anthropic", ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"), "ANTHROPIC_BASE_URL", "https://api.anthropic.com", CLAUDE
    ),
    "openai": Known("openai", ("OPENAI_API_KEY",), "OPENAI_BASE_URL", "https://api.openai.com/v1", GPT),
    "claude": Known(
        "claude_agent_sdk", ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"), "ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
    ),
    "codex": Known("codex_cli_bin", ("OPENAI_API_KEY",), "", "https://api.openai.com/v1"),
}  # fmt: skip
CALLED = ("anthropic", "openai")
"""Backends that `--check` calls. Others run a program: their first turn tells."""


class ModelCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one real call ended."""

    ok: bool
    ms: int = 0
    reason: str | None = None
    message: str | None = None
    """What is wrong, with the setting to change."""


class ReachableModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that agents of this node can have, by one backend."""

    backend: str
    model: str | None = None
    """None where the backend has one of its own."""
    server: str | None = None
    installed: bool = True
    key: str | None = None
    """The variable that holds the key, or would hold it; None where none is asked for."""
    key_set: bool = False
    input_usd: float | None = None
    """US dollars for a million tokens; None where no price is known."""
    output_usd: float | None = None
    context: int | None = None
    checked: ModelCall | None = None


def reachable(prices: Prices, server: ModelServer | None, environ: Mapping[str, str] = os.environ) -> list[ReachableModel]:
    """What agents of this node can have. Asks nobody.

    Args:
        server: the one that `--model` names.
    """
    found: list[ReachableModel] = []
    for name in sorted({entry.name for entry in entry_points(group="agentmesh.backends")}):
        known = KNOWN.get(name, Known())
        if server is not None and name in CALLED:
            if (made := _served(name, server)) is None:
                continue  # agents of this backend are refused there
            rows: Iterable[ReachableModel] = (
                ReachableModel(
                    backend=name, model=model, server=made, key=SERVER_KEY, key_set=bool(environ.get(SERVER_KEY)),
                    installed=_installed(known), context=server.context if model == server.model else None,
                )
                for model in server.models or (server.model,)
            )  # fmt: skip
        else:
            key = next((key for key in known.keys if environ.get(key)), None)
            rows = (
                ReachableModel(
                    backend=name, model=known.model or None, server=shown(environ.get(known.variable) or known.address) or None,
                    installed=_installed(known), key=key or next(iter(known.keys), None), key_set=key is not None,
                ),
            )  # fmt: skip
        found += [_priced(row, prices) for row in rows]
    return found


def _installed(known: Known) -> bool:
    return not known.module or importlib.util.find_spec(known.module) is not None


def _served(backend: str, server: ModelServer) -> str | None:
    """Where `--model` has this backend ask; None where it has not."""
    if backend == "anthropic":
        return server.messages
    return (server.chat or server.responses) if backend == "openai" else None


def _priced(row: ReachableModel, prices: Prices) -> ReachableModel:
    price = prices.find(row.model) if row.model else None
    return row if price is None else msgspec.structs.replace(row, input_usd=price.input, output_usd=price.output)


async def checked(
    rows: list[ReachableModel], server: ModelServer | None, *, model: str | None = None, limit_s: float = CHECK_S
) -> list[ReachableModel]:
    """The rows, each of a backend on an API with how one real call ended. They are made one after the other.

    Args:
        model: asked for in place of each backend's own.
        limit_s: longest that one call may take.
    """
    found = []
    for row in rows:
        told = row
        if row.backend in CALLED and (server is None or model is None or row.model == model):
            chosen = model or row.model
            told = msgspec.structs.replace(
                row, model=chosen, checked=await _call(row.backend, chosen, server, row.context, limit_s)
            )
        found.append(told)
    return found


class _Asker(Agent[None]):
    """Has no tools, so that nothing runs."""


async def _call(backend: str, model: str | None, server: ModelServer | None, context: int | None, limit_s: float) -> ModelCall:
    began = SYSTEM.monotonic()
    options = {"attempts": 1, "max_iterations": 1, **({"model": model} if model else {})}
    try:
        async with asyncio.timeout(limit_s):
            made = _backend(backend, options, server)
            try:
                _fits(made, context)
                last = await _last_event(made)
            finally:
                await made.terminate_session(None)
    except TimeoutError:
        return ModelCall(False, reason="timed_out", message=f"no answer in {limit_s:g} s; look at the server")
    except (BackendError, InvalidAgent) as error:
        return ModelCall(False, reason=str(error.details.get("reason", error.code)), message=error.message)
    if last.get("reason") is None or last["reason"] in _REACHED:
        return ModelCall(True, ms=round((SYSTEM.monotonic() - began) * 1000))
    return ModelCall(False, reason=str(last["reason"]), message=str(last.get("message", "")))


def _backend(name: str, options: dict[str, Any], server: ModelServer | None) -> Any:
    """
    Raises:
        BackendError: it is not to be had.
    """
    served = None if server is None else on_server(server, name)
    if served is not None:
        return served(_Asker(), options)
    found = next(iter(entry_points(group="agentmesh.backends", name=name)))
    return found.load()(_Asker(), options)


def _fits(made: Any, context: int | None) -> None:
    """
    Raises:
        BackendError: the model's context has not even room for the longest answer that is allowed.
    """
    most = made.options.max_tokens
    if context is not None and most is not None and most > context:
        text = (
            f"the context of {made.options.model} is {context} tokens, fewer than max_tokens ({most}) allows for an answer: "
            f"`mesh set AGENT --backend-option max_tokens={context // 2}`, or a model with more room"
        )
        raise BackendError(text, details={"reason": "too_long", "retryable": False})


async def _last_event(backend: Backend) -> dict[str, Any]:
    """The data of the event that ends one turn. However that ends, nothing of it stays open."""
    stream = await backend.prompt(await backend.start_session(), PROMPT, Turn("check", "1", 1))
    last: dict[str, Any] = {"reason": "server_error", "message": "nothing came"}
    try:
        async for event in stream.events:
            if event.terminal:
                last = event.data if event.kind == "error" else {}
    finally:
        close = getattr(stream.events, "aclose", None)  # an iterator need not have one
        if close is not None:
            await close()
    return last


def table(rows: list[ReachableModel]) -> str:
    """The rows for people, and below them what is wrong, a line for each."""
    columns = ("BACKEND", "MODEL", "SERVER", "KEY", "USD IN/OUT", "CONTEXT", "CHECK")
    cells = [_cells(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (columns, *cells)
    ]
    wrong = [f"{row.backend}: {row.checked.message}" for row in rows if row.checked is not None and not row.checked.ok]
    return "\n".join([*lines, *wrong])


def _cells(row: ReachableModel) -> tuple[str, ...]:
    key = "-" if row.key is None else f"{row.key} {'set' if row.key_set else 'not set'}"
    price = "-" if row.input_usd is None else f"{row.input_usd:g}/{row.output_usd:g}"
    if not row.installed:
        said = f"agentmesh[{row.backend}] not installed"
    elif row.checked is None:
        said = "-"
    else:
        said = f"ok, {row.checked.ms} ms" if row.checked.ok else row.checked.reason or "failed"
    return (row.backend, row.model or "-", row.server or "-", key, price, str(row.context or "-"), said)
