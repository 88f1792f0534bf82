"""One process of the mesh, from its signals to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.tasks import first_of
from agentmesh.errors import MeshError, NotPermitted, RequestError, ServerTooOld, StreamMissing, TlsFailed, Unavailable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_SERVER, EXIT_NOT_PERMITTED, EXIT_INTERRUPTED = 0, 1, 2, 5, 6, 130
YOUNG = 10_000
"""New objects after which the garbage collector checks the new ones."""
log = logging.getLogger("agentmesh.process")


class StopSignal:
    """Waits for SIGTERM or SIGINT.

    Before `ready` a signal ends the process at once, because there is nothing to drain. After `ready` the first signal ends
    `stop`, and a second one ends the process without waiting any longer.
    """

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._ready = False
        self.called_off = False
        """SIGTERM came before `ready`: nothing had been begun, so the process ends in order."""
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def ready(self, line: str) -> None:
        """Print `line` on stdout: from now on the process does its work."""
        self._ready = True
        settle_memory()
        print(line, flush=True)  # noqa: T201 - the command's output

    async def stop(self, *parts: asyncio.Task[None]) -> None:
        """Return when a signal says that the process must end, or when one of `parts` has ended; its error is raised here."""
        await first_of(self._stop, *parts)
        for part in parts:
            if part.done():
                part.result()

    def _signalled(self, number: signal.Signals) -> None:
        if self._ready and not self._stop.is_set():
            self._stop.set()
        elif self._main is not None:
            self.called_off = self.called_off or (number == signal.SIGTERM and not self._ready)
            self._main.cancel()


def settle_memory() -> None:
    """Spare the garbage collector work.

    The objects made so far, mostly modules, last as long as the process: they are not collected again. And a turn makes some
    hundred short-lived objects, which are freed without the collector: it need not run after every few turns.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def run(main: Callable[[StopSignal], Coroutine[Any, Any, None]], *, called_off: int = EXIT_OK) -> int:
    """Run `main` to its end on a loop of its own (uvloop's where it is installed) and return the process's exit code.

    An error of the mesh becomes one sentence on stderr; any other is a defect and keeps its traceback.

    Args:
        called_off: the exit code where SIGTERM comes before `ready`. A process that serves is then stopped in order, and a
            service manager that stops it must not take that for a failure; a verb that has not done its work has failed.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_with_signals(main, called_off))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except MeshError as error:
        return report_error(error)


async def _with_signals(main: Callable[[StopSignal], Coroutine[Any, Any, None]], called_off: int) -> int:
    told = StopSignal()
    asyncio.get_running_loop().set_exception_handler(_unhandled)
    try:
        await main(told)
    except asyncio.CancelledError:
        if not told.called_off:
            raise
        return called_off
    return EXIT_OK


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody was there to take. A look-up of a name goes on when the attempt to connect is given up that has begun it, and
    then fails for nobody: the attempts themselves have told of it."""
    if isinstance(context.get("exception"), socket.gaierror):
        log.debug("a name that nobody waits for any more does not resolve: %s", context["exception"])
    else:
        loop.default_exception_handler(context)


def report_error(error: MeshError) -> int:
    """Print the error on stderr, and return its exit code."""
    print(f"mesh: {error.message}", file=sys.stderr, flush=True)  # noqa: T201
    log.debug("the process ends", exc_info=error)
    if isinstance(error, NotPermitted):
        return EXIT_NOT_PERMITTED
    if isinstance(error, RequestError):
        return EXIT_USAGE
    if isinstance(error, StreamMissing):
        return EXIT_FAILED  # the server is there, and has no mesh
    return EXIT_NO_SERVER if isinstance(error, Unavailable | ServerTooOld | TlsFailed) else EXIT_FAILED


def default_id() -> str:
    """An id for a node or a supervisor without one: the host's name and a few random letters."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().partition(".")[0]).strip("-")[:48]
    return f"{host or 'host'}-{SYSTEM.token(2)}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - an extra

        return uvloop.new_event_loop
    return None
