"""What a mesh has stored that no process of it can use: agents that cannot be run, messages that are not the mesh's, and streams
that were not put back together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from agentmesh.edge.failures import ApiError
from agentmesh.edge.journal_reader import JournalReader, is_foreign
from agentmesh.edge.manage import count_all
from agentmesh.edge.read import get_last_many
from agentmesh.edge.registry import Entry, Registry, decode_epoch, decode_node, decode_placement, decode_spec
from agentmesh.edge.results import OlderMail, older_mail
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, MeshError, StoreLost, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.registry_values import Spec, SupervisorLease
from agentmesh.subjects import Subjects, spec_key
from agentmesh_client.unclaimed import counts

GROUP = 1000
MOST_JOURNALS = 10_000
"""Journals whose ends are looked at, at most."""
MOST_UNKNOWN = 100
"""Journals that are read because the registry does not know their agents, at most."""
_STUCK = (StoreLost.code, UnreadableRecord.code)
LOOK_S = 5.0
"""Wait for one answer."""


class StuckAgent(msgspec.Struct, frozen=True):
    """An agent that cannot be run, with the error that its spec shows."""

    name: str
    code: str
    message: str


class StoredFacts(msgspec.Struct, kw_only=True):
    """What was found."""

    stuck: list[StuckAgent] = []
    foreign: list[str] = []
    """Agents whose journals end with a message that is not the mesh's."""
    malformed: list[str] = []
    """Keys of the registry whose values are of foreign form."""
    without_spec: list[str] = []
    """Agents whose journals say that they live, and that the registry does not know."""
    without_both: list[str] = []
    """Agents of which neither the spec nor the journal is the mesh's any more."""
    waiting: list[StuckAgent] = []
    """Agents that no live node has, and why."""
    unclaimed: dict[str, int] = {}
    """Names that no agent has, with the number of messages that wait for one."""
    older_mail: OlderMail | None = None
    """Set if the mail was put back to an older state than the results."""


async def look(transport: Transport, subjects: Subjects) -> StoredFacts:
    """Read the registry, and the ends of the journals. What this user may not read stays empty."""
    found = StoredFacts()
    try:
        mail = await _mail(transport, subjects)
        entries, _ = await Registry(transport, subjects).load()
        specs: dict[str, Spec] = {}
        places: set[tuple[str, str]] = set()
        for entry in entries:
            _sort_in(entry, specs, places, found)
        live = {entry.key.partition(".")[2] for entry in entries if entry.key.startswith("nodes.")}
        placed = {agent for agent, node in places if node in live}
        found.stuck = [
            StuckAgent(name, spec.reason.code, spec.reason.message)
            for name, spec in sorted(specs.items())
            if spec.reason is not None and spec.reason.code in _STUCK
        ]
        found.waiting = [
            _waiting(name, spec)
            for name, spec in sorted(specs.items())
            if spec.status == "wanted" and name not in placed and (spec.reason is None or spec.reason.code not in _STUCK)
        ]
        found.unclaimed = counts(subjects, mail, {entry.key for entry in entries})
        names = sorted(name for name, spec in specs.items() if spec.status != "stopped")[:MOST_JOURNALS]
        for start in range(0, len(names), GROUP):
            found.foreign += await _foreign(transport, subjects, names[start : start + GROUP])
        known = {entry.key.partition(".")[2] for entry in entries if entry.key.startswith("agents.")}
        await _without_spec(transport, subjects, known, known - specs.keys(), found)
        found.older_mail = await older_mail(transport, subjects, timeout=LOOK_S)
    except (MeshError, ApiError):
        return found
    return found


async def _mail(transport: Transport, subjects: Subjects) -> dict[str, int]:
    """The subjects of the mail stream, with their counts; nothing, where they cannot be had."""
    try:
        return (await count_all(transport, subjects.stream("mail"), timeout=LOOK_S)).subjects
    except (MeshError, ApiError):
        return {}


def _waiting(name: str, spec: Spec) -> StuckAgent:
    if spec.reason is None:
        return StuckAgent(name, "unavailable", "no supervisor has placed it yet")
    return StuckAgent(name, spec.reason.code, spec.reason.message)


def _sort_in(entry: Entry, specs: dict[str, Spec], places: set[tuple[str, str]], found: StoredFacts) -> None:
    role, _, name = entry.key.partition(".")
    try:
        if role == "agents":
            specs[name] = decode_spec(entry)
        elif role in _DECODE:
            _DECODE[role](entry)
            if role == "placements":
                node, _, agent = name.partition(".")
                places.add((agent, node))
    except (BadRequest, msgspec.DecodeError):
        found.malformed.append(entry.key)


def _supervisor(entry: Entry) -> SupervisorLease:
    return msgspec.json.decode(entry.value or b"", type=SupervisorLease)


_DECODE: dict[str, Callable[[Entry], Any]] = {
    "nodes": decode_node,
    "placements": decode_placement,
    "epoch": decode_epoch,
    "supervisor": _supervisor,
}


async def _without_spec(
    transport: Transport, subjects: Subjects, known: Collection[str], malformed: Collection[str], found: StoredFacts
) -> None:
    """Find the agents of whose specs nothing is left that is the mesh's, and of some of them nothing of their journals either."""
    journals, registry = JournalReader(transport, subjects), Registry(transport, subjects)
    start = len(subjects.journal(""))
    stored = (await count_all(transport, subjects.stream("journal"), timeout=LOOK_S)).subjects
    unknown = sorted({subject[start:] for subject in stored} - set(known))
    for name in unknown[:MOST_UNKNOWN]:
        try:
            ledger, _ = fold((await journals.read(name)).records)
            lives = ledger is not None and ledger.phase != "over"
        except (UnreadableRecord, StoreLost):
            lives = True
        if lives and await registry.get(spec_key(name)) is None:
            found.without_spec.append(name)
    for name in sorted(malformed)[:MOST_UNKNOWN]:
        try:
            if (await journals.read(name)).wiped:
                found.without_both.append(name)
        except (UnreadableRecord, StoreLost):
            continue  # its node says so, once the spec is put back


async def _foreign(transport: Transport, subjects: Subjects, names: Sequence[str]) -> list[str]:
    stream = subjects.stream("journal")
    newest, _ = await get_last_many(transport, stream, [subjects.journal(name) for name in names], timeout=LOOK_S)
    return [name for name in names if (message := newest.get(subjects.journal(name))) is not None and is_foreign(message)]
