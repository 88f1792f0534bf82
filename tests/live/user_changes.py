"""Users come and go, by file and reload, while allowed ones ask and processes are killed; and what must hold of it.

    PYTHONPATH=tests python -m live.user_changes --changes 500 --servers 3 --seed 1 [--signed]

Each change is one of a new user, a user that is removed while it is connected, and a new password (with `--signed` other
credentials) for one that is. It is made as an operator makes it: the file that servers include is written, with the user's file,
and each server is told to read it again; servers need not hear of a new user who is signed. Callers hold to one rule: a request
without an answer is sent again with its id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

import agentmesh_client
from agentmesh.access.roles import Role
from agentmesh.access.static_conf import User, rendered
from agentmesh.edge.connect_settings import connect_settings
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.login import Login
from agentmesh.edge.signed_folder import create_signed
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import MeshError, NotPermitted
from agentmesh_client import Mesh
from commands import completed
from live.mesh import AGENTS, Host
from preloaded import NODE
from support import Cluster, Server, eventually, run

PROCESSES: tuple[tuple[str, Role], ...] = (
    ("setup", "setup"), ("node", "node"), ("supervisor", "supervisor"), ("operator", "operator")
)  # fmt: skip
WORKERS = tuple(f"team-a.w{number}" for number in range(3))
STAY = tuple(f"stays{number}" for number in range(3))
"""Callers that are never removed; their passwords are rotated as others'."""
MOST = 5
"""Callers besides."""
PERIOD_S = 0.15
"""Between two asks of one caller: some hundred prompts an agent, not thousands."""
ANSWER_S = 3.0
"""After which a caller repeats an ask."""
PROMISED_S = 1.0
"""Within which a removed user is to be cut off."""
NO_RETRY = frozenset(("bad_request", "not_found", "duplicate"))


class Entry(NamedTuple):
    """What a client connects with."""

    servers: list[str]
    login: Login


class Users:
    """The file of the servers, and one file of addresses for each user, which has its password."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: dict[str, User] = {}
        self._written = ""
        self.servers: Sequence[Server] = ()
        for name, role in PROCESSES:
            self.add(name, role)
        for name in STAY:
            self.add(name)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.url"

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a process of that user."""
        return {"MESH_NATS_URL": f"@{self._file(name)}"}

    def login(self, name: str) -> Entry:
        """What a client of that user connects with."""
        servers, _, login = connect_settings(environ=self.environment(name))
        return Entry(servers, login)

    def add(self, name: str, role: Role = "caller") -> None:
        """A new user, or a new password for one that there is."""
        password = secrets.token_urlsafe(24)
        agents = ("team-a.",) if role == "caller" else ()
        known = self._users.get(name)
        self._users[name] = User(name, known.role if known else role, password, agents)
        self._write(name)

    def serve(self, servers: Sequence[Server]) -> None:
        """These have read the file."""
        self.servers = servers
        for name in self._users:
            self._write(name)

    def _write(self, name: str) -> None:
        user = f"//{name}:{self._users[name].hashed}@"
        self._file(name).write_text(",".join(server.url.replace("//", user) for server in self.servers))

    def remove(self, name: str) -> Entry:
        """The user is one no more. Returns what it had."""
        had = self.login(name)
        del self._users[name]
        return had

    def seen_as(self, name: str) -> str:
        """How a server names the user of a connection."""
        return name

    def text(self) -> str:
        """The file of the servers."""
        self._written = rendered("mesh", self._users.values())
        return self._written

    async def reload(self) -> None:
        """Have all servers read the file, and return when each that runs has taken it. One that says nothing new is not read."""
        before, text = self._written, self.text()
        if before == text:
            return
        running = [server for server in self.servers if server.up]
        loaded = {server.name: await asyncio.to_thread(_loaded_at, server) for server in running}
        for server in self.servers:
            server.reload(text, instead_of=before)

        def taken() -> bool:
            return all(_loaded_at(server) != loaded[server.name] for server in running)

        await eventually(lambda: asyncio.to_thread(taken), what="the reload of each server")


