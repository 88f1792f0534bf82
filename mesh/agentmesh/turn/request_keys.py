"""The key of a request that this agent has: waiting, running, kept open, or answered and not stored yet (agentmesh.keys)."""

from __future__ import annotations

from collections.abc import Iterator

from agentmesh.records import Echo, Resolve
from agentmesh.turn.values import Core


def digest_for(core: Core, ref: str) -> str | None:
    """The digest of the key of the request `ref`; None if it has no key, or the agent does not have it."""
    return next((key for key in _digests(core, ref) if key is not None), None)


def _digests(core: Core, ref: str) -> Iterator[str | None]:
    active = core.active
    if active is not None and active.ref == ref and active.caller is not None:
        yield active.caller.key
    for mail in core.prompts:
        if mail.ref == ref:
            yield mail.key
    for queued in (core.work.next, *core.work.queue):
        if queued is not None and queued.ref == ref and queued.caller is not None:
            yield queued.caller.key
    if ref in core.work.deferred:
        yield core.work.deferred[ref].caller.key
    for entry in core.ledger.effects.values():
        effect = entry.effect
        if (isinstance(effect, Resolve) and effect.outcome.ref == ref) or (isinstance(effect, Echo) and effect.ref == ref):
            yield effect.key
