"""What tracing costs: the same asks to nodes that trace nothing, a tenth of all, and everything."""

from __future__ import annotations

from collections.abc import Mapping

from bench.asks import BARE
from bench.clock import rate
from bench.figures import Figure
from bench.host import AGENTS
from bench.side import SLICE, Side
from bench.stage import HERE, Child, Stage
from support import free_ports

OFF = "tracing off"


async def tracing(stage: Stage) -> list[Figure]:
    """Asks a second and the node's processor for each of them, tracing off (beside a bare request), sampled, and full (beside
    tracing off). A round's nodes are new ones, each in a mesh of its own on the same server, and the callers' asks alternate
    between them."""
    floors, sizes = await stage.floors(), stage.sizes
    (port,) = free_ports(1)
    collector = await stage.spawn(str(HERE / "collector.py"), str(port))
    ways = _ways(f"http://127.0.0.1:{port}")
    title, spent = f"asks/s, {sizes.callers} callers", "the node's processor for each of them"
    rates = {way: Figure(name=f"{title}, {way}", unit="/s", floor=BARE if way == OFF else OFF) for way in ways}
    cpus = {way: Figure(name=f"{spent}, {way}", unit="us", floor=None if way == OFF else OFF) for way in ways}
    for number in range(sizes.rounds):
        sides: dict[str, Side] = {}
        children: list[Child] = []
        for way, environ in ways.items():
            root = f"traced{number}-{len(sides)}"
            mesh = await stage.client(root)
            children.append(await stage.supervisor(root))
            command = ("-m", "agentmesh_node", "node", "--id", "n1", "--agents", str(AGENTS), "--nats", stage.url, "--root", root)
            node = await stage.spawn(*command, environ=environ)
            children.append(node)
            sides[way] = await Side.begun(mesh, node, sizes.callers)
        bare = await rate([floors.bare] * sizes.callers, 4 * sizes.each)
        for turn in range(max(2, sizes.each // SLICE)):
            for side in list(sides.values())[:: -1 if turn % 2 else 1]:
                await side.ask_all(min(SLICE, sizes.each))
        for way, side in sides.items():
            rates[way].add(side.rate, bare if way == OFF else sides[OFF].rate)
            cpus[way].add(side.cpu_us, None if way == OFF else sides[OFF].cpu_us)
        for child in children:
            await child.end()
    await collector.end()
    return [*rates.values(), *cpus.values()]


def _ways(endpoint: str) -> dict[str, Mapping[str, str]]:
    """The variables of the nodes' processes."""
    exported = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{endpoint}/v1/traces"}
    sampled = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    return {
        OFF: {"MESH_TRACE_FACTS": "off"},
        "sampled at 10 %": {"MESH_TRACE_FACTS": "attempts", **exported, **sampled},
        "traced in full": {"MESH_TRACE_FACTS": "all", **exported},
    }
