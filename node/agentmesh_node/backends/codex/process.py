"""The child process: Codex's app server, which speaks JSON-RPC in lines over its standard input and output.

Why not the Python SDK: it gives the node's whole environment to the child, and holds a thread of the loop's shared pool for each
running turn. Why not `codex exec`: it gives no text as it comes, no error codes, and does not end when its node is killed. The
app server ends when its input ends, and so when the kernel closes a dead node's pipes. It ends the commands that it runs, except
one that it is just starting: on Linux a keeper process between it and the node kills what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError
from agentmesh_node.backends.codex.settings import refused
from agentmesh_node.tools.children import end, ended, kept

log = logging.getLogger("agentmesh.node")

LINE_LIMIT = 64 << 20
"""Longest line of the child that is read, in bytes."""
CLOSE_S = 2.0
"""How long the child may take to end after its input has ended, and again after SIGTERM."""
ERROR_LINES = 20
"""How many of the child's last lines of standard error are kept."""
DECLINED = {"decision": "decline"}
NOT_SUPPORTED = -32601

type Json = dict[str, Any]


class AppServer:
    """One run of Codex. For one task only, except `reply`."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str, secrets: Sequence[str] = ()) -> None:
        """
        Args:
            env: the child's whole environment.
            secrets: texts to strike out of the child's output.
        """
        self._command = list(command)
        self._env = dict(env)
        self._cwd = cwd
        self.strike = striker(secrets)
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=ERROR_LINES)
        self._waiting: deque[Json] = deque()
        """Messages that came while the answer to a request was awaited."""
        self._ids = 0

    @property
    def pid(self) -> int | None:
        """The child's process id, once it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the child and make the protocol's handshake.

        Raises:
            BackendError: it does not start, or breaks the protocol.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *kept(self._command, self._env.get("PATH", os.defpath)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                cwd=self._cwd,
                limit=LINE_LIMIT,
                start_new_session=True,  # a terminal's Ctrl-C is for the node alone
            )
        except OSError as error:
            raise refused("not_installed", f"Codex cannot be started: {error}") from None
        self._errors = asyncio.create_task(self._read_errors(), name="codex's standard error")
        about = {"name": "agentmesh", "title": "agentmesh", "version": "1"}
        await self.call("initialize", {"clientInfo": about, "capabilities": {"experimentalApi": True}})
        await self._send({"method": "initialized"})

    # --- messages -----------------------------------------------------------------------------------------------------
    async def call(self, method: str, params: Json) -> Json:
        """The result of a request.

        Raises:
            BackendError: the request is refused, or the child ends or writes a line that is no message.
        """
        self._ids += 1
        await self._send({"id": self._ids, "method": method, "params": params})
        while True:
            message = await self._read()
            if "method" in message or message.get("id") != self._ids:
                self._waiting.append(message)
                continue
            if "error" in message:
                told = message["error"]
                text = str(told.get("message", told)) if isinstance(told, dict) else str(told)
                raise refused("codex_refused", f"Codex refused {method}: {text}")
            result = message.get("result")
            return result if isinstance(result, dict) else {}

    async def next(self) -> Json:
        """The next notification or request of the child.

        Raises:
            BackendError: as `call`.
        """
        return self._waiting.popleft() if self._waiting else await self._read()

    async def reply(self, to: Any, result: Json | None) -> None:
        """Answer a request of the child; None says that it is not supported."""
        if result is None:
            error = {"code": NOT_SUPPORTED, "message": "nobody is there to answer this"}
            await self._send({"id": to, "error": error})
        else:
            await self._send({"id": to, "result": result})

    async def _send(self, message: Json) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            # One write per message: tasks that reply at the same time do not mix their lines.
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._gone() from None

    async def _read(self) -> Json:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError:
            raise malformed(f"a line longer than {LINE_LIMIT >> 20} MiB") from None
        if not line:
            raise await self._gone()
        try:
            message = json.loads(self.strike(line))
        except (ValueError, RecursionError):
            raise malformed(f"{self.strike(line[:100])!r}, which is not JSON") from None
        if not isinstance(message, dict):
            raise malformed("JSON that is no message")
        return message

    async def _gone(self) -> BackendError:
        """The error for a child that has ended."""
        assert self._process is not None
        await ended(self._process, CLOSE_S)
        if self._errors is not None:
            await asyncio.wait((self._errors,), timeout=CLOSE_S)
        code = self._process.returncode
        last = f": {self._tail[-1]}" if self._tail else ""
        details = {"reason": "crashed", "retryable": True, "exit_code": code}
        return BackendError(f"Codex ended in the middle of a turn (exit code {code}){last}", details=details)

    async def _read_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line beyond the limit: nothing more is read
            async for line in self._process.stderr:
                text = self.strike(line[:2000]).decode(errors="replace").rstrip()
                if text:
                    self._tail.append(text)
                    log.debug("codex says on standard error: %s", text)

    # --- the end ------------------------------------------------------------------------------------------------------
    async def close(self) -> None:
        """End the child and the commands that it runs. Takes at most some five seconds; may be called again."""
        if self._process is None:
            return
        try:
            await end(self._process, CLOSE_S)
        finally:
            if self._errors is not None:
                self._errors.cancel()
        await cancel_and_wait(self._errors, within_s=CLOSE_S)


def striker(secrets: Sequence[str]) -> Callable[[bytes], bytes]:
    """A function that strikes `secrets` out of data, in plain text and in JSON strings."""
    struck = [form for secret in secrets if secret for form in {secret.encode(), json.dumps(secret)[1:-1].encode()}]

    def strike(data: bytes) -> bytes:
        for form in struck:
            data = data.replace(form, b"***")
        return data

    return strike


def malformed(what: str) -> BackendError:
    """The error for a child that wrote what cannot be understood."""
    return BackendError(f"Codex wrote {what}", details={"reason": "bad_output", "retryable": True})
