"""Says in an agent's spec which version of records a node must read (docs/compatibility.md#which-nodes-get-an-agent)."""

from __future__ import annotations

import asyncio

import msgspec

from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import Entry, decode_spec
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.errors import Unavailable
from agentmesh.formats import required, requiring
from agentmesh.registry_values import encode_spec
from agentmesh.subjects import spec_key
from agentmesh_node.services import Services

PATIENCE_S = 30.0
"""How long it is tried: as long as the record behind it would be."""


async def require_readers(services: Services, agent: str, life: str, version: int) -> None:
    """Have the spec of this life require `version`. To be done before the first record of that version is written: no build's
    supervisor gives the agent to a node that cannot go on with it then.

    Raises:
        Unavailable: the registry could not be written in time.
    """
    end = asyncio.get_running_loop().time() + PATIENCE_S
    entry = services.specs.get(spec_key(agent))
    for pause in CALL_RETRY:
        try:
            if entry is None or not _is_of(entry, life):
                entry = await services.registry.get(spec_key(agent))
            if entry is not None and _is_of(entry, life):
                await _write(services, entry, version)
            return  # or the life is over, and with it this owner
        except EDGE_ERRORS as error:
            if asyncio.get_running_loop().time() + pause > end:
                raise Unavailable(f"the spec of {agent} cannot be written now: {error}") from None
            if not isinstance(error, WrongLastSequence):
                await asyncio.sleep(pause)
            entry = None


def _is_of(entry: Entry, life: str) -> bool:
    return decode_spec(entry).incarnation == life


async def _write(services: Services, entry: Entry, version: int) -> None:
    spec = decode_spec(entry)
    if required(spec.labels) >= version or spec.status == "stopped":
        return
    changed = msgspec.structs.replace(spec, labels=requiring(spec.labels, version))
    await services.registry.update(entry.key, encode_spec(changed, entry.value), entry.revision)
