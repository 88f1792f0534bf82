"""Starting and stopping agents.

A spec is desired state: to start an agent is to write one, to stop it is to mark it `stopping`. Supervisors and nodes do the
rest, and show their progress in the spec. All writes are compare-and-set, and each can be repeated when its fate is unknown,
because the incarnation in the spec shows which start wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import msgspec

from agentmesh.budget import limits_from
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, decode_spec
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.errors import AlreadyStarted, BadRequest, MeshError, StartError, Stopped, StoreLost, Unavailable
from agentmesh.formats import relabelled
from agentmesh.names import agent_name, token
from agentmesh.registry_values import Restart, RestartPolicy, Spec, encode_spec
from agentmesh.subjects import spec_key
from agentmesh.wire import check_depth_of, encode, format_time
from agentmesh_client.directory import Directory
from agentmesh_client.results import AgentInfo
from agentmesh_client.retry import patiently
from agentmesh_client.spec_cache import SpecCache, failed, unknown, waiting
from agentmesh_client.validation import json_bytes, seconds

MOST_TRIES = 20
"""Most compare-and-set tries on one spec; each failure means that somebody else has changed it."""
PLACEMENT_S = 2.0
"""Wait for a replica to show the placement of an agent that is already running."""


def new_spec(
    *,
    kind: object,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
    backend_options: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    restart: Restart | RestartPolicy | None = None,
    watchdog_s: float | None = None,
    budget: Mapping[str, Any] | None = None,
    ambient: Ambient = SYSTEM,
) -> Spec:
    """The spec of a new life.

    Raises:
        BadRequest: a value is of the wrong type or shape (case 3: before anything is written).
    """
    token(kind, "kind")
    if backend is not None:
        token(backend, "backend")
    if watchdog_s is not None:
        seconds(watchdog_s, "watchdog_s")
    if isinstance(restart, str):
        if restart not in get_args(RestartPolicy.__value__):
            raise BadRequest(f"{restart!r} is no restart policy; use permanent, transient or temporary")
        restart = Restart(policy=restart)
    draft = {
        "kind": kind,
        "incarnation": ambient.token(10),
        "status": "wanted",
        "backend": backend,
        "options": dict(options or {}),
        "backend_options": dict(backend_options) if backend_options else None,
        "labels": dict(labels or {}),
        "restart": restart or Restart(),
        "watchdog_s": watchdog_s,
        "budget": None if budget is None else dict(budget),
        "since": format_time(ambient.now()),
    }
    body = json_bytes(draft, "the agent's options, backend options, labels or budget")
    limits_from(budget)
    try:
        spec = msgspec.json.decode(body, type=Spec)  # nodes decode it so: what they could not read is refused here
    except msgspec.ValidationError as error:
        raise BadRequest(f"the agent cannot be described so: {error}") from None
    check_depth_of(body, [spec.options, spec.budget, spec.backend_options])
    return spec


class Starter:
    """Starts and stops agents by their specs."""

    def __init__(self, registry: Registry, specs: SpecCache, directory: Directory, ambient: Ambient = SYSTEM) -> None:
        self._registry = registry
        self._now = ambient.now
        self._specs = specs
        self._directory = directory

    # --- start ----------------------------------------------------------------------------------------------------
    async def start(self, name: str, spec: Spec, *, timeout: float, wait: bool, use: bool = False) -> AgentInfo:
        """Write `spec` under `name`, and wait until it runs; with `use`, an agent of this kind that is there will do. See
        `Mesh.start_agent`."""
        agent_name(name)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        await self._specs.watch(name)  # first, so that no change is missed
        taken = await self._claim(name, spec, end, use)
        self._specs.forget(name)
        spec = taken or spec
        if not wait:
            return _info(name, spec, None, existed=taken is not None)
        running = await self._running(name, spec, max(end - loop.time(), 0.0))
        return _info(name, running, await self.node_of(name, running), existed=taken is not None)

    async def node_of(self, name: str, spec: Spec) -> str | None:
        """The node that runs this life. A spec that is `running` is placed; a replica that does not show that yet is behind."""
        end = asyncio.get_running_loop().time() + PLACEMENT_S
        for pause in CALL_RETRY:
            node = await patiently(lambda: self._directory.node_of(name, spec.incarnation), PLACEMENT_S)
            if node is not None or spec.status != "running" or asyncio.get_running_loop().time() + pause > end:
                return node
            await asyncio.sleep(pause)
        raise AssertionError("CALL_RETRY has no end")

    async def _claim(self, name: str, spec: Spec, end: float, use: bool) -> Spec | None:
        """Write `spec` under `name`: as a new key, or in place of a stopped agent's. Returns None; with `use` the spec of the
        agent that has the name, if one of this kind does."""
        loop = asyncio.get_running_loop()
        for _ in range(MOST_TRIES):
            left = max(end - loop.time(), 0.5)
            taken = await patiently(partial(self._create, name, spec), left)
            if taken is None:
                return None
            current = decode_spec(taken)
            if current.status == "stopping" and await self._freed(name, current, max(end - loop.time(), 0.0)):
                continue
            if current.status != "stopped" and use and current.kind == spec.kind and current.status != "stopping":
                return current
            if current.status != "stopped":
                raise await self._taken(name, current, spec.kind)
            # `by` guards against repetitions of an older start or stop by an agent, so it must outlive the life
            # (docs/architecture.md#effects). So must the labels that say who can read the name's journal.
            heir = msgspec.structs.replace(spec, by=current.by, labels=relabelled(current.labels, spec.labels))
            if await patiently(partial(self._replace, name, heir, taken), left):
                return None
        raise Unavailable(f"agent {name!r} could not be started: others keep changing its spec; try again")

    async def _create(self, name: str, spec: Spec) -> Entry | None:
        """Write a new key. Returns None if that is done, else the entry that is there."""
        try:
            await self._registry.create(spec_key(name), encode(spec))
            return None
        except WrongLastSequence:
            entry = await self._registry.get(spec_key(name))
        except Unavailable:
            await self._registry.get(spec_key(name))  # raises if there is no such mesh, which a publish cannot tell
            raise
        if entry is None or entry.value is None:
            raise Unavailable(f"the registry does not yet agree on agent {name!r}; try again")
        return None if decode_spec(entry).incarnation == spec.incarnation else entry

    async def _replace(self, name: str, spec: Spec, old: Entry) -> bool:
        """Replace `old` by `spec`. Returns whether that is done."""
        try:
            await self._registry.update(spec_key(name), encode(spec), old.revision)
            return True
        except WrongLastSequence:
            entry = await self._registry.get(spec_key(name))
            return entry is not None and entry.value is not None and decode_spec(entry).incarnation == spec.incarnation

    async def _freed(self, name: str, old: Spec, timeout: float) -> bool:
        """Wait for the end of a life that is being stopped. Returns whether it ended in time."""
        try:
            await self._specs.wait(name, lambda spec: _ended(spec, old.incarnation), timeout)
        except TimeoutError:
            return False
        return True

    async def _taken(self, name: str, current: Spec, wanted: str) -> AlreadyStarted:
        node = await self.node_of(name, current)
        where = f"on node {node!r}" if node else f"(`{current.status}`, on no node yet)"
        ways = f"choose another name, or stop it first (`mesh stop {name}`)"
        if current.kind == wanted:
            ways += "; or take it as it is (`--if-exists use`)"
        return AlreadyStarted(
            f"agent {name!r} exists {where}, of the kind {current.kind!r}; {ways}",
            details={"agent": name, "node": node, "status": current.status, "kind": current.kind},
        )

    async def _running(self, name: str, spec: Spec, timeout: float) -> Spec:
        """The spec once it is `running`.

        Raises:
            StartError: `init_agent`, the backend or `pre_run` refused (cases 6, 7, 11).
            AgentFailed, Stopped: it ended otherwise.
            Unavailable: no node has taken it in time (case 221).
        """
        try:
            now = await self._specs.wait(name, lambda seen: _decided(seen, spec.incarnation), timeout)
        except TimeoutError:
            seen = await self._specs.read(name) or spec
            node = await self.node_of(name, seen)
            raise (waiting(name, seen) if node is None else _beginning(name, seen, node)) from None
        if now is None or now.incarnation != spec.incarnation:
            raise Stopped(f"agent {name!r} was stopped while it started, and the name has another life")
        if now.status != "running":
            raise _start_error(name, now)
        return now

    # --- stop -----------------------------------------------------------------------------------------------------
    async def stop(self, name: str, *, timeout: float, wait: bool) -> None:
        """Ask for the end of an agent, and wait for it. See `Mesh.stop`."""
        agent_name(name)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        await self._specs.watch(name)
        spec = await patiently(lambda: self._mark_stopping(name), timeout)
        self._specs.forget(name)
        if not wait:
            return
        try:
            await self._specs.wait(name, lambda seen: _ended(seen, spec.incarnation), max(end - loop.time(), 0.0))
        except TimeoutError:
            raise Unavailable(
                f"agent {name!r} is marked `stopping`, but nobody has finished its stop within {timeout:g} s; a node or the "
                "supervisor will when it is up (`mesh nodes`)",
                details={"agent": name, "status": "stopping"},
            ) from None

    async def _mark_stopping(self, name: str) -> Spec:
        for _ in range(MOST_TRIES):
            entry = await self._registry.get(spec_key(name))
            spec = None if entry is None or entry.value is None else decode_spec(entry)
            if entry is None or spec is None or spec.status == "stopped":
                raise unknown(name, spec)
            lost = spec.reason is not None and spec.reason.code == StoreLost.code
            if spec.status == "stopping" and not lost:
                return spec  # if the store has lost its data, this is the word to give that up
            stopping = msgspec.structs.replace(spec, status="stopping", reason=None, since=format_time(self._now()))
            try:
                await self._registry.update(spec_key(name), encode_spec(stopping, entry.value), entry.revision)
                return stopping
            except WrongLastSequence:
                continue
        raise Unavailable(f"agent {name!r} could not be stopped: others keep changing its spec; try again")


def _decided(spec: Spec | None, incarnation: str) -> bool:
    return spec is None or spec.incarnation != incarnation or spec.status not in ("wanted", "stopping")


def _ended(spec: Spec | None, incarnation: str) -> bool:
    return spec is None or spec.incarnation != incarnation or spec.status == "stopped"


def _start_error(name: str, spec: Spec) -> MeshError:
    """Why a life did not begin: the typed error of the spec's reason."""
    if spec.reason is not None:
        error = spec.reason.exception()
        if isinstance(error, StartError):
            error.details.setdefault("agent", name)
            error.message = f"agent {name!r} could not start: {error.message}"
            return error
    if spec.status == "failed":
        return failed(name, spec)
    reason = "" if spec.reason is None else f" ({spec.reason.code}: {spec.reason.message})"
    return Stopped(f"agent {name!r} was stopped while it started{reason}", details={"agent": name})


def _beginning(name: str, spec: Spec, node: str) -> Unavailable:
    """The error for an agent that is placed on a node, and whose own code takes longer to begin than the caller waits."""
    return Unavailable(
        f"agent {name!r} is on node {node!r}, but has not begun yet: its `init_agent`, its backend's start or its `pre_run` "
        f"takes longer than you waited, or hangs; `mesh ps` shows when it runs, `mesh stop {name}` ends the attempt",
        details={"agent": name, "status": spec.status, "kind": spec.kind, "node": node},
    )


def _info(name: str, spec: Spec, node: str | None, *, existed: bool) -> AgentInfo:
    return AgentInfo(name=name, kind=spec.kind, node=node, incarnation=spec.incarnation, status=spec.status, existed=existed)
