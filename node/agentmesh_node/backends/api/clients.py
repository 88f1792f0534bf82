"""An SDK's client: one for all agents of an event loop, made when first used and closed when no agent uses it.

Importing an SDK takes seconds; it is done in a thread, and only in processes that use it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

NO_KEY = "no-key"
"""Sent where an address is given and no key: servers of one's own mostly ask for none, and the SDKs insist on one."""
SERVER_KEY = "MESH_MODEL_KEY"
"""The variable with the key of the server that `--model` names."""


def server_key() -> str:
    """The key for the server that `--model` names: its own variable's alone, so that no other server's key is sent there."""
    return os.environ.get(SERVER_KEY) or NO_KEY


class Closable(Protocol):
    """What is closed when nobody uses it."""

    async def close(self) -> None: ...


class _Shared[C: Closable]:
    """A loop's client, and how many agents use it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.client: C | None = None
        self.users = 0


class Clients[C: Closable]:
    """The clients of one SDK, by event loop."""

    def __init__(self, make: Callable[[], C]) -> None:
        """`make` makes a client; it is called in a thread, and may raise `BackendError`."""
        self.make = make
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared[C]] = WeakKeyDictionary()

    def of_this_loop(self) -> _Shared[C]:
        """That of the running event loop."""
        return self._by_loop.setdefault(asyncio.get_running_loop(), _Shared())


class Lease[C: Closable]:
    """One agent's use of a client."""

    def __init__(self, clients: Clients[C]) -> None:
        self._clients = clients
        self._shared: _Shared[C] | None = None

    async def client(self) -> C:
        """The client.

        Raises:
            BackendError: the SDK is not installed, or there are no credentials.
        """
        shared = self._clients.of_this_loop()
        async with shared.lock:
            if shared.client is None:
                shared.client = await asyncio.to_thread(self._clients.make)
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
