"""A process between the parties of a mesh and its servers: each party has ports of its own here, one for each server.

    python wires.py '{"n1": [4222, 4223, 4224], ...}'

prints the ports that it listens on as such an object, and then does what each line on its standard input says:

    {"who": "n1", "way": "out", "part": "main"}    hold up what n1 sends on its main connection
    {"who": "n1", "heal": "late"}                  carry on, with what was held up; or "reset": end those connections

A cut looks as a network does that carries nothing: no connection ends, none is refused, and bytes wait where they are. What is
held up and then carried on reaches the servers late, from a sender that has long been replaced. Cutting here needs no rights on
the machine's firewall, and the servers advertise no addresses, so nobody finds a way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence

CHUNK = 64 * 1024
_NAME = re.compile(rb'"name":\s*"([^"]*)"')
_HEARTBEATS = (b"heartbeat", b"lease-and-pings")
"""In the names of connections that a node's heartbeat and its like in a supervisor have for themselves."""


class Party:
    """The processes behind one set of ports, and which of their connections are cut."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.way = ""
        self.part = ""

    def cut(self, way: str, part: str) -> None:
        """Hold up `way` of `part` from now on."""
        self.way, self.part = way, part
        for connection in self.connections:
            connection.obey()

    def heal(self, how: str) -> None:
        """Carry on."""
        held = [connection for connection in self.connections if connection.held]
        self.way = self.part = ""
        for connection in held:
            if how == "reset":
                connection.abort()
            connection.obey()


class Connection:
    """One connection of a party, to one server."""

    def __init__(self, party: Party, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._party = party
        self._reader = reader
        self._writer = writer
        self._heartbeat: bool | None = None
        self._server: asyncio.StreamWriter | None = None
        self._passes = {"out": asyncio.Event(), "in": asyncio.Event()}
        self.obey()

    @property
    def held(self) -> bool:
        """Whether something of it is held up."""
        return not all(passes.is_set() for passes in self._passes.values())

    def obey(self) -> None:
        """Do what is cut of the party now."""
        way, part = self._party.way, self._party.part
        # Until it has said who it is, it is of every part.
        mine = bool(way) and (part == "all" or self._heartbeat is None or self._heartbeat == (part == "heartbeat"))
        for direction, passes in self._passes.items():
            if mine and way in ("both", direction):
                passes.clear()
            else:
                passes.set()

    def abort(self) -> None:
        """End both sides at once; what is on its way is lost."""
        for writer in (self._writer, self._server):
            if writer is not None:
                writer.transport.abort()

    async def run(self, port: int) -> None:
        """Carry bytes until either side ends."""
        with contextlib.suppress(OSError):
            for passes in self._passes.values():
                await passes.wait()
            reader, self._server = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry("out", self._reader, self._server))
                group.create_task(self._carry("in", reader, self._writer))

    async def _carry(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if direction == "out" and self._heartbeat is None and (found := _NAME.search(data)):
                    self._heartbeat = any(name in found[1] for name in _HEARTBEATS)
                    self.obey()
                await self._passes[direction].wait()
                writer.write(data)
                await writer.drain()
        # An end, too, does not get through while nothing does.
        await self._passes[direction].wait()
        writer.close()


class Wires:
    """All parties."""

    def __init__(self) -> None:
        self._parties: dict[str, Party] = {}
        self._servers: list[asyncio.Server] = []

    async def open(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Listen for each party, once for each server. Returns the ports."""
        ports: dict[str, list[int]] = {}
        for name, servers in wanted.items():
            party = self._parties[name] = Party()
            ports[name] = [await self._listen(party, port) for port in servers]
        return ports

    async def _listen(self, party: Party, port: int) -> int:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = Connection(party, reader, writer)
            party.connections.add(connection)
            try:
                await connection.run(port)
            finally:
                party.connections.discard(connection)
                connection.abort()

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def obey(self, line: bytes) -> None:
        """One line of the standard input."""
        wanted = json.loads(line)
        party = self._parties[wanted["who"]]
        if "heal" in wanted:
            party.heal(wanted["heal"])
        else:
            party.cut(wanted["way"], wanted["part"])


async def main(wanted: Mapping[str, Sequence[int]]) -> None:
    """Carry, cut and heal, until the standard input ends."""
    wires = Wires()
    print(json.dumps(await wires.open(wanted)), flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        wires.obey(line)
        print("{}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
