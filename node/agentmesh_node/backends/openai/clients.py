"""The SDK's client (`agentmesh_node.backends.api.clients`)."""

from __future__ import annotations

import os
from functools import cache, partial
from typing import TYPE_CHECKING

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.clients import NO_KEY, Clients, server_key
from agentmesh_node.backends.openai.failures import failure

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def _make(address: str | None = None) -> AsyncOpenAI:
    try:
        import httpx2  # noqa: PLC0415
        import openai  # noqa: PLC0415 - more than a second
    except ImportError:
        raise BackendError(
            "the openai backend needs an extra: install agentmesh[openai]",
            details={"reason": "not_installed", "retryable": False},
        ) from None
    own = NO_KEY if os.environ.get("OPENAI_BASE_URL") and not os.environ.get("OPENAI_API_KEY") else None
    try:
        # Retries have one owner: the mesh.
        if address is not None:  # what the environment has for another server is not for this one
            client = openai.AsyncOpenAI(base_url=address, api_key=server_key(), max_retries=0)
            client.organization = client.project = None
            return client
        return openai.AsyncOpenAI(api_key=own, max_retries=0)
    except httpx2.InvalidURL:
        raise failure("bad_address", "OPENAI_BASE_URL is no address") from None
    except openai.OpenAIError:
        raise failure("no_credentials", "there are no credentials for the API") from None


CLIENTS = Clients(_make)


@cache
def clients_of(address: str) -> Clients[AsyncOpenAI]:
    """Clients of the server at this address (`agentmesh_node.settings.ModelServer`)."""
    return Clients(partial(_make, address))


def secrets(client: AsyncOpenAI) -> tuple[str, ...]:
    """Texts that must not show anywhere: the client's credentials."""
    key = client.api_key
    return (key,) if isinstance(key, str) and len(key) >= 8 else ()
