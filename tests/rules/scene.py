"""Small worlds for the rules: real nodes, supervisor and client on the in-memory server, with a hand on everything.

A `Doll` does what its prompts say, one call of a hand after another. `gate:NAME ...` holds its turn until `open_gate(NAME)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

import msgspec

from agentmesh.edge.registry import decode_spec
from agentmesh.records import Ledger, Record, decode_record
from agentmesh.registry_values import Spec
from agentmesh.subjects import LANES, spec_key
from agentmesh.wire import Outcome, decode_outcome
from agentmesh_client.client import Mesh
from agentmesh_node.owner.effect_handlers import EffectHandlers
from agentmesh_node.owner.owner import Owner
from live.agents import Log, Puppet
from sim.agents import Cell
from sim.checker import body_of
from sim.loop import SimLoop, run_sim
from sim.run import registry_of
from sim.store import Stored
from sim.world import World

PATIENCE_S = 60.0
_gates: set[str] = set()


def open_gate(name: str) -> None:
    """Let every turn end that waits for this gate."""
    _gates.add(name)


async def _gated(prompt: str) -> str:
    word, _, rest = prompt.partition(" ")
    verb, _, gate = word.partition(":")
    while verb == "gate" and gate not in _gates:  # noqa: ASYNC110 - the story opens it, in no task of this node
        await asyncio.sleep(0.02)
    return rest if verb == "gate" else prompt


class Doll(Puppet):
    """A puppet whose turns can be held."""

    script: ClassVar[Any] = staticmethod(_gated)


KINDS = {"Doll": Doll, "Cell": Cell}


class Scene:
    """One world, and what can be seen of it."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self.world = world
        self.mesh = mesh
        self.server = world.net.server

    async def start(self, *names: str, kind: str = "Doll") -> None:
        for name in names:
            await self.mesh.start_agent(name, kind=kind, timeout=PATIENCE_S)

    def stored(self, role: Any) -> list[Stored]:
        """Everything that a stream holds now."""
        return self.server.streams[self.world.subjects.stream(role)].live()

    def history(self, role: Any, key: str) -> list[Stored]:
        """Every value that a key of the registry, or a subject of another stream, ever had."""
        subject = self.world.subjects.registry_key(key) if role == "registry" else key
        return [m for m in self.server.streams[self.world.subjects.stream(role)].history if m.subject == subject]

    def history_of(self, role: Any) -> list[Stored]:
        """Everything that a stream ever stored."""
        return self.server.streams[self.world.subjects.stream(role)].history

    def records(self, agent: str) -> list[Record]:
        """Every record ever appended for the agent."""
        history = self.server.streams[self.world.subjects.stream("journal")].history
        subject = self.world.subjects.journal(agent)
        return [decode_record(body_of(self.server, self.world.subjects, m)) for m in history if m.subject == subject]

    def kinds(self, agent: str) -> list[str]:
        return [record.kind for record in self.records(agent)]

    def results(self, agent: str) -> dict[str, Outcome]:
        """Every outcome ever stored, by ref; none is stored twice."""
        subject = self.world.subjects.result(agent, "*").removesuffix("*")
        history = self.server.streams[self.world.subjects.stream("result")].history
        found = [decode_outcome(m.data) for m in history if m.subject.startswith(subject)]
        assert len({outcome.ref for outcome in found}) == len(found)
        return {outcome.ref: outcome for outcome in found}

    def lane(self, lane: str, agent: str) -> list[Stored]:
        """What lies in a lane."""
        stream = self.server.streams[self.world.subjects.stream(LANES[lane].stream)]
        return stream.view(self.world.subjects.lane(lane, agent), 0, 0.0)

    def spec(self, agent: str) -> Spec:
        return decode_spec(registry_of(self.world)[spec_key(agent)])

    def node_of(self, agent: str) -> str:
        """The node with the newest placement."""
        placed = [e for k, e in registry_of(self.world).items() if k.startswith("placements.") and k.endswith(f".{agent}")]
        return max(placed, key=lambda entry: entry.revision).key.split(".")[1]

    def owner(self, agent: str) -> Owner:
        owner = self.world.nodes[self.node_of(agent)].catalog.agents[agent].owner
        assert owner is not None, f"{agent} sleeps"
        return owner

    def ledger(self, agent: str) -> Ledger:
        core = self.owner(agent).core
        assert core is not None
        return core.ledger

    async def state(self, agent: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.mesh.status(agent, content=True, timeout=PATIENCE_S)).agent_state
        return found

    def seen(self, agent: str) -> Log:
        """The agent's state as the journal has it."""
        return msgspec.json.decode(self.ledger(agent).state, type=Log)

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> None:
        """Wait for a condition, by the world's clock."""
        end = self.world.loop.time() + seconds
        while not condition():
            assert self.world.loop.time() < end, f"{what}: not within {seconds} s"
            await asyncio.sleep(0.02)

    def effect_handlers(self, node: str, agent: str) -> EffectHandlers:
        """What a node does that acts for `agent`: to do again what was done, or might have been."""
        services = self.world.nodes[node].services
        life = self.spec(agent).incarnation
        return EffectHandlers(
            services, agent, life, emit=lambda kind, fields: None, end_stream=lambda effect: None, is_gone=_never
        )


async def _never(ref: str) -> bool:
    return False


def play(
    story: Callable[[Scene], Awaitable[None]],
    *,
    nodes: tuple[str, ...] = ("n1",),
    mailbox_limit: int = 1000,
    max_payload: int = 1 << 20,
    ahead: Mapping[str, float] | None = None,
    **settings: Any,
) -> None:
    """Let `story` happen in a world of one supervisor, some nodes and a client. `ahead`: by process (`n1`, `s1`, `c1`), by how
    many seconds its clock is."""

    async def main(loop: SimLoop) -> None:
        _gates.clear()
        world = World(loop, story.__name__, mailbox_limit=mailbox_limit, max_payload=max_payload)
        world.ahead.update(ahead or {})
        Cell.dice, Cell.slowness, Cell.crashed, Cell.bulk = world.dice("agents"), 0.0, set(), 0
        await world.prepare()
        world.supervisor("s1")
        for name in nodes:
            world.node(name, agents=KINDS, **settings)

        async def client() -> None:
            async with world.client("c1") as mesh:
                await story(Scene(world, mesh))

        await world.process("c1").spawn(client())
        assert loop.defects == []

    run_sim(main)


def do(*calls: Any) -> str:
    """A prompt that has a Doll do these."""
    return msgspec.json.encode(calls).decode()


def told(target: str, prompt: str, tag: str | None = None) -> list[Any]:
    """A call that tells `target`."""
    return ["tell", {"target": target, "prompt": prompt, **({"tag": tag} if tag else {})}]
