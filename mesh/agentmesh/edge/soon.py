"""Publishes that call back with their acknowledgement instead of waiting for it: for what every turn stores."""

from __future__ import annotations

from collections.abc import Callable

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.jetstream import Stored, Uncertain, acknowledged, conditions, unanswered
from agentmesh.edge.transport import Headers, Message, Transport


def store_soon(
    t: Transport,
    subject: str,
    data: bytes,
    stored: Callable[[Stored | Exception], None],
    *,
    headers: Headers | None = None,
    expected: int | None = None,
    msg_id: str | None = None,
    rollup: bool = False,
    timeout: float = 5.0,
) -> bool:
    """`store` without a task that waits: `stored` gets what `store` returns, or would have raised once the message was sent,
    in the loop callback in which the acknowledgement arrives (`Transport.call`).

    Returns: False if it cannot be sent at once: nothing was sent, and `stored` is never called.

    Raises:
        TooLarge: nothing was sent.
    """

    def answered(reply: Message | Exception) -> None:
        if type(reply) is Message:
            try:
                result: Stored | Exception = acknowledged(reply, subject)
            except EDGE_ERRORS as error:
                result = error
            except Exception as error:  # noqa: BLE001 - the callback must be called whatever the reply is
                result = Uncertain(f"the answer for {subject} cannot be read: {error!r}")
        else:
            result = unanswered(reply, subject)  # type: ignore[arg-type]  # a message is told apart above
        stored(result)

    fields = conditions(headers, expected, msg_id, None, rollup)
    return t.call(subject, data, headers=fields, timeout=timeout, answered=answered)
