"""Circles of waits that no single path shows: A waits for B by one request, B for A by another. Pure.

A waiting agent sends a probe along each of its waits. An agent that gets a probe, waits itself and still holds the request along
which the probe came, hands it on along its own waits. A probe that comes back has found a circle, in which no turn can end.
Probes are handed on only along waits that are older than the wait that they were sent for, so of a circle's probes exactly one
comes back: that of its youngest wait. That wait ends with `cycle`, and the others go on.

An agent checks at the moment of handing on: it does not hold a request that it has answered, or that has not arrived yet. A
circle may still break after that, if a turn in it is killed or its time is over. Therefore a probe that came back is followed by
a second one before the wait is ended (docs/architecture.md#circles-of-waits).
"""

from __future__ import annotations

from msgspec import structs

from agentmesh.control_values import Probe
from agentmesh.records import Caller, Wait
from agentmesh.turn.values import Core, Phase


def open_waits(core: Core) -> dict[str, Wait]:
    """The waits of the running turn whose requests are sent and not answered."""
    turning, active = core.ledger.turning, core.active
    if core.phase is not Phase.TURN or turning is None or active is None or turning.key != active.key:
        return {}
    return {name: wait for name, wait in core.ledger.waits.items() if wait.outcome is None and wait.origin}


def holds(core: Core, sender: str, origin: str) -> bool:
    """Whether the agent has the request that `sender` sent with this origin, and owes it an outcome."""
    if any((mail.sender, mail.origin) == (sender, origin) for mail in core.prompts):
        return True
    callers = [core.active.caller if core.active is not None else None]
    callers += [item.caller for item in (core.ledger.next, *core.ledger.queue) if item is not None]
    callers += [entry.caller for entry in core.ledger.deferred.values()]
    return any(_is_of(caller, sender, origin) for caller in callers)


def _is_of(caller: Caller | None, sender: str, origin: str) -> bool:
    return caller is not None and (caller.sender, caller.tag) == (sender, origin) and bool(caller.path)


def begun(core: Core, wait: Wait, id: str) -> Probe:
    """The probe for one of the agent's own waits, to be sent to the agent that it waits for."""
    name = core.config.name
    return Probe(id=id, root=name, since=wait.since, origin=wait.origin, sender=name, request=wait.origin)


def handed_on(core: Core, probe: Probe) -> list[tuple[str, Probe]]:
    """The probes to send on for `probe`, with their targets: (agent, probe)."""
    waits = open_waits(core)
    if not waits or not holds(core, probe.sender, probe.request):
        return []
    name = core.config.name
    younger = (probe.since, probe.root, probe.origin)
    onward = [wait for wait in waits.values() if (wait.since, name, wait.origin) < younger]
    return [(wait.agent, structs.replace(probe, sender=name, request=wait.origin)) for wait in onward]
