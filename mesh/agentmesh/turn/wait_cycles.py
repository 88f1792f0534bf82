"""Circles of waits that no single path shows: A waits for B by one request, B for A by another. Pure.

A waiting agent sends a probe along each of its waits. Who gets one and waits itself, while it holds the request that brought the
probe there, hands it on along its own waits. A probe that comes back has found a circle: nobody in it can come to an end. It is
handed on only along waits that are older than the one that it was sent for, so of a circle's probes exactly one comes back: that
of its youngest wait, which ends with `cycle`; the others go on.

Nothing is believed that is not so at the moment of handing on: a request that was answered, or has not arrived yet, is not held.
What a circle is made of can then only change if a turn in it is killed or its time is over, and therefore a probe that came
back is followed by a second one before the wait is ended (docs/architecture.md#circles-of-waits).
"""

from __future__ import annotations

from msgspec import structs

from agentmesh.records import Caller, Wait
from agentmesh.turn.values import Core, Phase
from agentmesh.wire import Probe


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
    """The probe of an own wait, as it goes to whom that waits for."""
    name = core.config.name
    return Probe(id=id, root=name, since=wait.since, origin=wait.origin, sender=name, request=wait.origin)


def handed_on(core: Core, probe: Probe) -> list[tuple[str, Probe]]:
    """Where `probe` goes from here: (agent, probe)."""
    waits = open_waits(core)
    if not waits or not holds(core, probe.sender, probe.request):
        return []
    name = core.config.name
    younger = (probe.since, probe.root, probe.origin)
    onward = [wait for wait in waits.values() if (wait.since, name, wait.origin) < younger]
    return [(wait.agent, structs.replace(probe, sender=name, request=wait.origin)) for wait in onward]
