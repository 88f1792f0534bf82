"""The child process that runs Claude Code, as a transport of claude-agent-sdk.

The SDK's own transport gives the whole environment of the node to the child, waits up to twenty seconds for a child that must end
now, and lets it outlive a node that is killed. Here the environment is chosen; the credential travels in a pipe of its own, which
the commands that Claude Code runs do not inherit; every secret is struck out of the child's output before anybody reads it; and
the child and its process group are gone when `close` returns.

Importing this module imports the SDK (1.5 s): do it in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claude_agent_sdk import ProcessError, Transport

from agentmesh.edge.tasks import cancel_and_wait

log = logging.getLogger("agentmesh.node")

LAUNCHER = Path(__file__).with_name("launch.py")
LINE_LIMIT = 64 << 20
"""Longest line of the child that is read, in bytes: the mirror of a forked session is one line."""
IN_ORDER_S = 2.0
"""How long a child that has given its result may take to end by itself."""
TERM_S = 2.0
"""How long a child may take to end after SIGTERM, before it is killed."""
ERROR_LINES = 20
"""How many of the child's last lines of standard error are kept."""


class Malformed(Exception):
    """The child wrote a line that is no message."""


class Child(Transport):
    """One run of Claude Code."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        secrets: Sequence[str] = (),
        credential: tuple[str, str] | None = None,
        observe: Callable[[Mapping[str, Any]], None] = lambda message: None,
    ) -> None:
        """
        Args:
            env: the child's whole environment.
            secrets: texts to strike out of the child's output.
            observe: is given each message of the child ahead of anybody else.
            credential: name of the variable that tells the child a file descriptor, and the text that can be read from it once.
        """
        self._command = list(command)
        self._env = dict(env)
        self._cwd = cwd
        self._credential = credential
        self._observe = observe
        self._struck = [form for secret in secrets for form in {secret.encode(), json.dumps(secret)[1:-1].encode()}]
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=ERROR_LINES)
        self._writing = asyncio.Lock()
        self._stopped = False
        self.answered = False
        """Whether the child has given its result: it may then end by itself."""

    @property
    def pid(self) -> int | None:
        """The child's process id, once it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def errors(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(self._tail)

    async def connect(self) -> None:
        """Start the child.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is not None:
            return
        pipe = self._credential_pipe()
        command = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self._command]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                cwd=self._cwd,
                limit=LINE_LIMIT,
                pass_fds=() if pipe is None else (pipe,),
                start_new_session=True,  # processes that it starts can be ended with it
            )
        finally:
            if pipe is not None:
                os.close(pipe)
        self._errors = asyncio.create_task(self._read_errors(), name="claude's standard error")

    def _credential_pipe(self) -> int | None:
        """The reading end of a pipe that holds the credential; its number is put into the environment."""
        if self._credential is None:
            return None
        variable, value = self._credential
        reading, writing = os.pipe()
        try:
            os.write(writing, value.encode())  # far less than a pipe's buffer
        finally:
            os.close(writing)
        self._env[variable] = str(reading)
        return reading

    def strike(self, data: bytes) -> bytes:
        """`data` without the secrets."""
        for secret in self._struck:
            data = data.replace(secret, b"***")
        return data

    async def _read_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line beyond the limit: nothing more is read
            async for line in self._process.stderr:
                text = self.strike(line[:2000]).decode(errors="replace").rstrip()
                if text:
                    self._tail.append(text)
                    log.debug("claude says on standard error: %s", text)

    async def write(self, data: str) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            raise ProcessError("Claude Code is not running")
        async with self._writing:
            try:
                process.stdin.write(data.encode())
                await process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise ProcessError(f"Claude Code takes no more input: {error}") from None

    async def end_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def is_ready(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                raise Malformed(f"Claude Code wrote a line longer than {LINE_LIMIT >> 20} MiB") from None
            if not line:
                break
            message = parsed(self.strike(line))
            if message is not None:
                self.answered = self.answered or message.get("type") == "result"
                self._observe(message)
                yield message
        code = await self._process.wait()
        if not (self.answered or self._stopped):  # otherwise the reader would wait for ever
            raise ProcessError("Claude Code ended", exit_code=code, stderr=self.errors)

    async def close(self) -> None:
        """End the child and the rest of its process group. Takes at most some five seconds; may be called again."""
        process = self._process
        if process is None:
            return
        try:
            if self.answered:
                await self.end_input()
                await _ended(process, IN_ORDER_S)
            if process.returncode is None:
                # SIGTERM, so that it ends the commands that it runs, which have process groups of their own. Its input stays open
                # meanwhile: it would take the end of that for a failure of a tool, and tell the model.
                self._stopped = True
                self._signal(signal.SIGTERM)
                await _ended(process, TERM_S)
        finally:
            # Without a wait, so that even a second cancellation leaves no process behind.
            self._signal(signal.SIGKILL)
            await self.end_input()
            if self._errors is not None:
                self._errors.cancel()
        await _ended(process, TERM_S)
        await cancel_and_wait(self._errors, within_s=TERM_S)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()


def parsed(line: bytes) -> dict[str, Any] | None:
    """The message on a line of output; None if the line is no message.

    Raises:
        Malformed: it begins like a message and is not one.
    """
    if not line.lstrip().startswith(b"{"):
        return None  # some builds write plain notices among the messages
    try:
        message: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"Claude Code wrote what is not JSON: {error}") from None
    return message
