"""The registry: a NATS key-value bucket, its change feed, and live copies of parts of it.

Any KV client can read and write the bucket. This module speaks its wire format itself, because leases need writes with a TTL and
an expected revision, and because a key must be creatable over the marker that a delete or an expiry leaves behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from agentmesh.edge.batches import in_parts
from agentmesh.edge.failures import ApiError, WrongLastSequence, explained
from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.manage import StreamState, stream_state
from agentmesh.edge.publish import EXPECTED_SEQ, ROLLUP, TTL, store
from agentmesh.edge.read import StoredMessage, get_last, read_all
from agentmesh.edge.tasks import Background, wait_for
from agentmesh.edge.transport import Message, Subscription, Transport
from agentmesh.errors import BadRequest, MeshError, Unavailable
from agentmesh.registry_values import NodeLease, Placement, Spec
from agentmesh.subjects import Subjects
from agentmesh.wire import check_depth_of

log = logging.getLogger("agentmesh.edge")

MARKER_TTL_S = 10
"""Seconds for which an expired key leaves a marker."""
DELETED_TTL_S = 3600
"""Seconds for which a deleted key leaves a marker. A server that is killed and started again brings back a value whose marker
has vanished meanwhile (docs/nats.md#what-a-killed-server-forgets): a placement that was deleted long ago, so that an agent
without an owner seems to have one. A marker that is still there keeps it away; it lasts until the server has saved its index for
sure."""
RESYNC_S = 30.0
"""How often a view reads the registry again although nothing seems missed."""
RESYNC_SHARE = 0.02
"""The largest share of its time that a view spends on that. A registry of 100,000 agents takes seconds to read, and every
process reads it: the server would be busy with little else."""

_OPERATION = "KV-Operation"
_MARKER = "Nats-Marker-Reason"
_TRIES = 40
_RETRY_WAIT_S = 0.05
_RELOAD_WAIT_S = 0.25
_LATE_S = 1.0
"""How late the server may drop what has expired, in seconds."""
_CONFIRMED_AT_ONCE = 256
"""Keys that the leader is asked about at the same time: behind a gap there may be thousands that were deleted meanwhile."""
_MOST_GONE = 16_384
"""Deleted keys that a view remembers; the oldest go first."""


class Entry(NamedTuple):
    """A key at one revision. `value` None: it was deleted or has expired."""

    key: str
    value: bytes | None
    revision: int


class Watch:
    """A running change feed."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        """Stop it."""
        await self._subscription.unsubscribe()


class Registry:
    """The registry of one mesh.

    Every call may also raise `Unavailable` (no connection or no leader; nothing was written) and, if it writes, `Uncertain`
    (no acknowledgement: read the key to learn whether it was written).
    """

    def __init__(self, transport: Transport, subjects: Subjects, *, reads: LastReads | None = None) -> None:
        """`reads` is given for a caller, who may be confined to some keys, and whose single reads may then be stale."""
        self._t = transport
        self._reads = reads
        self._subjects = subjects
        self._stream = subjects.stream("registry")
        self._prefix = len(subjects.registry_key(""))

    @property
    def transport(self) -> Transport:
        """The connection that it uses."""
        return self._t

    # --- reading ----------------------------------------------------------------------------------------------
    async def get(self, key: str) -> Entry | None:
        """The key as the leader has it; None if it is absent, deleted or expired."""
        return _present(await self._last(key))

    async def get_trace(self, key: str) -> Entry | None:
        """As `get`, but a key that was deleted or has expired is an entry without a value while its marker stands. So None means,
        for a key that was there within `DELETED_TTL_S`, that nobody has deleted it: the bucket was emptied."""
        return await self._last(key)

    async def end(self) -> int:
        """The newest revision that the bucket has given.

        Raises:
            Unavailable: it cannot be read now.
        """
        return (await self._state()).last_seq

    async def _state(self) -> StreamState:
        try:
            return await stream_state(self._t, self._stream)
        except ApiError as error:
            raise explained(error, self._stream, clustered=self._t.clustered) from None

    async def _last(self, key: str) -> Entry | None:
        subject = self._subjects.registry_key(key)
        if self._reads is not None:
            message = await self._reads.newest(self._stream, subject)
        else:
            message = await get_last(self._t, self._stream, subject)
        return None if message is None else self._entry(message)

    def _entry(self, message: StoredMessage) -> Entry:
        gone = _is_marker(message.headers)
        return Entry(message.subject[self._prefix :], None if gone else message.data, message.seq)

    async def load(self, prefix: str = "") -> tuple[list[Entry], int]:
        """Every key that has a value under `prefix` (`"agents."`, `"placements.n1."`, `""` for all), proven fresh: nothing that
        was committed before the call is missing.

        Returns: the entries, and a revision up to which they are current; the change feed brings what is newer.
        """
        return await self.load_pattern(prefix + ">")

    async def load_pattern(self, pattern: str) -> tuple[list[Entry], int]:
        """As `load`, for a key pattern with wildcards (`"nodes.*"`, `"agents.>"`, `"supervisor"`)."""
        state = await self._state()
        messages = await read_all(self._t, self._stream, self._subjects.registry_key(pattern))
        # By the server's clock, as far as the bucket shows it: a replica may show a lease for minutes after its term.
        now = max((message.time for message in messages), default=state.last_time)
        messages = [message for message in messages if not _is_over(message, max(now, state.last_time))]
        # A key that changed during the read may appear twice; the later one counts.
        newest = {message.subject: message for message in messages}
        entries: list[Entry] = []
        async for part in in_parts(newest.values()):
            entries += [entry for message in part if (entry := self._entry(message)).value is not None]
        return entries, max(state.last_seq, messages[-1].seq if messages else 0)

    # --- writing ----------------------------------------------------------------------------------------------
    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Write a key that must not exist. Markers of a deleted or expired one do not count.

        Returns: its revision.

        Raises:
            WrongLastSequence: the key exists.
        """
        expected = 0
        for _ in range(_TRIES):
            try:
                return await self.update(key, value, expected, ttl_s=ttl_s)
            except WrongLastSequence:
                entry = await self._last(key)
            if entry is not None and entry.value is not None:
                raise WrongLastSequence(entry.revision)
            there = 0 if entry is None else entry.revision
            if there == expected:
                await asyncio.sleep(_RETRY_WAIT_S)  # a marker came or went between the two
            expected = there
        raise Unavailable(f"registry key {key} changes all the time; try again")

    async def update(self, key: str, value: bytes, revision: int, *, ttl_s: int | None = None) -> int:
        """Write the key if `revision` is still its newest. With `ttl_s` (whole seconds) it expires unless it is written
        again; a write without it makes the key permanent.

        Returns: the new revision.

        Raises:
            WrongLastSequence: it has another revision.
        """
        return await self._write(key, value, revision, {} if ttl_s is None else {TTL: str(ttl_s)})

    async def delete(self, key: str, revision: int) -> bool:
        """Delete the key if `revision` is still its newest. The marker vanishes by itself after `DELETED_TTL_S`.

        Returns: False if it has another revision, or was gone.
        """
        # PURGE and not DEL: the server takes it for a marker, so its expiry leaves no second one.
        headers = {_OPERATION: "PURGE", ROLLUP: "sub", TTL: str(DELETED_TTL_S)}
        try:
            await self._write(key, b"", revision, headers)
        except WrongLastSequence:
            return False
        return True

    async def _write(self, key: str, value: bytes, revision: int, headers: dict[str, str]) -> int:
        subject = self._subjects.registry_key(key)
        headers[EXPECTED_SEQ] = str(revision)
        for _ in range(_TRIES):
            try:
                return (await store(self._t, subject, value, headers=headers)).seq
            except WrongLastSequence as error:
                if error.last is not None:
                    raise
            await asyncio.sleep(_RETRY_WAIT_S)
        raise Unavailable(f"the registry gives no verdict on {key}; try again")

    # --- changes ----------------------------------------------------------------------------------------------
    async def watch(self, pattern: str, handler: Callable[[Entry], None], on_emptied: Callable[[], None] = lambda: None) -> Watch:
        """Call `handler` with each change of a key that matches `pattern`, from now on. Changes are committed writes; a
        deleted or expired key has the value None. A change can be missed (`Transport.on_gap`): use `View` for a copy.

        `on_emptied` is called for one that has removed all other keys (`Nats-Rollup: all`), which is not the mesh's.
        """

        def on_message(message: Message) -> None:
            revision = message.headers.get("Nats-Sequence", "")
            if not revision.isdigit():
                return  # not from the server
            if message.headers.get(ROLLUP) == "all":
                on_emptied()
            key = self._subjects.parse_registry_change(message.subject)
            handler(Entry(key, None if _is_marker(message.headers) else message.data, int(revision)))

        return Watch(await self._t.subscribe(self._subjects.registry_change(pattern), on_message))


def _present(entry: Entry | None) -> Entry | None:
    return entry if entry is not None and entry.value is not None else None


def _is_over(message: StoredMessage, now: float) -> bool:
    """Whether the term of a key has passed, although it is stored."""
    ttl = message.headers.get(TTL, "")
    return ttl.isdigit() and message.time + int(ttl) < now - _LATE_S


def _is_marker(headers: Mapping[str, str]) -> bool:
    return _OPERATION in headers or _MARKER in headers


class View:
    """A live copy of the keys that match some patterns.

    It subscribes first, then loads, and applies changes by revision, so that an older one never replaces a newer. After a
    gap, and every `resync_s` seconds (less often if that would take more than `RESYNC_SHARE` of the time), it loads again.
    """

    def __init__(
        self,
        registry: Registry,
        patterns: Sequence[str],
        on_change: Callable[[Entry], None] | None = None,
        *,
        resync_s: float = RESYNC_S,
    ) -> None:
        self._registry = registry
        self._patterns = tuple(patterns)
        self._on_change = on_change
        self._resync_s = resync_s
        self._entries: dict[str, Entry] = {}
        self._gone: dict[str, int] = {}
        """Deletions that were seen, by key: the revision up to which it is gone. A load may not have seen them yet; and what was
        deleted may be stored again behind the death of a server."""
        self._floor = 0
        """Revision up to which this copy is complete: that of the last load."""
        self._old_news = 0
        """Changes up to this revision are ignored: the last load has them, or the one that is being merged now."""
        self._fresh = False
        self._gaps = 0
        self._load_took_s = 0.0
        self._wake = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._watches: list[Watch] = []
        self._remove_gap: Callable[[], None] = lambda: None
        self._refresher = Background("follow the registry")

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The keys that have a value. A view of the copy, not a snapshot."""
        return MappingProxyType(self._entries)

    @property
    def fresh(self) -> bool:
        """Whether nothing is known to have been missed: False before the first load, while there is no connection, and
        from a gap until the copy has been loaded again."""
        return self._fresh and self._registry.transport.connected

    @property
    def floor(self) -> int:
        """Revision up to which this copy is complete: a key that was written no later and is not here is gone."""
        return self._floor

    def get(self, key: str) -> Entry | None:
        """The key, or None."""
        return self._entries.get(key)

    # --- life -------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Subscribe and load. Returns when the copy is complete.

        Raises:
            Unavailable: the registry cannot be read now; the view is closed again.
        """
        self._remove_gap = self._registry.transport.on_gap(self.doubt)
        try:
            for pattern in self._patterns:
                self._watches.append(await self._registry.watch(pattern, self._apply, self.doubt))
            await self._load()
        except BaseException:
            await self.close()
            raise
        self._refresher.begin(self._keep_fresh())

    async def close(self) -> None:
        """Stop following. The copy stays readable, and is no longer fresh."""
        self._remove_gap()
        await self._refresher.close()
        for watch in self._watches:
            await watch.close()
        self._watches.clear()
        self._fresh = False

    async def wait_for(self, predicate: Callable[[], bool], timeout: float) -> None:
        """Return once `predicate()` holds; it is asked again after every change of the copy or of `fresh`.

        Raises:
            TimeoutError: it does not hold within `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate():
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)

    async def _keep_fresh(self) -> None:
        wait = self._pause() if self._fresh else 0.0
        while True:
            await wait_for(self._wake, wait)
            try:
                await self._load()
                wait = self._pause()
            except MeshError as error:
                log.debug("the registry cannot be read again now: %s", error)
                wait = _RELOAD_WAIT_S

    def _pause(self) -> float:
        return max(self._resync_s, self._load_took_s / RESYNC_SHARE)

    # --- changes ----------------------------------------------------------------------------------------------
    def doubt(self) -> None:
        """Load again at once: changes may have been missed."""
        self._gaps += 1
        self._fresh = False
        self._wake.set()
        self._notify_waiters()

    async def _load(self) -> None:
        gaps, began = self._gaps, asyncio.get_running_loop().time()
        loaded: dict[str, Entry] = {}
        floors: list[int] = []
        for pattern in self._patterns:
            entries, revision = await self._registry.load_pattern(pattern)
            loaded.update((entry.key, entry) for entry in entries)
            floors.append(revision)
        floor = min(floors, default=0)
        if floor < self._floor:
            self._gone.clear()  # the store was put back: revisions are given a second time
        await self._confirm(loaded, floor)
        await self._merge(loaded, floor)
        self._fresh = gaps == self._gaps
        self._load_took_s = asyncio.get_running_loop().time() - began
        self._notify_waiters()

    async def _confirm(self, loaded: dict[str, Entry], floor: int) -> None:
        """Correct `loaded` where it contradicts this copy: replicas may lack a key, or show one that has expired; and a server
        that was killed may have brought back one that was deleted, which counts for nothing here."""
        doubtful: list[str] = []
        async for keys in in_parts(list(self._entries)):
            doubtful += [key for key in keys if key not in loaded and self._entries[key].revision <= floor]
        async for entries in in_parts(list(loaded.values())):
            for entry in entries:
                if entry.revision <= self._gone.get(entry.key, 0):
                    del loaded[entry.key]
                elif entry.revision <= self._floor and entry.key not in self._entries:
                    doubtful.append(entry.key)
        for start in range(0, len(doubtful), _CONFIRMED_AT_ONCE):
            group = doubtful[start : start + _CONFIRMED_AT_ONCE]
            for key, entry_now in zip(group, await asyncio.gather(*(self._registry.get(key) for key in group)), strict=True):
                if entry_now is None:
                    loaded.pop(key, None)
                else:
                    loaded[key] = entry_now

    async def _merge(self, loaded: dict[str, Entry], floor: int) -> None:
        """Replace the copy by what was loaded, except where the feed has a newer change, or brings one meanwhile."""
        self._old_news = floor
        async for keys in in_parts(list(self._entries)):
            for key in keys:
                known = self._entries.get(key)
                if known is not None and known.revision <= floor and key not in loaded:
                    del self._entries[key]
                    self._note_gone(key, known.revision)
                    self._report(Entry(key, None, floor))
        async for entries in in_parts(loaded.values()):
            for entry in entries:
                known = self._entries.get(entry.key)
                newest = max(known.revision if known else 0, self._gone.get(entry.key, 0))
                if entry.revision > newest:
                    self._entries[entry.key] = entry
                    self._report(entry)
        self._floor = floor

    def _note_gone(self, key: str, revision: int) -> None:
        self._gone.pop(key, None)  # the newest stand at the end
        self._gone[key] = revision
        if len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def _apply(self, entry: Entry) -> None:
        """One change from the feed."""
        known = self._entries.get(entry.key)
        newest = max(self._old_news, known.revision if known else 0, self._gone.get(entry.key, 0))
        if entry.revision <= newest:
            return
        if entry.value is None:
            self._note_gone(entry.key, entry.revision)
            # Reported even if this copy never had the key: the listener may know it from a write of its own.
            self._entries.pop(entry.key, None)
        else:
            self._entries[entry.key] = entry
        self._report(entry)
        self._notify_waiters()

    def _report(self, entry: Entry) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(entry)
        except Exception:
            log.exception("a handler of registry changes failed on %s", entry.key)

    def _notify_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


_spec = msgspec.json.Decoder(Spec)
_node = msgspec.json.Decoder(NodeLease)
_placement = msgspec.json.Decoder(Placement)
_epoch: msgspec.json.Decoder[int] = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)])
"""What stands in records, and every client's JSON can read."""


def decode_spec(entry: Entry) -> Spec:
    """The spec in `agents.<name>`.

    Raises:
        BadRequest: the value is malformed, or the key is gone.
    """
    spec = _decode(_spec, entry)
    try:
        # Options and budget go into the agent's records, which must be encodable.
        check_depth_of(entry.value or b"", [spec.options, spec.budget, spec.backend_options])
    except BadRequest as error:
        raise _malformed(entry, error.message) from None
    return spec


def readable_spec(entry: Entry | None) -> Spec | None:
    """The spec in `agents.<name>`; None if there is none or it is malformed, which the supervisor reports."""
    try:
        return decode_spec(entry) if entry is not None else None
    except BadRequest:
        return None


def decode_epoch(entry: Entry) -> int:
    """The number in `epoch`, which is at least 1. Raises: as `decode_spec`."""
    return _decode(_epoch, entry)


def decode_node(entry: Entry) -> NodeLease:
    """The lease in `nodes.<id>`. Raises: as `decode_spec`."""
    return _decode(_node, entry)


def decode_placement(entry: Entry) -> Placement:
    """The placement in `placements.<node>.<agent>`. Raises: as `decode_spec`."""
    return _decode(_placement, entry)


def _decode[T](decoder: msgspec.json.Decoder[T], entry: Entry) -> T:
    if entry.value is None:
        raise BadRequest(f"registry key {entry.key} is gone")
    try:
        return decoder.decode(entry.value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _malformed(entry, str(error)) from None


def _malformed(entry: Entry, why: str) -> BadRequest:
    return BadRequest(
        f"registry key {entry.key} holds a malformed value: {why}; write the key again or delete it, with any KV client"
    )
