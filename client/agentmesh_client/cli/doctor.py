"""The verb that examines a mesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, Globals, session

if TYPE_CHECKING:
    from agentmesh_client.doctor.diagnosis import Diagnosis
    from agentmesh_client.doctor.facts import Facts, StreamFacts

Urls = Annotated[list[str] | None, Parameter(negative="")]


async def doctor(*, monitor: Urls = None, system: str | None = None, options: Globals = DEFAULTS) -> int:
    """Examine the server and the mesh on it, and say which class of guarantee it has (docs/guarantees.md).

    Exits with 1 if something must be mended; warnings alone are no failure. Nothing is changed, and no key's value is read.

    Parameters
    ----------
    monitor
        Monitoring page of a server, as http://127.0.0.1:8222, to read its settings and its clock; once for each server.
    system
        Address with a user of the system account, as nats://user:password@host:4222, to read the same of all servers.
    """
    from agentmesh.edge.address import URL_FILE
    from agentmesh.edge.connection import NatsTransport
    from agentmesh_client.cli.output import Printer
    from agentmesh_client.doctor.diagnosis import judge
    from agentmesh_client.doctor.facts import gather

    async with session(options) as mesh:
        transport = mesh.transport
        assert isinstance(transport, NatsTransport), "a session is over NATS"
        own = _made_by_mesh_up(URL_FILE, transport.urls)
        directory = URL_FILE.parent if own else None
        facts = await gather(transport, mesh.subjects, os.environ, monitors=monitor or (), system=system, directory=directory)
    diagnosis = judge(facts)
    Printer(options).value(diagnosis, _text(diagnosis))
    return exits.OK if diagnosis.healthy else exits.FAILED


def _made_by_mesh_up(file: Path, urls: list[str]) -> bool:
    """Whether the server in use is the one that `mesh up` runs from this directory."""
    try:
        return [file.read_text(encoding="utf-8").strip()] == urls
    except OSError:
        return False


def _text(diagnosis: Diagnosis) -> str:
    from agentmesh_client.cli.output import aligned, fields

    facts = diagnosis.facts
    parts = [
        fields(_general(facts)),
        aligned(("STREAM", "REPLICAS", "LEADER", "MESSAGES", "BYTES"), [_row(s) for s in facts.streams]),
        aligned(("PROCESS", "NAME", "VERSION", "CLOCK"), _processes(facts)),
    ]
    parts += ["\n".join(f"{finding.level}: {finding.text}" for finding in diagnosis.findings)] if diagnosis.findings else []
    parts.append(f"guarantee: {diagnosis.guarantee}: {diagnosis.meaning}")
    return "\n\n".join(parts)


def _general(facts: Facts) -> list[tuple[str, str]]:
    window = {f"{stream.duplicate_window_s:g} s" for stream in facts.streams if stream.replicas}
    sync = ", ".join(f"{name}: {value}" for name, value in sorted(facts.sync.items()))
    skew = "unknown" if facts.clock_skew_s is None else f"server is {facts.clock_skew_s:+.3f} s"
    present = ", ".join(name for name, there in facts.model_keys.items() if there)
    return [
        ("server", f"{facts.server} {facts.version}{' in a cluster' if facts.cluster else ''}"),
        ("jetstream", "yes" if facts.jetstream else "no answer"),
        ("domain", "unknown" if facts.domain is None else facts.domain or "none"),
        ("max payload", f"{facts.max_payload} bytes"),
        ("sync interval", f"{sync} (from {facts.sync_source})" if sync else "unknown"),
        ("duplicate window", ", ".join(sorted(window)) or "unknown"),
        ("clock", skew),
        ("user", facts.user or "unknown"),
        ("may publish", _permission(facts.publish)),
        ("may subscribe", _permission(facts.subscribe)),
        ("supervisor", facts.supervisor or "none"),
        ("nodes", ", ".join(facts.nodes) or "none"),
        ("model keys here", present or "none"),
    ]


def _processes(facts: Facts) -> list[tuple[str, ...]]:
    """The servers, supervisors and nodes, with their clocks by that of the servers."""
    from agentmesh_client.doctor.clocks import servers_ahead_s

    reference = servers_ahead_s(facts) or 0.0
    rows = [("server", server.name, server.version, server.clock_ahead_s) for server in facts.servers]
    rows += [(member.role, member.id, member.version, member.clock_ahead_s) for member in facts.members]
    return [
        (role, name, version or "-", "unknown" if ahead is None else f"{ahead - reference:+.3f} s")
        for role, name, version, ahead in rows
    ]


def _permission(rules: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind} {', '.join(subjects)}" for kind, subjects in rules.items() if subjects) or "everything"


def _row(stream: StreamFacts) -> tuple[str, ...]:
    if not stream.seen:
        return (stream.name, "not seen", "-", "-", "-")
    if not stream.replicas:
        return (stream.name, "-" if stream.exists else "missing", "-", "-", "-")
    return (stream.name, f"{stream.up}/{stream.replicas}", stream.leader or "-", str(stream.messages), str(stream.bytes))
