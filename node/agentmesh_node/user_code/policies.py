"""The function by which a class says who may ask it (`callers`), where it cannot hold up the node: a bound for each call.

It is asked for each request between two steps of the turn machine, so the node's loop waits for it: in a thread, and no longer
than `LIMIT_S`. While a call hangs, no further one is begun, so a function that hangs costs the loop that much once and not for
each request. What cannot be decided is refused, for the function is there to keep requests out; its cause is in the log.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from agentmesh.errors import Busy
from agentmesh.identity import Policy
from agentmesh_node.user_code.threads import CaughtError

log = logging.getLogger("agentmesh.node")

LIMIT_S = 1.0
"""Longest time that the loop waits for a decision."""


class BoundedPolicy:
    """A policy whose calls end in time: with what it decides, or with an error. Used on one loop only."""

    def __init__(self, policy: Policy, kind: str, limit_s: float = LIMIT_S) -> None:
        """`kind`: whose policy it is, for the log."""
        self._policy = policy
        self._kind = kind
        self._limit_s = limit_s
        self._hangs: threading.Thread | None = None

    def __call__(self, request: Any) -> bool:
        """What the policy decides.

        Raises:
            Exception: what it raises; also in place of an exit of the process.
            TimeoutError: it does not return in time, or an earlier call still runs.
            Busy: the system can start no more threads.
        """
        if self._hangs is not None and self._hangs.is_alive():
            raise TimeoutError("an earlier call of it has not returned yet")
        self._hangs = None
        found: list[Any] = []

        def decide() -> None:
            try:
                found.append(self._policy(request))
            except BaseException as error:  # noqa: BLE001 - user code may raise anything
                found.append(CaughtError(error))

        thread = threading.Thread(target=decide, name=f"callers {self._kind}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Busy(f"this process can start no more threads: {error}") from error
        thread.join(self._limit_s)
        if not found:
            self._hangs = thread
            log.error(
                "the function `callers` holds up the node, and its requests are refused until it returns: it decides by what the "
                "request says, and waits for nothing",
                extra={"kind": self._kind, "request": request.ref, "seconds": self._limit_s},
            )
            raise TimeoutError(f"it has not returned within {self._limit_s:g} s")
        decided = found[0]
        if not isinstance(decided, CaughtError):
            return decided  # type: ignore[no-any-return]
        failure = decided.error
        log.warning(
            "the function `callers` has failed, and the request is refused",
            exc_info=failure,
            extra={"kind": self._kind, "request": request.ref},
        )
        if isinstance(failure, Exception):
            raise failure
        raise RuntimeError(f"it raised {type(failure).__name__}: {failure}")