class SignedUsers(Users):
    """The same with signed users: `mesh access init --jwt`."""

    def __init__(self, folder: Path) -> None:
        self._access = create_signed(folder / "access", root="mesh")
        super().__init__(folder)

    def environment(self, name: str) -> dict[str, str]:
        addresses = ",".join(server.url for server in self.servers)
        return {"MESH_NATS_URL": addresses, "MESH_CREDS": str(self._access.creds(name))}

    def add(self, name: str, role: Role = "caller") -> None:
        """A new user, or another key for one that there is."""
        if any(user.name == name for user in self._access.users):
            if role == "caller":  # those of the mesh's processes are there from the first
                self._access.rotate(name)
        else:
            self._access.add(name, role, ("team-a.",))

    def serve(self, servers: Sequence[Server]) -> None:
        self.servers = servers

    def remove(self, name: str) -> Entry:
        had, kept = self.login(name), self._folder / f"{name}.was"
        shutil.copy(self._access.creds(name), kept)
        self._access.remove(name)
        return had._replace(login=structs.replace(had.login, creds=str(kept)))

    def seen_as(self, name: str) -> str:
        return next(user.public for user in self._access.users if user.name == name)

    def text(self) -> str:
        self._written = self._access.conf.read_text()
        return self._written


def _loaded_at(server: Server) -> str:
    return str(server.monitor("varz")["config_load_time"])


def _connected_as(server: Server, name: str) -> bool:
    page = server.monitor("connz?auth=1&limit=4096")
    return any(connection.get("authorized_user") == name for connection in page["connections"])


class Caller:
    """Somebody who asks one agent again and again, over one connection."""

    def __init__(self, name: str, agent: str, transport: NatsTransport) -> None:
        self.name, self.agent, self.transport = name, agent, transport
        self.answered: list[str] = []
        self.pending: str | None = None
        self.faults: list[str] = []
        self.repeated = 0
        self._going = True
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        number = 0
        while self._going:
            number += 1
            prompt = self.pending = f"{self.name}-{number}"
            while (answer := await self._once(prompt)) is None:
                self.repeated += 1
                await asyncio.sleep(PERIOD_S)
            if answer.get("text") == prompt:
                self.answered.append(prompt)
            else:
                self.faults.append(f"{prompt}: {answer}")
            self.pending = None
            await asyncio.sleep(PERIOD_S)

    async def _once(self, prompt: str) -> dict[str, Any] | None:
        headers = {"Nats-Msg-Id": f"{self.agent}.{prompt}"}
        try:
            reply = await self.transport.request(f"mesh.ask.{self.agent}", prompt.encode(), headers=headers, timeout=ANSWER_S)
        except (Disconnected, RequestTimeout, NoResponders, NotPermitted):
            return None
        answer: dict[str, Any] = json.loads(reply.data)
        code = (answer.get("error") or {}).get("code")
        return None if code is not None and code not in NO_RETRY else answer

    async def end(self) -> None:
        """Let the last ask come to its end."""
        self._going = False
        async with asyncio.timeout(60):
            await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.transport.close()


