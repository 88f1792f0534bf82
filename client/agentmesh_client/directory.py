"""Reading the registry: which agents and nodes there are, and which node runs which agent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from agentmesh.edge.read import get_last_many
from agentmesh.edge.registry import Entry, Registry, decode_node, decode_placement, decode_spec
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest
from agentmesh.subjects import Subjects, placement_key
from agentmesh_client.results import AgentEntry, NodeEntry

log = logging.getLogger("agentmesh.client")


class Directory:
    """Single reads of the registry."""

    def __init__(self, transport: Transport, subjects: Subjects, registry: Registry) -> None:
        self._transport = transport
        self._subjects = subjects
        self._registry = registry

    async def node_of(self, agent: str, incarnation: str | None = None) -> str | None:
        """The node that `agent` is placed on, in that life; of several placements the newest counts
        (docs/architecture.md#placement)."""
        pattern = self._subjects.registry_key(placement_key("*", agent))
        found, _ = await get_last_many(self._transport, self._subjects.stream("registry"), [pattern])
        head = len(self._subjects.registry_key(""))
        # An empty body marks a deletion.
        entries = [Entry(one.subject[head:], one.data, one.seq) for one in found.values() if one.data]
        nodes = _nodes_by_life(entries)
        if incarnation is not None:
            return nodes.get((agent, incarnation))
        return next(reversed(nodes.values()), None)

    async def agents(self, *, stopped: bool = False) -> list[AgentEntry]:
        """All agents by name, with their nodes; stopped ones only with `stopped`."""
        specs = await self._load("agents.")
        placements = await self._load("placements.")
        nodes = _nodes_by_life(placements)
        found = [(entry.key.partition(".")[2], spec) for entry, spec in _readable(specs, decode_spec)]
        return [
            AgentEntry(name=name, spec=spec, node=nodes.get((name, spec.incarnation)))
            for name, spec in sorted(found, key=lambda one: one[0])
            if stopped or spec.status != "stopped"
        ]

    async def nodes(self) -> list[NodeEntry]:
        """All live nodes by id."""
        entries = await self._load("nodes.")
        found = [NodeEntry(id=entry.key.partition(".")[2], lease=lease) for entry, lease in _readable(entries, decode_node)]
        return sorted(found, key=lambda node: node.id)

    async def _load(self, prefix: str) -> list[Entry]:
        return (await self._registry.load(prefix))[0]


def _nodes_by_life(placements: Iterable[Entry]) -> dict[tuple[str, str], str]:
    nodes: dict[tuple[str, str], str] = {}
    for entry, placement in _readable(sorted(placements, key=lambda one: one.revision), decode_placement):
        _, _, place = entry.key.partition(".")
        node, _, agent = place.partition(".")
        nodes[agent, placement.incarnation] = node
    return nodes


def _readable[T](entries: Iterable[Entry], decode: Callable[[Entry], T]) -> Iterator[tuple[Entry, T]]:
    """Each entry with its decoded value; malformed entries are skipped."""
    for entry in entries:
        try:
            yield entry, decode(entry)
        except BadRequest as error:
            log.warning("%s", error.message)
