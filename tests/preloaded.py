"""Processes of the tests that need not import anything: they are forked from one that has imported it all.

`python -m agentmesh_node` and `mesh` spend most of their start importing modules, half a second of processor time, and the tests
start more than a thousand of them. So each test process keeps one that has done so and does nothing but fork (`serve`): the child
gets arguments, environment, input and output of its own, runs the same `main`, and ends as any Python process does. A test that
kills, stops or waits for it notices no difference, but for its command line.

It works where there are pidfds, on Linux; elsewhere, and for any other program, tests start processes in the usual way.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

NODE = "agentmesh_node.__main__"
"""The hosting verbs: its `main` runs them."""
MESH = "agentmesh_client.cli.main"
"""`mesh`."""
MODULES = (
    NODE,
    MESH,
    "agentmesh_client.cli.admin",
    "agentmesh_client.cli.agents",
    "agentmesh_client.cli.asks",
    "agentmesh_client.cli.dead",
    "agentmesh_node.process.main",
    "agentmesh_node.process.agent_loader",
    "agentmesh_node.host.node",
    "agentmesh_node.supervisor.supervisor",
    "agentmesh_node.backends.scripted",
    "agentmesh_node.telemetry.otel",
    "agentmesh_node.telemetry.logs",
    "agentmesh.edge.nats_client",
    "uvloop",
)
"""What every node, supervisor or command imports sooner or later."""
AVAILABLE = hasattr(os, "pidfd_open") and hasattr(os, "fork")
_MOST = 1 << 18
"""Bytes of a request or an answer: an environment fits well."""


class Forker:
    """This process's own preloaded one."""

    _mine: Self | None = None

    def __init__(self, modules: Sequence[str] = MODULES, env: Mapping[str, str] | None = None) -> None:
        """
        Args:
            modules: what is imported at once.
            env: of the preloaded process, where it must not be that of this one.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.codes: dict[int, int] = {}
        """The exit codes of those that have ended, by process id."""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=env,
            )

    @classmethod
    def mine(cls) -> Self:
        """It, started when it is first needed. It ends with this process, whose end of the socket closes then."""
        if cls._mine is None:
            cls._mine = cls()
        return cls._mine

    def start(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes],
        stderr: IO[bytes] | None = None,
        program: str = NODE,
        cwd: Path | None = None,
        modules: Sequence[str] = (),
    ) -> ForkedProcess:
        """Run `python -m program *arguments`.

        Args:
            stdin: nothing by default.
            stderr: by default it goes to `stdout`.
            modules: what is imported before, once for all later processes.
        """
        request = {
            "program": program,
            "arguments": list(arguments),
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "modules": list(modules),
        }
        with open(os.devnull, "rb") as nothing:
            streams = (stdin or nothing, stdout, stderr or stdout)
            socket.send_fds(self._socket, [json.dumps(request).encode()], [stream.fileno() for stream in streams])
        while True:
            answer = self._answer(0)
            if "started" in answer:
                self.codes.pop(answer["started"], None)  # of another, long ago: the system gives its numbers again
                return ForkedProcess(self, answer["started"])

    def look(self) -> None:
        """Take note of those that have ended."""
        while True:
            try:
                self._answer(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def wait(self, pid: int, timeout: float | None) -> int:
        """The exit code of `pid`, once it has ended.

        Raises:
            TimeoutError: it has not within `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while pid not in self.codes:
                self._socket.settimeout(None if end is None else max(1e-3, end - time.monotonic()))
                self._answer(0)
        finally:
            self._socket.settimeout(None)
        return self.codes[pid]

    def _answer(self, flags: int) -> dict[str, int]:
        data = self._socket.recv(_MOST, flags)
        assert data, "the preloaded process has ended"
        answer: dict[str, int] = json.loads(data)
        if "ended" in answer:
            self.codes[answer["ended"]] = answer["code"]
        return answer


class ForkedProcess:
    """One process, as `subprocess.Popen` shows one."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self.pid = pid
        self._forker = forker

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        self._forker.look()
        return self._forker.codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within `timeout` seconds.
        """
        try:
            return self._forker.wait(self.pid, timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0) from None

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Be sure that it has ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()


# --- the preloaded process ------------------------------------------------------------------------------------------
def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork on request and report who has ended. Returns in the children only: what they are to run."""
    pidfds: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fd)
                    _report(requests, pidfds.pop(key.fd))
                    os.close(key.fd)
                    continue
                data, fds, _flags, _address = socket.recv_fds(requests, _MOST, 3)
                if not data:  # those who asked are gone
                    os._exit(0)
                request: dict[str, Any] = json.loads(data)
                for name in request["modules"]:
                    importlib.import_module(name)
                assert threading.active_count() == 1, "a process with threads cannot be copied"
                pid = os.fork()
                if pid == 0:
                    for fd in pidfds:
                        os.close(fd)
                    requests.close()
                    request["streams"] = fds
                    return request
                for fd in fds:
                    os.close(fd)
                pidfd = os.pidfd_open(pid)
                pidfds[pidfd] = pid
                selector.register(pidfd, selectors.EVENT_READ)
                requests.send(json.dumps({"started": pid}).encode())


def _report(requests: socket.socket, pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    requests.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def become(request: dict[str, Any]) -> None:
    """Take on what a process is given at its start."""
    for number, fd in enumerate(request["streams"]):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request["cwd"], *(path for path in paths if path)]  # as `python -m` has it
    sys.argv = [request["program"], *request["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(fd: int, modules: Sequence[str]) -> int:
    """The preloaded process, and each that it becomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; what they started they end
    sys.path.pop(0)  # the folder of this file: no process of the mesh has it
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("agentmesh_node.turns.agent_factory").backend_class("scripted")  # it looks through all packages
    gc.collect()
    gc.freeze()
    request = serve(socket.socket(fileno=fd))
    become(request)
    return int(importlib.import_module(request["program"]).main(request["arguments"]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
