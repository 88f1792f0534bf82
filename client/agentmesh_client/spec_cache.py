"""The specs of the agents that this client talks to, kept up to date without a read per call.

For each name in use there is one plain subscription to the spec's changes, made *before* the spec is first read, so that no
change is missed between the two. A known life costs the hot path one dictionary look-up. The cache is trusted only for agents
that can be asked: before a caller is told that an agent is unknown, stopped or failed, the spec is read from the leader. A lost
change is harmless, because mail names the life that it is meant for (`Mesh-For`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.edge.registry import Entry, Registry, Watch, decode_spec
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.errors import AgentFailed, BadRequest, MeshError, NotFound, Stopped, StoreLost, Unavailable, UnreadableRecord
from agentmesh.names import agent_name
from agentmesh.registry_values import Spec
from agentmesh.subjects import spec_key

MOST_NAMES = 1024
"""Most names watched at a time; the oldest one that no call waits for is dropped first."""
RECHECK_S = 2.0
"""A call that waits for a change reads the spec this often, because a plain subscription can lose a message."""


class _Known:
    """One watched name."""

    __slots__ = ("agent", "changes", "fresh", "lock", "revision", "spec", "waiters", "watch")

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.spec: Spec | None = None
        self.revision = 0
        self.changes = 0
        self.fresh = False
        self.watch: Watch | None = None
        self.lock = asyncio.Lock()
        self.waiters: set[asyncio.Future[None]] = set()

    @property
    def idle(self) -> bool:
        return not self.waiters and not self.lock.locked()

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class SpecCache:
    """The specs of the names in use, kept up to date."""

    def __init__(self, registry: Registry, may_watch: Callable[[str], bool] = lambda agent: True) -> None:
        """`may_watch`: whether this user may hear of the changes of an agent's spec."""
        self._may_watch = may_watch
        self._registry = registry
        self.on_spec: Callable[[str, Spec], None] = lambda agent, spec: None
        """Called with each spec that is seen."""
        self._known: dict[str, _Known] = {}
        self.lives: dict[str, str] = {}
        """Incarnations of the agents that take mail now, by name."""

    async def close(self) -> None:
        """End all watches."""
        known, self._known = list(self._known.values()), {}
        self.lives.clear()
        for one in known:
            await self._unwatch(one)

    def doubt(self) -> None:
        """Changes may have been missed: read each spec again before it is used."""
        self.lives.clear()
        for known in self._known.values():
            known.fresh = False
            known.wake()

    def forget(self, agent: str) -> None:
        """Read `agent`'s spec again before it is used next."""
        self.lives.pop(agent, None)
        known = self._known.get(agent)
        if known is not None:
            known.fresh = False

    async def life(self, agent: str) -> str:
        """The incarnation to address mail for `agent` to.

        Raises:
            BadRequest: this cannot be an agent's name.
            NotFound: there is no such agent (it may have been stopped).
            Stopped: it is being stopped.
            AgentFailed: it has failed, and waits for `resume`.
            StoreLost: the store has lost its data.
            Unavailable: the registry cannot be read now.
        """
        known = self._entry(agent_name(agent))
        async with known.lock:
            if agent not in self.lives:  # many may have waited for one read
                await self._load(known)
        return _addressable(agent, known.spec)

    def over(self, agent: str, life: str) -> bool:
        """Whether that life is known to have ended, and the name has no new life."""
        known = self._known.get(agent)
        spec = None if known is None else known.spec
        return spec is not None and spec.status == "stopped" and spec.incarnation == life

    async def read(self, agent: str) -> Spec | None:
        """The spec as the leader has it now; None when there is none.

        Raises:
            BadRequest: this cannot be an agent's name.
            Unavailable: the registry cannot be read now.
        """
        entry = await self._registry.get(spec_key(agent_name(agent)))
        return None if entry is None or entry.value is None else decode_spec(entry)

    async def watch(self, agent: str) -> None:
        """Listen to `agent`'s spec from now on. `wait` does so itself; this is for calls that write first."""
        known = self._entry(agent)
        async with known.lock:
            await self._subscribe(known)

    async def wait(self, agent: str, settled: Callable[[Spec | None], bool], timeout: float) -> Spec | None:
        """The spec as soon as it is `settled`.

        Raises:
            TimeoutError: it was not within `timeout` seconds.
        """
        known = self._entry(agent)
        async with asyncio.timeout(timeout):
            tries = iter(CALL_RETRY)
            while True:
                if not known.fresh:
                    try:
                        async with known.lock:
                            if not known.fresh:
                                await self._load(known)
                    except Unavailable:
                        await asyncio.sleep(next(tries))
                        continue
                if settled(known.spec):
                    return known.spec
                await self._change(known)

    # --- inside ---------------------------------------------------------------------------------------------------
    def _entry(self, agent: str) -> _Known:
        known = self._known.get(agent)
        if known is None:
            known = self._known[agent] = _Known(agent)
        return known

    async def _load(self, known: _Known) -> None:
        """Subscribe to the spec's changes, then read it from the leader. The caller holds the lock."""
        await self._subscribe(known)
        known.fresh, changes = True, known.changes
        try:
            entry = await self._registry.get(spec_key(known.agent))
            if known.changes == changes or (entry is not None and entry.revision > known.revision):
                self._set(known, entry)
        except BaseException:
            known.fresh = False
            raise

    async def _subscribe(self, known: _Known) -> None:
        if known.watch is None and self._may_watch(known.agent):
            known.watch = await self._registry.watch(spec_key(known.agent), lambda entry: self._changed(known, entry))
            await self._evict()

    def _changed(self, known: _Known, entry: Entry) -> None:
        if entry.revision > known.revision:
            known.changes += 1
            try:
                self._set(known, entry)
            except BadRequest:
                self.forget(known.agent)  # the next read raises, and says that the spec is malformed
        known.wake()

    def _set(self, known: _Known, entry: Entry | None) -> None:
        known.spec = None if entry is None or entry.value is None else decode_spec(entry)
        known.revision = 0 if entry is None else entry.revision
        if known.spec is not None and known.spec.status in ("wanted", "running") and known.fresh:
            self.lives[known.agent] = known.spec.incarnation
        else:
            self.lives.pop(known.agent, None)
        if known.spec is not None:
            self.on_spec(known.agent, known.spec)

    async def _change(self, known: _Known) -> None:
        """Return at the next change; after `RECHECK_S` the spec counts as unknown."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        known.waiters.add(waiter)
        try:
            async with asyncio.timeout(RECHECK_S):
                await waiter
        except TimeoutError:
            known.fresh = False
        finally:
            known.waiters.discard(waiter)

    async def _evict(self) -> None:
        surplus = len(self._known) - MOST_NAMES
        if surplus > 0:
            for known in [one for one in self._known.values() if one.idle][:surplus]:
                del self._known[known.agent]
                self.lives.pop(known.agent, None)
                await self._unwatch(known)

    @staticmethod
    async def _unwatch(known: _Known) -> None:
        if known.watch is not None:
            watch, known.watch, known.fresh = known.watch, None, False
            await watch.close()


def _addressable(agent: str, spec: Spec | None) -> str:
    if spec is None or spec.status == "stopped":
        raise unknown(agent, spec)
    if spec.status == "stopping":
        raise Stopped(f"agent {agent!r} is being stopped; it takes no more prompts", details={"agent": agent})
    if spec.status == "failed":
        raise failed(agent, spec)
    return spec.incarnation


def unknown(agent: str, spec: Spec | None = None) -> NotFound:
    """The error for a name that no agent has; `spec` is the last one's: what ended it by itself is said."""
    reason = spec.reason if spec is not None else None
    if reason is not None and reason.code != Stopped.code:
        return NotFound(
            f"agent {agent!r} has ended ({reason.code}: {reason.message}); mend that, and start it again with "
            f"`mesh start {agent} --kind KIND`",
            details={"agent": agent, "reason": reason.code},
        )
    return NotFound(
        f"there is no agent {agent!r}; start it with `mesh start {agent} --kind KIND`, or see `mesh ps` for the names in use",
        details={"agent": agent},
    )


