"""The SDK's client (`agentmesh_node.backends.api.clients`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.failures import failure
from agentmesh_node.backends.api.clients import Clients, server_key

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


def _make(address: str | None = None) -> AsyncAnthropic:
    try:
        import anthropic  # noqa: PLC0415 - two seconds
        import httpx2  # noqa: PLC0415
    except ImportError:
        raise BackendError(
            "the anthropic backend needs an extra: install agentmesh[anthropic]",
            details={"reason": "not_installed", "retryable": False},
        ) from None
    try:
        # Retries and spans have one owner each: the mesh.
        make = partial(anthropic.AsyncAnthropic, max_retries=0, open_telemetry={"traces": False, "propagation": False})
        if address is not None:  # what the environment has for another server is not for this one
            others: Any = dict.fromkeys(_added(os.environ), anthropic.omit)
            return make(base_url=address, api_key=server_key(), default_headers=others)
        client = make()
    except httpx2.InvalidURL:
        raise failure("bad_address", "ANTHROPIC_BASE_URL is no address") from None
    except anthropic.AnthropicError as error:
        raise failure("no_credentials", f"the credentials cannot be read: {type(error).__name__}") from None
    if client.api_key is None and client.auth_token is None and client.credentials is None:
        raise failure("no_credentials", "there are no credentials for the API")
    return client


CLIENTS = Clients(_make)


@cache
def clients_of(address: str) -> Clients[AsyncAnthropic]:
    """Clients of the server at this address (`agentmesh_node.settings.ModelServer`)."""
    return Clients(partial(_make, address))


def _added(environ: Mapping[str, str]) -> dict[str, str]:
    """Headers that the environment adds to each request."""
    lines = (line.partition(":") for line in environ.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines())
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def secrets(client: AsyncAnthropic, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Texts that must not show anywhere: the client's credentials, and the values of headers that the environment adds."""
    added = _added(environ).values()
    return tuple(value for value in (client.api_key, client.auth_token, *added) if value and len(value) >= 8)
