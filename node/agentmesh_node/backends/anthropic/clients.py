"""The SDK's client: one for all agents of an event loop, made when first used and closed when no agent uses it.

Importing the SDK takes two seconds; it is done in a thread, and only in processes that use it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.failures import failure

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class _Shared:
    """A loop's client, and how many agents use it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.client: AsyncAnthropic | None = None
        self.users = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = WeakKeyDictionary()


class Lease:
    """One agent's use of the client."""

    def __init__(self) -> None:
        self._shared: _Shared | None = None

    async def client(self) -> AsyncAnthropic:
        """The client.

        Raises:
            BackendError: the SDK is not installed, or there are no credentials.
        """
        shared = _shared.setdefault(asyncio.get_running_loop(), _Shared())
        async with shared.lock:
            if shared.client is None:
                shared.client = await asyncio.to_thread(_make)
            if self._shared is None:
                self._shared = shared
                shared.users += 1
            return shared.client

    async def give_back(self) -> None:
        """End this agent's use of the client. Called twice is harmless."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        async with shared.lock:
            shared.users -= 1
            if shared.users == 0 and shared.client is not None:
                client, shared.client = shared.client, None
                await client.close()


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


def secrets(client: AsyncAnthropic, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Texts that must not show anywhere: the client's credentials, and the values of headers that the environment adds."""
    added = [line.partition(":")[2].strip() for line in environ.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines()]
    return tuple(value for value in (client.api_key, client.auth_token, *added) if value and len(value) >= 8)
