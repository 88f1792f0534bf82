"""The streams and buckets of a mesh: what each is configured as, and how they come to be.

Durations are nanoseconds, as the server's API wants them. Why each stream is as it is stands in
docs/protocol.md#streams: mail refuses when a lane is full; timers need message schedules, which exclude that on one stream
(docs/nats.md#schedules-and-discard-new); journals never drop anything by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from typing import Any, Protocol, runtime_checkable

from agentmesh.edge.api import call_api
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import PASSING_ERRORS, ApiError, WrongLastSequence
from agentmesh.edge.manage import stream_state
from agentmesh.edge.registry import MARKER_TTL_S, Registry
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, ConfigMismatch, ServerTooOld, Unavailable
from agentmesh.subjects import EPOCH_KEY, StreamRole, Subjects
from agentmesh.wire import MAIL_ROOM

log = logging.getLogger("agentmesh.edge")

MIN_SERVER = (2, 14)
"""Oldest nats-server that has what the mesh needs (schedules, delete markers, republish of them)."""
PATIENCE_S = 30.0
"""How long `ensure` waits for a cluster to elect its leaders."""

RESULTS_BYTES = 512 << 20
"""How much of outcomes is kept by default. The server sets this aside on its disk when it makes the stream."""
SESSION_MESSAGES = 100_000
"""Most messages in one part of a backend's session: what would come behind them is refused."""
DUPLICATE_WINDOW_S = 120.0
"""How long a stream drops repetitions of a message id by default."""
JOINING_S = 5.0
"""How long `ensure` waits for the servers that three replicas need."""

_RETRY_S = 0.25
_TELL_S = 2.0
"""A wait for the server that lasts this long is logged with its reason: a cluster that has just been started takes less."""
_SECOND = 1_000_000_000
_MICROSECONDS = 1_000_000
_IN_USE = 10058
_OVERLAP = 10065
_NO_STREAM = 10059
_TOO_FEW_SERVERS = (10005, 10074)


