"""Every verb where it cannot work: wrong password, no permission, no server, wrong root; over TCP and TLS.

`python tests/live/refused.py` runs them all and prints the table of docs/operations.md#what-ends-a-command-at-once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from agentmesh.edge.connection import connect
from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects
from certificates import Authority
from commands import completed
from live.mesh import AGENTS
from preloaded import MESH, NODE
from support import Server, free_ports

USERS = """authorization { users: [
  { user: "op", password: "right" }
  { user: "Guest", password: "right", permissions: { publish: { deny: ">" }, subscribe: { allow: ["_INBOX.>"] } } }
] }"""
ROOT = "mesh"
LONG = ("--timeout", "600")
"""For the verbs that wait: what ends them is not their own time-out."""
VERBS: dict[str, tuple[str, ...]] = {
    "start": ("start", "a1", "--kind", "Puppet", *LONG),
    "stop": ("stop", "a1", *LONG),
    "set": ("set", "a1", "--budget", '{"usd": 1}'),
    "ps": ("ps",),
    "nodes": ("nodes",),
    "status": ("status", "a1", *LONG),
    "history": ("history", "a1"),
    "owes": ("owes",),
    "graph": ("graph",),
    "trace": ("trace", "a1/1"),
    "trace rebuild": ("trace", "rebuild", "--otlp", "http://127.0.0.1:9"),
    "dead ls": ("dead", "ls", "a1"),
    "dead show": ("dead", "show", "a1", "1"),
    "dead retry": ("dead", "retry", "a1", "1"),
    "dead purge": ("dead", "purge", "a1", "1"),
    "ask": ("ask", "a1", "hello", *LONG),
    "ask --stream": ("ask", "a1", "hello", "--stream", *LONG),
    "tell": ("tell", "a1", "hello"),
    "poll": ("poll", "a1", "1"),
    "notify": ("notify", "a1", "{}"),
    "cancel": ("cancel", "a1", "1"),
    "reply": ("reply", "a1", "1", "hello"),
    "interrupt": ("interrupt", "a1"),
    "resume": ("resume", "a1"),
    "drain": ("drain", "n1", *LONG),
    "cordon": ("cordon", "n1"),
    "move": ("move", "a1", "n1", "--wait", *LONG),
    "rebalance": ("rebalance",),
    "events": ("events",),
    "events AGENT": ("events", "a1"),
    "doctor": ("doctor",),
    "node": ("node", "--agents", str(AGENTS), "--id", "n1"),
    "supervisor": ("supervisor", "--id", "s1"),
    "setup": ("setup",),
}
HOSTING = ("node", "supervisor", "setup")
CONDITIONS = ("wrong password", "no permission", "no server", "wrong root")


class Place(NamedTuple):
    """A server to which all of it is put, and what a process needs to reach it."""

    server: Server
    scheme: str
    env: Mapping[str, str]
    nowhere: int
    """A port that nobody listens on."""

    def variables(self, condition: str) -> dict[str, str]:
        """The environment of a process under `condition`."""
        user = {"wrong password": "op:wrong", "no permission": "Guest:right", "narrow": "Narrow:right"}.get(condition, "op:right")
        host = self.server.url.removeprefix("nats://")
        if condition == "no server":
            host = f"127.0.0.1:{self.nowhere}"
        root = "other" if condition == "wrong root" else ROOT
        return {**self.env, "MESH_NATS_URL": f"{self.scheme}://{user}@{host}", "MESH_ROOT": root}


@contextlib.contextmanager
def place(folder: Path, *, tls: bool, users: str = USERS) -> Iterator[Place]:
    """A server with the mesh's streams, over TLS or not."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "SSL_"))}
    authority = Authority(folder)
    env = {**clean, "SSL_CERT_FILE": str(authority.path), "PYTHONPATH": str(AGENTS.parents[1])}
    with Server(config=f"{authority.server() if tls else ''}\n{users}") as server:
        yield Place(server, "tls" if tls else "nats", env, free_ports(1)[0])


@contextlib.asynccontextmanager
async def operator(there: Place) -> AsyncIterator[None]:
    """The mesh's streams are made."""
    os.environ["SSL_CERT_FILE"] = there.env["SSL_CERT_FILE"]
    transport = await connect(there.variables("")["MESH_NATS_URL"], name="operator")
    try:
        await ensure(transport, Subjects(ROOT))
        yield
    finally:
        await transport.close()


class Said(NamedTuple):
    """How a command has ended."""

    code: int
    seconds: float
    text: str
    """What it has said on stderr; the last line."""


def command(there: Place, verb: str, condition: str, *, timeout: float) -> Said:
    """Run a verb as a process of its own.

    Raises:
        subprocess.TimeoutExpired: it does not end.
    """
    began = time.monotonic()
    done = completed(NODE if verb in HOSTING else MESH, VERBS[verb], there.variables(condition), timeout=timeout)
    return Said(done.returncode, time.monotonic() - began, done.stderr.strip())


def main() -> None:
    """Print the table."""
    found: dict[tuple[str, str, bool], Said] = {}
    for tls in (False, True):
        with tempfile.TemporaryDirectory() as folder, place(Path(folder), tls=tls) as there:

            async def prepare(there: Place = there) -> None:
                async with operator(there):
                    pass

            asyncio.run(prepare())
            for verb in VERBS:
                for condition in CONDITIONS:
                    # With a wrong root node and supervisor wait for a mesh to be made, and setup would make it.
                    if verb not in HOSTING or condition != "wrong root":
                        found[verb, condition, tls] = command(there, verb, condition, timeout=60)
    print(f"| verb | {' | '.join(CONDITIONS)} |\n|---|{'---|' * len(CONDITIONS)}")
    for verb in VERBS:
        cells = []
        for condition in CONDITIONS:
            if (verb, condition, True) not in found:
                cells.append("-")
                continue
            tcp, tls_ = found[verb, condition, False], found[verb, condition, True]
            codes = str(tcp.code) if tcp.code == tls_.code else f"{tcp.code}/{tls_.code}"
            cells.append(f"{codes}: {tcp.seconds:.2f}, {tls_.seconds:.2f} s")
        print(f"| `{verb}` | {' | '.join(cells)} |")
    for (verb, condition, tls), said in found.items():
        print(f"{verb:14}{condition:16}{'tls' if tls else 'tcp':4}{said.code:4}{said.seconds:6.2f}  {said.text}", file=sys.stderr)


if __name__ == "__main__":
    main()
