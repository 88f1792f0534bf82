"""A node that kills itself by SIGKILL at a chosen step: `python doomed.py BEFORE|AFTER SUBJECT[:WORD] node --id n1 ...`.

It dies before it sends, or after it has sent and before it takes the acknowledgement of, the first request or message whose
subject contains SUBJECT and whose body contains WORD. Between any two effects of a record there is such a step.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import Any

from agentmesh.edge.transport import Headers, Message, Transport
from agentmesh_node.__main__ import main as hosting
from agentmesh_node.host.node import Node
from agentmesh_node.process import main as process_main
from support import Faulty


class Doomed(Faulty):
    """A transport that ends its process."""

    def __init__(self, inner: Transport, when: str, where: str) -> None:
        super().__init__(inner)
        self._when = when
        self._subject, _, self._word = where.partition(":")

    def _is_it(self, subject: str, data: bytes) -> bool:
        return self._subject in subject and self._word.encode() in data

    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        doomed = self._is_it(subject, data)
        if doomed and self._when == "BEFORE":
            die()
        await super().publish(subject, data, headers=headers, reply=reply)
        if doomed:
            await self.flush()
            die()

    def send(self, subject: str, data: bytes = b"") -> bool:
        return not self._is_it(subject, data) and super().send(subject, data)  # what is doomed is published, which waits

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        doomed = self._is_it(subject, data)
        if doomed and self._when == "BEFORE":
            die()
        message = await super().request(subject, data, headers=headers, timeout=timeout)
        if doomed:
            die()
        return message


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(when: str, where: str, *arguments: str) -> int:
    vars(process_main)["Node"] = partial(_make, when, where)
    return hosting(arguments)


def _make(when: str, where: str, transport: Transport, *arguments: Any, **named: Any) -> Node:
    return Node(Doomed(transport, when, where), *arguments, **named)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