@runtime_checkable
class ServerFacts(Protocol):
    """What `ensure` asks of a transport about its server, if the transport knows."""

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Version of the server."""

    @property
    def clustered(self) -> bool:
        """Whether it belongs to a cluster."""


def stream_configs(
    subjects: Subjects,
    *,
    replicas: int,
    max_payload: int,
    mailbox_limit: int = 1000,
    results_age_s: float = 3600,
    results_bytes: int = RESULTS_BYTES,
    duplicate_window_s: float = DUPLICATE_WINDOW_S,
) -> dict[str, dict[str, Any]]:
    """The exact JSON of each stream's creation, by stream name.

    Args:
        max_payload: the server's limit, in bytes.
        mailbox_limit: most messages in one lane of one agent.
        results_age_s: how long outcomes are kept, at most.
        results_bytes: how much of them is kept; the oldest go first.
        duplicate_window_s: how long repetitions of a message id are dropped.
    """
    s, window = subjects, int(duplicate_window_s * _SECOND)
    mail = {
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": mailbox_limit,
        # No max_bytes and no max_msgs: a stranger's flood on one lane must not fill the others.
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": max_payload - MAIL_ROOM,
        # Otherwise anyone's `Nats-Rollup: all` would empty the stream.
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
    }
    # The server needs rollups for schedules, and turns them on by itself.
    timer = {"discard": "old", "allow_msg_schedules": True, "allow_rollup_hdrs": True}
    age = int(results_age_s * _SECOND)
    # By age and by size, not by number (case 27). The server wants no window that is longer than the age.
    result = {"discard": "old", "max_age": age, "max_bytes": results_bytes, "duplicate_window": min(window, age)}
    journal = {"discard": "new", "allow_rollup_hdrs": True, "allow_msg_ttl": True}
    registry = {
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": MARKER_TTL_S * _SECOND,
    }
    extras: dict[StreamRole, dict[str, Any]] = {
        "mail": mail,
        "timer": timer,
        "result": result,
        "journal": journal,
        "dead": {"discard": "old"},
        # Transcripts stay until their agent stops or moves on to a later session: neither age nor size may cut one.
        "session": {"discard": "new", "discard_new_per_subject": True, "max_msgs_per_subject": SESSION_MESSAGES},
        "registry": registry,
    }
    common = _common(replicas, window)
    configs = {s.stream(role): _config(s, role, common, extra) for role, extra in extras.items()}
    blobs = {"name": s.blob_stream, "subjects": s.blob_subjects(), "discard": "new", "allow_rollup_hdrs": True}
    configs[s.blob_stream] = {**common, **blobs}
    return configs


def _common(replicas: int, window: int) -> dict[str, Any]:
    return {
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_consumers": -1,
        "allow_direct": True,
        "duplicate_window": window,
    }


def _config(s: Subjects, role: StreamRole, common: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    # The fields that are special to this stream come first: a mismatch is reported for the first field that differs.
    config = {"name": s.stream(role), "subjects": s.stream_subjects(role), **extra, **common, **extra}
    republished = s.republished(role)
    if republished is not None:
        source, destination = republished
        config["republish"] = {"src": source, "dest": destination}
    return config


async def ensure(
    t: Transport,
    subjects: Subjects,
    *,
    replicas: int | None = None,
    mailbox_limit: int = 1000,
    results_age_s: float = 3600,
    results_bytes: int = RESULTS_BYTES,
    duplicate_window_s: float | None = None,
    now: Callable[[], float] = SYSTEM.now,
) -> None:
    """Create what does not exist yet: the streams, the registry with its `epoch`, the blob bucket. Any number of processes
    may do so at once, and again.

    Args:
        replicas: copies of each stream. None: what exists is taken as it is; new streams get 3 on a cluster of three or
            more servers, else 1.
        mailbox_limit: most messages in one lane of one agent.
        results_age_s: how long outcomes are kept, at most.
        results_bytes: how much of them is kept; the oldest go first.
        duplicate_window_s: how long repetitions of a message id are dropped. None: what exists is taken as it is; new streams
            get two minutes.
        now: the time. A stream that was deleted from a mesh in use is made anew with this, in microseconds, as its first
            sequence: beyond every sequence that it has given before.

    Raises:
        ServerTooOld: the server is older than 2.14.
        ConfigMismatch: a stream exists with another configuration; `details` name stream, field, wanted and found.
        Unavailable: JetStream is off, or has no leader for 30 s.
    """
    clustered = False
    if isinstance(t, ServerFacts):
        _check_version(t.server_version)
        clustered = t.clustered
    given = {"num_replicas": replicas, "duplicate_window": duplicate_window_s}
    taken_as_is = frozenset(field for field, value in given.items() if value is None)
    configs = partial(
        stream_configs,
        subjects,
        max_payload=t.max_payload,
        mailbox_limit=mailbox_limit,
        results_age_s=results_age_s,
        results_bytes=results_bytes,
        duplicate_window_s=duplicate_window_s or DUPLICATE_WINDOW_S,
    )
    try:
        # In a cluster 3 is tried first: how many servers it has is not known for sure while it starts.
        await _ensure_all(t, configs(replicas=replicas or (3 if clustered else 1)), taken_as_is, now)
    except _TooFewServers as error:
        if replicas is not None:
            raise Unavailable(
                f"the cluster has too few servers for {replicas} replicas ({error}); start more, or ask for fewer (--replicas)"
            ) from None
        await _ensure_all(t, configs(replicas=1), taken_as_is, now)
    await _patiently(partial(_ensure_epoch, t, subjects))


async def _ensure_all(
    t: Transport, configs: Mapping[str, dict[str, Any]], taken_as_is: Set[str], now: Callable[[], float]
) -> None:
    first_seq = int(now() * _MICROSECONDS) if await _has_worked(t, configs) else 1
    for config in configs.values():
        await _patiently(partial(_ensure_stream, t, config, taken_as_is, first_seq))


def _check_version(version: tuple[int, int, int]) -> None:
    if version[:2] < MIN_SERVER:
        found, needed = ".".join(map(str, version)), ".".join(map(str, MIN_SERVER))
        raise ServerTooOld(f"nats-server {found} is too old: upgrade to {needed} or newer", details={"version": found})


class _TooFewServers(Exception):
    """The cluster has fewer servers now than the stream wants replicas."""


async def _patiently(step: Callable[[], Awaitable[None]]) -> None:
    """Repeat `step` while the server cannot do it yet, as when the cluster has just started."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    told = False
    while True:
        try:
            await step()
            return
        except PASSING_ERRORS as error:
            if loop.time() >= started + PATIENCE_S:
                raise Unavailable(f"the mesh's streams cannot be created: {error}") from None
            if not told and loop.time() >= started + _TELL_S:
                told = True
                log.warning("waiting %g s at most for the mesh's streams: %s", PATIENCE_S, error)
        except _TooFewServers:
            if loop.time() >= started + JOINING_S:
                raise
        await asyncio.sleep(_RETRY_S)


