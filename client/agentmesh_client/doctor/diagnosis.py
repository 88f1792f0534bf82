"""What the facts of a mesh mean: which class of guarantee it has, and what is wrong with it. Pure (docs/guarantees.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from agentmesh.edge.results import describe
from agentmesh.edge.streams import MIN_SERVER
from agentmesh.errors import StoreLost
from agentmesh_client.doctor import clocks, settings
from agentmesh_client.doctor.facts import Facts, StreamFacts
from agentmesh_client.doctor.findings import Finding, some
from agentmesh_client.doctor.servers import ALWAYS

DEFAULT_WINDOW_S = 120.0
NEARLY_FULL = 0.8

type Class = Literal["power", "replicated", "process", "unknown", "broken"]


class Diagnosis(msgspec.Struct, kw_only=True):
    """The diagnosis of a mesh. The classes are those of docs/guarantees.md."""

    v: int = 1
    guarantee: Class
    meaning: str
    findings: list[Finding]
    facts: Facts

    @property
    def healthy(self) -> bool:
        """Whether nothing must be mended."""
        return all(finding.level != "problem" for finding in self.findings)


def judge(facts: Facts) -> Diagnosis:
    """Class and findings of `facts`."""
    kind = guarantee(facts)
    return Diagnosis(guarantee=kind, meaning=meaning(kind, facts), findings=list(_findings(facts)), facts=facts)


# --- the guarantee --------------------------------------------------------------------------------------------------
def guarantee(facts: Facts) -> Class:
    """The class of the weakest stream."""
    if not facts.jetstream or not facts.streams or not all(_usable(stream) for stream in facts.streams):
        return "broken"
    if not all(stream.seen for stream in facts.streams):
        return "unknown"
    always = bool(facts.sync) and all(value == "always" for value in facts.sync.values())
    replicas = min((stream.replicas for stream in facts.streams if stream.exists), default=0)
    # In a cluster every server must be known to sync.
    if always and (not facts.cluster or len(facts.sync) >= replicas):
        return "power"
    if replicas >= 3:
        return "replicated"
    return "process" if facts.sync and not always else "unknown"


def _usable(stream: StreamFacts) -> bool:
    if not stream.exists:
        return stream.purpose is not None
    return not stream.seen or (stream.replicas > 0 and not any(drift.startswith("storage ") for drift in stream.drift))


def meaning(kind: Class, facts: Facts) -> str:
    """The class in words."""
    lag = ", ".join(sorted({value for value in facts.sync.values() if value != "always"})) or "two minutes by default"
    if kind == "unknown" and not all(stream.seen for stream in facts.streams):
        return "this user sees only some of the streams, and the weakest one decides: examine the mesh as an operator"
    texts: dict[Class, str] = {
        "power": "what was acknowledged outlives the death of every process and a power cut of every server",
        "replicated": "what was acknowledged outlives the death of every process and a power cut of one server; if most servers "
        f"lose power at the same moment, acknowledged work of the last sync interval ({lag}) can be lost",
        "process": "what was acknowledged outlives the death of every process; a power cut of the server can lose acknowledged "
        f"work of its last sync interval ({lag})",
        "unknown": "what was acknowledged outlives the death of every process; whether it outlives a power cut of the server "
        "depends on its sync_interval, which cannot be read from here",
        "broken": "nothing is guaranteed: streams are missing, have no leader, or are not kept on disk",
    }
    return texts[kind]


# --- findings -------------------------------------------------------------------------------------------------------
def _findings(facts: Facts) -> Iterator[Finding]:
    if tuple(int(part) for part in facts.version.split(".")[:2]) < MIN_SERVER:
        yield Finding("problem", f"nats-server {facts.version} is too old: upgrade to {'.'.join(map(str, MIN_SERVER))} or newer")
    if not facts.jetstream:
        yield Finding("problem", "JetStream does not answer: switch it on, for this account too, or bring its servers back")
    for text in facts.server_errors:
        yield Finding("problem", f"a server says: {text}; mend that (free space on its disk, for one), and restart it")
    if facts.unseen:
        yield Finding(
            "warning",
            f"this user may not ask about {some(facts.unseen)}: nothing is said of that; an operator sees it",
        )
    if any(stream.exists for stream in facts.streams):
        for stream in facts.streams:
            if not stream.seen:
                continue
            if facts.jetstream or stream.replicas:  # else a finding above says why nothing is known of it
                yield from _of_stream(stream)
        yield from _of_sets(facts)
    elif facts.jetstream:
        yield _no_mesh(facts)
    yield from _of_replicas(facts)
    yield from _of_sync(facts)
    yield from settings.findings(facts)
    yield from _of_window(facts)
    yield from clocks.findings(facts)
    yield from _of_room(facts)
    yield from _of_stored(facts)
    if not facts.supervisor:
        yield Finding("problem", "no supervisor leads: nothing is placed or moved; start one with `mesh supervisor`")
    if not facts.nodes:
        yield Finding("problem", "no node is there: no agent runs; start one with `mesh node`")


def _of_stream(stream: StreamFacts) -> Iterator[Finding]:
    name = stream.name
    if not stream.exists and stream.purpose is not None:
        yield Finding(
            "warning", f"{name} does not exist, so this mesh works without {stream.purpose}: run `mesh setup` to add it"
        )
    elif not stream.exists:
        yield Finding(
            "problem",
            f"{name} does not exist, and every mesh has it: restore it from its backup, or have it made anew, empty, by "
            "`mesh setup --new`",
        )
    elif not stream.replicas:
        yield Finding("problem", f"{name} cannot be asked: too few of its servers are up; bring them back")
    elif stream.up < stream.replicas:
        which = f" ({', '.join(stream.behind)})" if stream.behind else ""
        yield Finding("problem", f"{name} has {stream.up} of {stream.replicas} replicas up to date{which}: bring the others back")
    for lack, purpose in stream.lacks.items():
        if purpose is None:
            yield Finding("problem", f"{name} is not as the mesh needs it: {lack}; run `mesh setup`")
        else:
            yield Finding("warning", f"{name}: {lack}, so this mesh works without {purpose}: run `mesh setup` to add it")
    for drift in stream.drift:
        yield Finding("problem", f"{name} is not as the mesh needs it: {drift}; set it back (`nats stream edit {name}`)")


def _no_mesh(facts: Facts) -> Finding:
    if facts.sets:
        return Finding("problem", "this mesh is in another JetStream domain, behind a leaf node: name it (--domain, MESH_DOMAIN)")
    return Finding(
        "problem",
        "this account has no stream of this mesh: if it is new, `mesh setup --new` makes them; if there was one, look for its "
        "server, account and root, and for the server's store directory and encryption key",
    )


def _of_sets(facts: Facts) -> Iterator[Finding]:
    if facts.sets > 1:
        yield Finding(
            "problem",
            f"{facts.sets} sets of this mesh's streams hear what is published here, and store each other's mail: a leaf node has "
            "one of its own. Nothing but another root keeps them apart: give one of the meshes another (--root, MESH_ROOT)",
        )


def _of_replicas(facts: Facts) -> Iterator[Finding]:
    there = [stream for stream in facts.streams if stream.replicas]
    lone = [stream.name for stream in there if stream.replicas < 3]
    if lone and facts.cluster:
        which = "all streams" if len(lone) == len(there) else ", ".join(lone)
        yield Finding("warning", f"{which}: fewer than three replicas, so one server's loss stops the mesh (`nats stream edit`)")
    elif lone:
        yield Finding("warning", "one server holds everything: nothing moves while it is away")


def _of_sync(facts: Facts) -> Iterator[Finding]:
    if not facts.sync:
        yield Finding(
            "warning",
            "sync_interval cannot be read without rights of the system account: give --monitor URL (each server's monitoring "
            "page) or --system URL (a user of the system account), or look for it in the server's configuration (default 2m)",
        )
    for name, value in sorted(facts.sync.items()):
        if value != ALWAYS and not settings.is_too_long(value):
            yield Finding("warning", f"{name} writes to its disk every {value}: set sync_interval: always to outlive a power cut")


def _of_window(facts: Facts) -> Iterator[Finding]:
    windows = {stream.duplicate_window_s for stream in facts.streams if stream.replicas and "RESULT" not in stream.name}
    if len(windows) > 1:
        shown = ", ".join(f"{window:g} s" for window in sorted(windows))
        yield Finding("warning", f"the streams have different duplicate windows ({shown})")
    elif windows and min(windows) < DEFAULT_WINDOW_S:
        shown = f"{min(windows):g} s"
        yield Finding(
            "warning", f"the duplicate window is {shown}: a client that is cut off for longer may have to give up a publish"
        )


def _of_room(facts: Facts) -> Iterator[Finding]:
    if facts.storage_limit > 0 and facts.storage_used > NEARLY_FULL * facts.storage_limit:
        used = facts.storage_used / facts.storage_limit
        yield Finding("warning", f"{used:.0%} of this account's storage is used: raise max_file before it is full")


def _of_stored(facts: Facts) -> Iterator[Finding]:
    lost = [agent.name for agent in facts.stored.stuck if agent.code == StoreLost.code]
    if lost:
        yield Finding(
            "problem",
            f"the store has lost data of {some(lost)}: restore it (docs/operations.md#a-store-that-was-put-back), or give these "
            "agents up with `mesh stop`",
        )
    waiting = [agent for agent in facts.stored.stuck if agent.code != StoreLost.code]
    if waiting:
        yield Finding("problem", f"{some([agent.name for agent in waiting])} cannot be run: {waiting[0].message}")
    by_reason: dict[str, list[str]] = {}
    for agent in facts.stored.waiting:
        by_reason.setdefault(agent.message, []).append(agent.name)
    for message, names in by_reason.items():
        yield Finding("warning", f"{some(names)} {'has' if len(names) == 1 else 'have'} no node: {message}")
    if facts.stored.foreign:
        yield Finding(
            "warning",
            f"messages that are not the mesh's lie in the journals of {some(facts.stored.foreign)}: they are passed over; only "
            "nodes may publish there (docs/protocol.md#subjects)",
        )
    if facts.stored.malformed:
        yield Finding(
            "warning",
            f"these keys of the registry hold what is not the mesh's: {some(facts.stored.malformed)}; it counts as none: delete "
            "it, and see who writes there",
        )
    if facts.stored.without_both:
        yield Finding(
            "problem",
            f"neither the spec nor the journal of {some(facts.stored.without_both)} is the mesh's any more: restore registry and "
            "journals from one backup (docs/operations.md#a-store-that-was-put-back), or delete the keys `agents.NAME`",
        )
    if facts.stored.without_spec:
        yield Finding(
            "problem",
            f"the registry does not know {some(facts.stored.without_spec)}, whose journals say that they live: if nobody has "
            "deleted their keys, restore the registry from its backup (docs/operations.md#what-is-not-the-meshs)",
        )
    if facts.stored.unclaimed:
        unclaimed = sorted(facts.stored.unclaimed)
        yield Finding(
            "warning",
            f"mail waits for names that no agent has: {some(unclaimed)} (messages: {sum(facts.stored.unclaimed.values())}); "
            "start such agents, or it becomes dead letters, after an hour by default (`mesh dead unclaimed`)",
        )
    older = facts.stored.older_mail
    if older is not None:
        yield Finding("problem", describe(older))
