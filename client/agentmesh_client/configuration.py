"""Changing a running agent's configuration (docs/operations.md#the-configuration-of-a-running-agent).

What turns use is the journal's, so the agent's owner changes it, by a control request. Labels are the spec's: they are written
there, and move the agent; that needs no owner, so an agent that waits for a node can be given other labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from agentmesh.configuration import checked, merged
from agentmesh.control_values import Adjustment, ControlRequest, Status
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.errors import AskTimeout, BadRequest, Conflict, Unavailable
from agentmesh.formats import OWN_LABEL, relabelled, users_labels
from agentmesh.registry_values import Restart, RestartPolicy, Spec, encode_spec
from agentmesh.subjects import spec_key
from agentmesh_client.control import Control, ControlReply
from agentmesh_client.results import AgentUpdate
from agentmesh_client.retry import patiently
from agentmesh_client.spec_cache import unknown
from agentmesh_client.validation import json_bytes, seconds

MOST_TRIES = 20
"""Most compare-and-set tries on one spec; each failure means that somebody else has changed it."""

type LabelChanges = Mapping[str, str | None]


def adjustment(
    *,
    backend_options: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    watchdog_s: float | None = None,
    restart: Restart | RestartPolicy | None = None,
) -> Adjustment | None:
    """The change that is asked for; None if it is none.

    Raises:
        BadRequest: a value is of the wrong type or shape.
    """
    if isinstance(restart, str):
        if restart not in get_args(RestartPolicy.__value__):
            raise BadRequest(f"{restart!r} is no restart policy; use permanent, transient or temporary")
        restart = Restart(policy=restart)
    if watchdog_s is not None:
        seconds(watchdog_s, "watchdog_s")
    given = {
        "backend_options": dict(backend_options or {}),
        "budget": None if budget is None else dict(budget),
        "watchdog_s": watchdog_s,
        "restart": restart,
    }
    body = json_bytes(given, "the backend options, the budget or the restart policy")
    try:
        change = msgspec.json.decode(body, type=Adjustment)  # as the owner reads it
    except msgspec.ValidationError as error:
        raise BadRequest(f"an agent cannot be set so: {error}") from None
    return None if change == Adjustment() else checked(change)


def checked_labels(labels: LabelChanges) -> dict[str, str | None]:
    """LabelChanges to be given, and those to be taken away (None).

    Raises:
        BadRequest: they are no text, or the mesh's own.
    """
    if not isinstance(labels, Mapping) or not all(
        isinstance(k, str) and k and isinstance(v, str | None) for k, v in labels.items()
    ):
        raise BadRequest("labels are text by name; None takes one away")
    for key in labels:
        if key.startswith(OWN_LABEL):
            raise BadRequest(f"the label {key!r} is the mesh's own: labels that begin with {OWN_LABEL!r} cannot be set")
    return dict(labels)


AGAIN_S = 0.1
"""Wait before a request is made again of which its owner says that it waits."""


class Updater:
    """Changes the configuration of agents."""

    def __init__(self, control: Control, registry: Registry, ambient: Ambient = SYSTEM) -> None:
        self._control = control
        self._registry = registry
        self._token = ambient.token

    async def update(
        self, agent: str, change: Adjustment | None, labels: LabelChanges, *, expect: str | None, timeout: float
    ) -> AgentUpdate:
        """Make `change`, then give the agent `labels`. See `Mesh.update_agent`."""
        if change is None and not labels:
            raise BadRequest("nothing to set: give backend options, labels, a budget, a watchdog or a restart policy")
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        reply = ControlReply()
        if change is not None:
            reply = await self._set(agent, change, expect, timeout)
        elif expect is not None:
            status = await self._control.ask(agent, ControlRequest(op="status"), Status, timeout=timeout, repeat=True)
            reply = ControlReply(configuration=status.configuration)
            if status.configuration is None or status.configuration.tag != expect:
                raise _conflict(agent)
        if not labels:
            return AgentUpdate(name=agent, changed=reply.set, configuration=reply.configuration)
        expected = reply.configuration.labels if expect is not None and reply.configuration is not None else None
        left = max(end - loop.time(), 0.5)
        moved = await patiently(lambda: self._relabel(agent, labels, expected), left)
        shown = reply.configuration if not moved else None
        return AgentUpdate(name=agent, changed=reply.set or moved, configuration=shown)

    async def ensure(self, agent: str, backend_options: Mapping[str, Any], *, timeout: float) -> None:
        """Set these options of an agent that has just been started with them, if its node has not taken them: it is of an older
        build."""
        status = await self._control.ask(agent, ControlRequest(op="status"), Status, timeout=timeout, repeat=True)
        shown = status.configuration.backend_options if status.configuration is not None else {}
        if shown is not None and merged(shown, backend_options) != shown:
            await self.update(agent, adjustment(backend_options=backend_options), {}, expect=None, timeout=timeout)

    async def _set(self, agent: str, change: Adjustment, expect: str | None, timeout: float) -> ControlReply:
        # One id for all attempts: the owner makes the change once, however often it hears of it.
        request = ControlRequest(op="set", id=self._token(10), set=change, expect=expect)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        try:
            while loop.time() < end:
                reply = await self._control.ask(agent, request, ControlReply, timeout=end - loop.time(), repeat=True)
                if reply.status != "pending":
                    return reply
                await asyncio.sleep(AGAIN_S)  # it had come twice, and an owner of an older build says of one that it waits
            raise AskTimeout("it waits")
        except AskTimeout:
            raise AskTimeout(
                f"agent {agent!r} has not taken the change within {timeout:g} s: it may be in a turn, and takes it at the turn's "
                f"end unless it moves; ask again, which does no harm, or see `mesh status {agent}`",
                details={"agent": agent},
            ) from None

    async def _relabel(self, agent: str, labels: LabelChanges, expected: Mapping[str, str] | None) -> bool:
        """Write the labels into the spec. Returns whether that changes anything.

        Raises:
            NotFound: there is no such agent.
            Conflict: its labels are not those that were `expected`.
        """
        for _ in range(MOST_TRIES):
            entry = await self._registry.get(spec_key(agent))
            spec = None if entry is None or entry.value is None else decode_spec(entry)
            if entry is None or spec is None or spec.status == "stopped":
                raise unknown(agent, spec)
            wanted = _labelled(spec, labels)
            if wanted == spec.labels:
                return False
            if expected is not None and users_labels(spec.labels) != expected:
                raise _conflict(agent)
            try:
                changed = msgspec.structs.replace(spec, labels=wanted)
                await self._registry.update(spec_key(agent), encode_spec(changed, entry.value), entry.revision)
                return True
            except WrongLastSequence:
                continue
        raise Unavailable(f"agent {agent!r} could not be given its labels: others keep changing its spec; try again")


def _labelled(spec: Spec, labels: LabelChanges) -> dict[str, str]:
    merged = {**users_labels(spec.labels), **labels}
    return relabelled(spec.labels, {key: value for key, value in merged.items() if value is not None})


def _conflict(agent: str) -> Conflict:
    return Conflict(
        f"the configuration of agent {agent!r} is not the one that you expect: somebody has changed it; "
        f"see `mesh status {agent}`",
        details={"agent": agent},
    )
