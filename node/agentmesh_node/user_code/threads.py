"""Plain functions in threads of their own.

The loop's executor is not used: it has only a few threads, which hanging tools would take from the other agents one by one, and
the process would not end before they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Mapping
from typing import Any

from agentmesh.errors import Busy


class CaughtError:
    """An exception of user code, returned as a value: a SystemExit or KeyboardInterrupt must not end the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def in_thread(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    name: str,
    *,
    kind: str = "tool",
    over: Callable[[], None] = lambda: None,
) -> Any:
    """What the function returns, or a `CaughtError` that holds what it raised. Cancelled, this leaves the thread behind, and what
    the function still returns is thrown away.

    Args:
        over: called on the loop when the function has ended, also in a thread that was left behind.

    Raises:
        Busy: the system gives no more threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(value: Any) -> None:
        over()
        if not future.done():
            future.set_result(value)

    def work() -> None:
        try:
            value = context.run(function, **arguments)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            value = CaughtError(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, value)

    try:
        threading.Thread(target=work, name=f"{kind} {name}", daemon=True).start()
    except RuntimeError as error:
        over()
        raise Busy(f"this process can start no more threads: {error}") from error
    return await future
