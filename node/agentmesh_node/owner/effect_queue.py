"""Performs the effects of committed records: each until the server has acknowledged it, and those of one target in order.

Every effect is idempotent by its origin, so trying again, also after a takeover, changes nothing (docs/architecture.md#effects).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from agentmesh.edge.failures import EDGE_ERRORS, Uncertain
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import MeshError, NotPermitted, RequestError, TooLarge, WrongDomain
from agentmesh.records import Echo, Effect, Open, Resolve, SendMail, StartAgent, StopAgent, target_of
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.owner.effect_handlers import EffectHandlers, Refused

log = logging.getLogger("agentmesh.node")

RETRY = ExponentialBackoff(0.02, 0.5)
"""The longest pause is short, so that an effect is performed soon after a stream has elected a leader."""
PATIENCE_S = 30.0
"""How long an effect is tried on a full mailbox, or a name that is being stopped, before it comes back as `Undelivered`."""
UNKNOWN_AFTER_S = 6 * 24 * 3600.0
"""Age of a record after which it cannot be told whether its open effects were performed: the traces expire after seven days."""


class Item(msgspec.Struct):
    """An effect to be performed."""

    origin: str
    open: Open
    doubtful: bool
    """It may have been performed: by a former owner, or by an attempt of unknown fate."""
    refused_since: float | None = None
    elsewhere: ErrorBody | None = None
    """Another mesh has stored it: it must not be sent again."""


class EffectQueue:
    """Performs one owner's effects."""

    def __init__(
        self,
        handlers: EffectHandlers,
        done: Callable[[tuple[str, ...]], None],
        gave_up: Callable[[str, ErrorBody], None],
        *,
        now: Callable[[], float],
        window_s: float,
    ) -> None:
        """
        Args:
            done: called with the origins that the server has acknowledged.
            gave_up: called with the origin of an effect that is given up, and the reason.
            window_s: the streams' duplicate window: an effect that may have been performed is given up only after refusals for
                so long.
        """
        self._handlers = handlers
        self._done = done
        self._gave_up = gave_up
        self._now = now
        self._window_s = window_s
        self._queues: dict[str, deque[Item]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._failed_starts: dict[str, set[str]] = {}
        """Per record: names whose start was refused; the record's later effects on them fail too."""
        self.outcome: Outcome | None = None
        """The newest that was to be given."""

    def add(self, effects: Iterable[tuple[str, Open]], *, doubtful: bool = False) -> None:
        """Begin to perform `effects`, in order per target."""
        for origin, entry in effects:
            target = target_of(entry.effect)
            item = Item(origin, entry, doubtful)
            queue = self._queues.get(target)
            if queue is not None:
                queue.append(item)
                continue
            queue = self._queues[target] = deque((item,))
            if doubtful or not isinstance(entry.effect, Resolve) or not self._resolve_soon(target, item, entry.effect):
                self._begin(target)

    def _resolve_soon(self, target: str, item: Item, effect: Resolve) -> bool:
        """Give an outcome to its caller without a task: the most frequent effect, and one that is hardly ever refused. Returns
        whether it was sent; if storing it fails, it is tried again like any other effect."""
        queue = self._queues[target]
        self.outcome = effect.outcome

        def resolved(error: Exception | None) -> None:
            if self._queues.get(target) is not queue:
                return  # closed
            if error is not None:
                item.doubtful = item.doubtful or isinstance(error, Uncertain)
                self._begin(target)
                return
            queue.popleft()
            if not queue:
                del self._queues[target]
            self._done((item.origin,))
            if queue and self._queues.get(target) is queue:
                self._begin(target)

        try:
            return self._handlers.resolve_soon(effect, resolved)
        except MeshError:
            return False  # `_attempt` handles the error

    def _begin(self, target: str) -> None:
        task = asyncio.Task(self._work(target), loop=asyncio.get_running_loop(), name=f"effects {target}", eager_start=True)
        if not task.done():
            self._workers[target] = task

    async def close(self) -> None:
        """Stop. Effects that are not done stay open in the journal."""
        await cancel_and_wait(*self._workers.values())
        self._queues.clear()
        self._workers.clear()

    async def _work(self, target: str) -> None:
        queue = self._queues[target]
        try:
            while queue:
                if not await self._attempt(queue[0]):
                    await self._until_done(queue[0])
                queue.popleft()
        except asyncio.CancelledError:
            raise
        except Exception:
            # A defect of ours: the effect stays open, and a later owner tries again.
            log.exception("an effect cannot be performed", extra={"agent": self._handlers.agent, "target": target})
        finally:
            if self._queues.get(target) is queue:
                del self._queues[target]
            self._workers.pop(target, None)

    async def _until_done(self, item: Item) -> None:
        for pause in RETRY:
            await asyncio.sleep(pause)
            if await self._attempt(item):
                return

    async def _attempt(self, item: Item) -> bool:
        """Try once. Returns whether the effect is closed."""
        if item.elsewhere is not None:
            return await self._give_up(item, item.elsewhere, patience=0.0)
        if item.doubtful and self._now() - item.open.at > UNKNOWN_AFTER_S and _lapses(item.open.effect):
            error = ErrorBody(code="unknown", message="it was called for over six days ago, and may have been done since")
            self._close(item, error)
            return True
        try:
            if self._failed_starts:
                self._check_failed_start(item)
            await self._handlers.perform(item.origin, item.open)
        except Refused as refusal:
            return await self._give_up(item, refusal.error, patience=0.0)
        except TooLarge as error:
            return await self._give_up(item, ErrorBody.of(error), patience=0.0)
        except NotPermitted as error:  # by this node's user: its operator may yet permit it, or another node do it
            log.warning("an effect is tried again: %s", error, extra={"agent": self._handlers.agent})
            return False
        except RequestError as error:
            # A full mailbox, or a message that the server refuses.
            log.info("an effect is refused", extra={"agent": self._handlers.agent, "error": str(error)})
            return await self._give_up(item, ErrorBody.of(error), patience=PATIENCE_S)
        except Uncertain:
            item.doubtful = True
            return False
        except WrongDomain as error:
            return await self._not_again(item, error)
        except EDGE_ERRORS as error:
            log.debug("an effect is tried again: %s", error, extra={"agent": self._handlers.agent})
            return False
        self._done((item.origin,))
        return True

    async def _not_again(self, item: Item, error: WrongDomain) -> bool:
        """Another mesh has stored it, and would do so again: it is given up, unless it turns out to be stored here, too."""
        log.error("an effect went astray: %s", error, extra={"agent": self._handlers.agent})
        item.doubtful = True
        if not _never_given_up(item.open.effect):
            item.elsewhere = ErrorBody.of(error)
        return False

    # --- giving up ------------------------------------------------------------------------------------------------
    def _check_failed_start(self, item: Item) -> None:
        effect = item.open.effect
        record = item.origin.rpartition(".")[0]
        names = self._failed_starts.get(record, ())
        name = effect.to if isinstance(effect, SendMail) else effect.name if isinstance(effect, StartAgent | StopAgent) else None
        if name is not None and name in names:
            raise Refused(ErrorBody(code="not_found", message=f"{name} could not be started"))

    async def _give_up(self, item: Item, error: ErrorBody, *, patience: float) -> bool:
        """Give up a refused effect, if it has been refused for long enough. Returns whether it is closed. Outcomes, answers
        and withdrawals are never given up."""
        effect = item.open.effect
        if _never_given_up(effect):
            return False
        now = asyncio.get_running_loop().time()
        if item.refused_since is None:
            item.refused_since = now
        if isinstance(effect, SendMail) and item.doubtful:
            # It may have been delivered. It is given up only after the window, and if no trace of it is found.
            try:
                delivered = await self._handlers.was_delivered(item.origin, effect)
            except EDGE_ERRORS as trouble:
                log.debug("whether an effect was done cannot be told now: %s", trouble, extra={"agent": self._handlers.agent})
                return False
            if delivered:
                self._done((item.origin,))
                return True
            patience = max(patience, self._window_s)
        if now - item.refused_since < patience:
            return False
        self._close(item, error)
        return True

    def _close(self, item: Item, error: ErrorBody) -> None:
        """Give up the effect: it comes back to its agent as `Undelivered`."""
        effect = item.open.effect
        log.warning(
            "an effect is given up",
            extra={"agent": self._handlers.agent, "target": target_of(effect), "code": error.code, "error": error.message},
        )
        if isinstance(effect, StartAgent):
            self._failed_starts.setdefault(item.origin.rpartition(".")[0], set()).add(effect.name)
        self._gave_up(item.origin, error)


def _lapses(effect: Effect) -> bool:
    """Whether the traces of a performed effect expire after some days. (The agent's own ledger has its timers.)"""
    return isinstance(effect, SendMail | StartAgent | StopAgent) and not _never_given_up(effect)


def _never_given_up(effect: Effect) -> bool:
    """Whether an effect is never given up: outcomes and answers, which callers wait for, and withdrawals."""
    return isinstance(effect, Resolve | Echo) or (
        isinstance(effect, SendMail) and (effect.outcome is not None or effect.lane == "peer-answer")
    )
