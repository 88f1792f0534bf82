"""How the agents of a node run on its model server: the backend that each has there, and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from agentmesh.agent import Agent
from agentmesh.backend import Backend
from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.backend import AnthropicBackend
from agentmesh_node.backends.anthropic.clients import clients_of as messages_clients
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.backends.openai.backend import OpenAIBackend
from agentmesh_node.backends.openai.clients import clients_of as openai_clients
from agentmesh_node.backends.openai.options import OpenAIOptions
from agentmesh_node.settings import ModelServer

STAND_IN = "scripted"
MOVED = (STAND_IN, "anthropic", "openai")
"""Backends whose agents a model server speaks for. Others are programs with a model of their own, or a class of the user's."""


def on_server(server: ModelServer, backend: str) -> Callable[[Agent[Any], Mapping[str, Any]], Backend] | None:
    """What makes the backend of an agent that has `backend`, on this server; None if the server has nothing to do with it.

    An agent of `anthropic` or `openai` keeps its backend, and with it its conversation. `scripted` stands in for a model, and
    here there is one: such an agent gets `openai`, or `anthropic` where the server speaks nothing else, and of its options those
    that this backend knows, for the others are the script's.
    """
    if backend not in MOVED:
        return None
    return partial(_made, server, backend)


def stand_in(server: ModelServer) -> str:
    """The backend of agents that have none of a model's."""
    return "openai" if server.chat or server.responses else "anthropic"


def _made(server: ModelServer, backend: str, agent: Agent[Any], options: Mapping[str, Any]) -> Backend:
    """
    Raises:
        BackendError: `bad_options`: the server does not speak what the agent's backend and options need.
        InvalidAgent: the agent's tools cannot be used.
    """
    if backend == STAND_IN:
        backend = stand_in(server)
        known = OpenAIOptions if backend == "openai" else AnthropicOptions
        options = {name: value for name, value in options.items() if name in known.__struct_fields__}
    if backend == "anthropic":
        return AnthropicBackend(agent, _options(server, options), clients=messages_clients(_address(server, "messages")))
    api = options.get("api") or ("responses" if server.responses and not server.chat else "chat")
    given = {**_options(server, options), "api": api}
    return OpenAIBackend(agent, given, clients=openai_clients(_address(server, str(api))))


def _address(server: ModelServer, protocol: str) -> str:
    address: str | None = getattr(server, protocol, None)
    if address is not None:
        return address
    if protocol == "messages":
        needed, way = "the Messages API, which the backend anthropic needs", "start the agent with `--backend openai`"
    else:
        other = "responses" if server.responses else "chat"
        spoken = bool(server.responses or server.chat)
        needed = "Chat Completions" if protocol == "chat" else "Responses"
        way = f"`mesh set AGENT --backend-option api={other}`" if spoken else "start the agent with `--backend anthropic`"
    text = f"the model server at {server.address} does not speak {needed}: {way}"
    raise BackendError(text, details={"reason": "bad_options", "retryable": False})


def _options(server: ModelServer, options: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's options, within the server's bounds, with a model that the server has."""
    found = dict(options)
    if found.get("model") not in server.models:
        found["model"] = server.model
    for name, most in (("max_tokens", server.most_tokens), ("max_iterations", server.most_answers)):
        given = found.get(name)
        if most is not None and (given is None or (type(given) is int and given > most)):
            found[name] = most
    return found