def failed(agent: str, spec: Spec) -> MeshError:
    """The error for an agent that has failed altogether, or whose data the store has lost."""
    if spec.reason is not None and spec.reason.code == StoreLost.code:
        return StoreLost(
            f"agent {agent!r} does not run: {spec.reason.message}; or give up what is lost: `mesh stop {agent}`",
            details={"agent": agent},
        )
    reason = "" if spec.reason is None else f" ({spec.reason.code}: {spec.reason.message})"
    return AgentFailed(
        f"agent {agent!r} has failed{reason}; `mesh resume {agent}` revives it",
        details={"agent": agent, "reason": spec.reason.code if spec.reason else None},
    )


def waiting(agent: str, spec: Spec) -> MeshError:
    """The error for an agent that nobody runs at the moment."""
    details = {"agent": agent, "status": spec.status, "kind": spec.kind}
    if spec.status != "wanted":
        return Unavailable(
            f"agent {agent!r} is `{spec.status}`, but nobody answers for it: its node is gone, and it waits for another; "
            "try again, or see `mesh nodes`",
            details=details,
        )
    if spec.reason is not None and spec.reason.code == UnreadableRecord.code:
        return UnreadableRecord(f"agent {agent!r} waits: {spec.reason.message}", details=details)
    why = f": {spec.reason.message}" if spec.reason and spec.reason.message else ""
    return Unavailable(
        f"agent {agent!r} is `wanted` and waits for a node that serves its kind {spec.kind!r}{why}; see `mesh nodes`",
        details=details,
    )