class Run:
    """One run: changes, faults, and the verdict."""

    def __init__(self, users: Users, folder: Path, seed: int) -> None:
        self._servers, self._folder = users.servers, folder
        self._dice = random.Random(seed)
        self._users = users
        self._callers: dict[str, Caller] = {}
        self._gone: list[Caller] = []
        self._names = 0
        self._hosts: list[Host] = []
        self.cut: list[float] = []
        """Seconds from the signal until a removed user's connection was seen to be gone."""
        self.back: list[float] = []
        """Seconds from the signal until a user with a new password was connected again."""
        self.done: Counter[str] = Counter()
        self.killed: list[str] = []

    async def play(self, changes: int) -> None:
        """Make the changes, and judge."""
        await self._begin()
        by = self._users.environment("operator")
        async with agentmesh_client.connect(by["MESH_NATS_URL"], creds=by.get("MESH_CREDS"), wait_s=30) as operator:
            for agent in WORKERS:
                await operator.start_agent(agent, kind="Recorder", timeout=60)
            for name in STAY:
                await self._connect(name)
            node, server = changes // 3, 2 * changes // 3
            for number in range(changes):
                if number == node:
                    await self._kill_node()
                if number == server:
                    self._kill_server()
                await self._change()
                if number == min(server + 5, changes - 1):
                    await self._start_server()
            await asyncio.gather(*(caller.end() for caller in self._callers.values()))
            await self._judge(operator)

    async def _begin(self) -> None:
        made = await asyncio.to_thread(completed, NODE, ("setup", "--new", "--wait", "60"), self._env("setup"), timeout=90)
        assert made.returncode == 0, made.stderr
        await self._host("supervisor", "s1")
        await asyncio.gather(*(self._host("node", name, "--agents", str(AGENTS)) for name in ("n1", "n2")))

    def _env(self, user: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
        return {**clean, **self._users.environment(user), "PYTHONPATH": str(AGENTS.parents[1])}

    async def _host(self, verb: str, own_id: str, *options: str) -> None:
        host = Host(own_id, self._folder / f"{own_id}.log")
        self._hosts.append(host)
        await host.start(verb, "--id", own_id, *options, env=self._env(verb))

    async def _connect(self, name: str) -> None:
        servers, login = self._users.login(name)
        self._dice.shuffle(servers)
        transport = await connect(servers, name=name, login=login, wait_s=10)
        self._callers[name] = Caller(name, WORKERS[len(self._callers) % len(WORKERS)], transport)

    async def _change(self) -> None:
        others = [name for name in self._callers if name not in STAY]
        what = self._dice.choice(["add", "remove", "rotate"])
        if what == "remove" and not others:
            what = "add"
        if what == "add" and len(others) >= MOST:
            what = "remove"
        self.done[what] += 1
        if what == "add":
            self._names += 1
            name = f"user{self._names}"
            self._users.add(name)
            await self._users.reload()
            await self._connect(name)
            caller = self._callers[name]
            await eventually(lambda: caller.answered, 60, f"the first answer to {name}")
        elif what == "remove":
            await self._remove(self._dice.choice(others))
        else:
            await self._rotate(self._dice.choice(list(self._callers)))

    async def _remove(self, name: str) -> None:
        caller = self._callers.pop(name)
        self._gone.append(caller)
        seen_as = self._users.seen_as(name)
        had = self._users.remove(name)
        clock = asyncio.get_running_loop().time
        was, began = caller.transport.connected, clock()
        reloading = asyncio.create_task(self._users.reload())
        await eventually(lambda: not caller.transport.connected, what=f"the end of the connection of {name}")
        if was:
            self.cut.append(clock() - began)
        await reloading
        # What is promised does not hang on a clock: a server that has taken the change has no connection of that user.
        for server in [one for one in self._servers if one.up]:
            await eventually(lambda server=server: asyncio.to_thread(_nobody, server, seen_as), what=f"{name} gone")
        await caller.close()
        with contextlib.suppress(NotPermitted):
            await (await connect(had.servers, name=name, login=had.login, connect_timeout=10)).close()
            raise AssertionError(f"{name} has been removed, and connects")

    async def _rotate(self, name: str) -> None:
        caller = self._callers[name]
        before = len(caller.answered)
        self._users.add(name)
        clock = asyncio.get_running_loop().time
        began = clock()
        reloading = asyncio.create_task(self._users.reload())
        await eventually(lambda: not caller.transport.connected, what=f"the end of the old connection of {name}")
        await eventually(lambda: caller.transport.connected, 60, f"the new connection of {name}")
        self.back.append(clock() - began)
        await reloading
        await eventually(lambda: len(caller.answered) > before + 1, 60, f"an answer to {name} over the new connection")

    async def _kill_node(self) -> None:
        host = next(host for host in self._hosts if host.id == "n1")
        await host.kill()
        self.killed.append("node n1")
        await self._host("node", "n3", "--agents", str(AGENTS))

    def _kill_server(self) -> None:
        server = self._dice.choice(self._servers)
        server.kill()
        self.killed.append(f"server {server.name}")
        if len(self._servers) == 1:
            server.start()

    async def _start_server(self) -> None:
        for server in self._servers:
            if not server.up:
                server.launch()
                await asyncio.to_thread(server.wait_ready)

    async def _judge(self, operator: Mesh) -> None:
        """Each request of an allowed user was answered with its own answer, and its turn took effect once; those of a removed one
        at most once."""
        seen: Counter[str] = Counter()
        for agent in WORKERS:
            await eventually(lambda agent=agent: _at_rest(operator, agent), 60, f"rest of {agent}")
            state = (await operator.status(agent, content=True)).agent_state
            seen.update(state["prompts"])
        for caller in self._callers.values():
            assert not caller.faults and caller.pending is None, (caller.name, caller.faults, caller.pending)
            lost = [prompt for prompt in caller.answered if seen[prompt] != 1]
            assert not lost, f"answered, and taken {[seen[prompt] for prompt in lost]} times: {lost}"
        for caller in self._gone:
            assert not caller.faults, (caller.name, caller.faults)
            assert all(seen[prompt] == 1 for prompt in caller.answered), caller.name
        twice = [prompt for prompt, count in seen.items() if count > 1]
        assert not twice, f"taken twice: {twice}"

    def report(self) -> str:
        callers = [*self._callers.values(), *self._gone]
        asks, again = sum(len(one.answered) for one in callers), sum(one.repeated for one in callers)
        changes = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        return (
            f"{sum(self.done.values())} changes ({changes}) on {len(self._servers)} server(s), killed: {', '.join(self.killed)}\n"
            f"{asks} asks answered once each, {again} times one was sent again; lost 0, doubled 0\n"
            f"a removed user was cut off after {_spread(self.cut)}\n"
            f"a user with a new password was back after {_spread(self.back)}"
        )

    async def close(self) -> None:
        for caller in self._callers.values():
            await caller.close()
        for host in self._hosts:
            await host.close()


def _nobody(server: Server, name: str) -> bool:
    return not _connected_as(server, name)


async def _at_rest(operator: Mesh, agent: str) -> bool:
    try:
        return (await operator.status(agent)).state == "idle"
    except MeshError:
        return False


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "no sample"
    found = (min(seconds), statistics.median(seconds), max(seconds))
    return " / ".join(f"{1000 * value:.0f}" for value in found) + f" ms (min, median, max of {len(seconds)})"


def played(servers: int, *, changes: int, seed: int, timeout: float, signed: bool = False) -> Run:
    """A run on so many servers (1 or 3), to its verdict, with users by password or with signed ones."""

    async def all_of_it(made: Run) -> None:
        try:
            await made.play(changes)
        finally:
            await made.close()

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        users = (SignedUsers if signed else Users)(Path(folder))
        config = users.text()
        users.serve(
            [stack.enter_context(Server(config=config))]
            if servers == 1
            else stack.enter_context(Cluster(config=config)).servers
        )  # fmt: skip
        made = Run(users, Path(folder), seed)
        run(all_of_it(made), timeout)
        return made


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="live.user_changes")
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signed", action="store_true", help="users with credentials, as of `mesh access init --jwt`")
    args = parser.parse_args()
    made = played(args.servers, changes=args.changes, seed=args.seed, timeout=3600, signed=args.signed)
    print(made.report())
    late = [seconds for seconds in made.cut if seconds > PROMISED_S]
    print(f"{len(late)} of {len(made.cut)} were cut off later than {PROMISED_S:g} s")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
