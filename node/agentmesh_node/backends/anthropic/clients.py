"""The SDK's client (`agentmesh_node.backends.api.clients`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.failures import failure
from agentmesh_node.backends.api.clients import Clients

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


def _make() -> AsyncAnthropic:
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
        client = anthropic.AsyncAnthropic(max_retries=0, open_telemetry={"traces": False, "propagation": False})
    except httpx2.InvalidURL:
        raise failure("bad_address", "ANTHROPIC_BASE_URL is no address") from None
    except anthropic.AnthropicError as error:
        raise failure("no_credentials", f"the credentials cannot be read: {type(error).__name__}") from None
    if client.api_key is None and client.auth_token is None and client.credentials is None:
        raise failure("no_credentials", "there are no credentials for the API")
    return client


CLIENTS = Clients(_make)


def secrets(client: AsyncAnthropic, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Texts that must not show anywhere: the client's credentials, and the values of headers that the environment adds."""
    added = [line.partition(":")[2].strip() for line in environ.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines()]
    return tuple(value for value in (client.api_key, client.auth_token, *added) if value and len(value) >= 8)