async def duplicate_window(t: Transport, subjects: Subjects, *, timeout: float = 5.0) -> float:
    """How long the mesh's mail drops repetitions of a message id, in seconds, as its stream is configured.

    Raises:
        Unavailable: it cannot be told now.
    """
    try:
        state = await stream_state(t, subjects.stream("mail"), timeout=timeout)
    except ApiError as error:
        raise Unavailable(
            f"the mail of mesh {subjects.root!r} cannot be read: {error}; start the mesh, or check its root"
        ) from None
    return float(state.config["duplicate_window"]) / _SECOND


async def _has_worked(t: Transport, names: Iterable[str]) -> bool:
    """Whether this mesh has been in use: whether one of its streams has stored more than `ensure` writes itself."""
    newest = 0

    async def look(name: str) -> None:
        nonlocal newest
        try:
            newest = max(newest, (await stream_state(t, name)).last_seq)
        except ApiError as error:
            if error.err_code != _NO_STREAM:
                raise BadRequest(f"stream {name}: {error}") from None

    for name in names:
        await _patiently(partial(look, name))
    return newest > 1  # 1: the registry's epoch, written with the streams


async def _ensure_stream(t: Transport, config: dict[str, Any], taken_as_is: Set[str], first_seq: int) -> None:
    name = config["name"]
    try:
        state = await stream_state(t, name)
    except ApiError as error:
        if error.err_code != _NO_STREAM:
            raise BadRequest(f"stream {name}: {error}") from None
        # A stream that is made anew in a mesh in use must not give a sequence twice: refs, positions in lanes and generations are
        # sequences.
        if await _create(t, {**config, "first_seq": first_seq} if first_seq > 1 else config):
            return
        state = await stream_state(t, name)
    _compare(config, state.config, taken_as_is)


async def _create(t: Transport, config: dict[str, Any]) -> bool:
    """Create the stream. False: somebody else has just done so, with another configuration."""
    name = config["name"]
    try:
        await call_api(t, f"STREAM.CREATE.{name}", config)
    except ApiError as error:
        if error.err_code == _IN_USE:
            return False
        if error.err_code in _TOO_FEW_SERVERS and config["num_replicas"] > 1:
            raise _TooFewServers(str(error)) from None
        if error.err_code == _OVERLAP:
            raise ConfigMismatch(
                f"stream {name} cannot be created: another stream takes {', '.join(config['subjects'])}; "
                "remove that stream, or choose another root",
                details={"stream": name, "field": "subjects", "wanted": config["subjects"], "found": None},
            ) from None
        raise BadRequest(f"stream {name} cannot be created: {error}") from None
    return True


def _compare(wanted: dict[str, Any], found: dict[str, Any], taken_as_is: Set[str]) -> None:
    for field, value, there in differences(wanted, found):
        if field not in taken_as_is:
            raise ConfigMismatch(
                f"stream {wanted['name']} exists with {field} = {there!r}, this mesh wants {value!r}; "
                "change the option, or the stream",
                details={"stream": wanted["name"], "field": field, "wanted": value, "found": there},
            )


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where a stream's configuration differs: (field, wanted value, found value)."""
    for field, value in wanted.items():
        there = found.get(field)
        if field == "republish" and isinstance(there, dict):
            there = {"src": there.get("src"), "dest": there.get("dest")}
        # The server leaves fields out that are at their zero.
        if (there or False) != (value or False):
            yield field, value, there


async def _ensure_epoch(t: Transport, subjects: Subjects) -> None:
    registry = Registry(t, subjects)
    if await registry.get(EPOCH_KEY) is None:
        with contextlib.suppress(WrongLastSequence):  # somebody else has
            await registry.create(EPOCH_KEY, b"1")
