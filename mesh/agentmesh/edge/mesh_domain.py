"""The JetStream domain of a mesh (docs/design/027-the-domain-of-a-mesh.md): how a connection reaches it, and how it learns it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from agentmesh.edge.address import API
from agentmesh.edge.api import domain_of
from agentmesh.edge.transport import Answered, Message
from agentmesh.errors import NotPermitted

LEARN_S = 5.0
"""Wait for the mesh's domain, and pause before it is asked for again."""


def reached_by(api: str, subject: str) -> str:
    """Where `subject` is to be sent, if the mesh's JetStream answers at `api`, in another domain than the server: a leaf node
    lets neither the API nor the registry's subjects through (docs/nats.md#leaf-nodes)."""
    if subject[:1] != "$":
        return subject
    if subject.startswith(f"{API}."):
        return api + subject[len(API) :]
    return f"{api}.{subject}" if subject.startswith("$KV.") else subject


class CallPort(Protocol):
    """`Transport.call`."""

    def __call__(self, subject: str, *, timeout: float, answered: Answered) -> bool: ...


class DomainLearner:
    """Asks one of the mesh's own streams for its domain, and asks again while there is no answer."""

    def __init__(self, stream: str | None, call: CallPort, found: Callable[[str | None], None]) -> None:
        """`stream` is None for a connection that belongs to no mesh. `found` gets what the answers say."""
        self._stream = stream
        self._call = call
        self._found = found
        self.learning = False
        """It has been asked, and there was no answer yet."""
        self._timer: asyncio.TimerHandle | None = None

    def learn(self) -> None:
        """Ask, at connect and after each reconnect: a domain may have been added meanwhile."""
        if self._stream is not None:
            self.learning = self._call(f"{API}.STREAM.INFO.{self._stream}", timeout=LEARN_S, answered=self._on_answer)

    def close(self) -> None:
        """Ask no more."""
        self._stream = None
        if self._timer is not None:
            self._timer.cancel()

    def _on_answer(self, answer: Message | Exception) -> None:
        self.learning = False
        if isinstance(answer, Message):
            with contextlib.suppress(ValueError):
                self._found(domain_of(answer.data))
                return
        if self._stream is None or isinstance(answer, NotPermitted):
            return  # a user who may not ask does not know the domain; the next connection asks again
        # An election, or streams that are yet to be made. What was known stays so until there is an answer.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LEARN_S, self._again)

    def _again(self) -> None:
        self._timer = None
        if not self.learning:
            self.learn()
