"""How the streams and buckets of a mesh come to be, and whether they are there.

Only `mesh setup` makes them, and what runs it for itself (`mesh up`, the demo, tests): a server that opened its store with a
wrong key shows none, and making them then destroys what is stored (docs/design/019-creating-is-a-verb.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.failures import PASSING_ERRORS, ApiError, WrongLastSequence
from agentmesh.edge.manage import stream_state
from agentmesh.edge.registry import Registry
from agentmesh.edge.server_errors import NO_STREAM
from agentmesh.edge.stream_configs import (
    DUPLICATE_WINDOW_S,
    RESULTS_BYTES,
    addition,
    differences,
    options,
    purpose,
    stream_configs,
)
from agentmesh.edge.transport import Message, Transport
from agentmesh.errors import BadRequest, ConfigMismatch, ServerTooOld, StreamMissing, Unavailable
from agentmesh.subjects import EPOCH_KEY, PROBE, Subjects

log = logging.getLogger("agentmesh.edge")

MIN_SERVER = (2, 14)
"""Oldest nats-server that has what the mesh needs (schedules, delete markers, republish of them)."""
PATIENCE_S = 30.0
"""How long a cluster may take to elect its leaders."""
JOINING_S = 5.0
"""How long is waited for the servers that three replicas need."""

FIRST_S, OTHERS_S = 2.0, 1.0
"""Waits for the answers of those who hear a publish."""

_REFUSED = {"Nats-Expected-Stream": "_none"}
"""Every stream refuses a message that is meant for another."""
_RETRY_S = 0.25
_TELL_S = 2.0
"""A wait for the server that lasts this long is logged with its reason: a cluster that has just been started takes less."""
_SECOND = 1_000_000_000
_MICROSECONDS = 1_000_000
_IN_USE = 10058
_OVERLAP = 10065
_TOO_FEW_SERVERS = (10005, 10074)


@runtime_checkable
class ServerFacts(Protocol):
    """What is asked of a transport about its server, if the transport knows."""

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Version of the server."""

    @property
    def clustered(self) -> bool:
        """Whether it belongs to a cluster."""


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose of the streams. None takes what exists as it is, and the default for what is made."""

    replicas: int | None = None
    """Copies of each stream. By default 3 on a cluster of three or more servers, else 1."""
    mailbox_limit: int | None = None
    """Most messages in one lane of one agent. By default 1,000."""
    results_age_s: float | None = None
    """How long outcomes are kept, at most. By default an hour."""
    results_bytes: int | None = None
    """How much of them is kept. By default `RESULTS_BYTES`."""
    duplicate_window_s: float | None = None
    """How long repetitions of a message id are dropped. By default two minutes."""
    trace_age_s: float | None = None
    """How long facts of traces are kept, at most. By default `TRACE_AGE_S`."""
    trace_bytes: int | None = None
    """How much of them is kept. By default `TRACE_BYTES`."""

    def chosen(self) -> frozenset[str]:
        """Those that decide something."""
        return frozenset(name for name in self.__struct_fields__ if getattr(self, name) is not None)

    def configs(self, subjects: Subjects, max_payload: int, replicas: int) -> dict[str, dict[str, Any]]:
        """What each stream is to be, where `replicas` are made unless the options say how many."""
        limits = {name: getattr(self, name) for name in ("mailbox_limit", "results_age_s", "trace_age_s", "trace_bytes")}
        return stream_configs(
            subjects,
            replicas=self.replicas or replicas,
            max_payload=max_payload,
            results_bytes=self.results_bytes or RESULTS_BYTES,
            duplicate_window_s=self.duplicate_window_s or DUPLICATE_WINDOW_S,
            **{name: value for name, value in limits.items() if value is not None},
        )


class Widening(NamedTuple):
    """A field of a stream that gets more than it has."""

    stream: str
    field: str
    found: Any
    wanted: Any


class StreamPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `carry_out` would do to give a mesh all its streams."""

    create: list[dict[str, Any]]
    """The configurations of those to be made."""
    change: list[Widening]
    lost: list[str]
    """Of those to be made: what every mesh has. It is a new mesh, or has lost them, or the server cannot read its store."""
    known: bool
    """Whether any of the mesh's streams is there."""
    chosen: frozenset[str]
    """The names of what an operator chose, in `StreamSettings`."""

    def refusal(self, root: str) -> StreamMissing | None:
        """Why this must not be carried out unless somebody says that what is missing never was, or is given up."""
        if not self.lost:
            return None
        details = {"missing": self.lost}
        if not self.known:
            return StreamMissing(
                f"this account has no stream of mesh {root!r}: if that mesh is new, say so with `mesh setup --new`. If there "
                "was one, do not: look for its server, account and root, and for the server's store directory and encryption "
                "key; what is stored can be lost when its streams are made anew",
                details=details,
            )
        return StreamMissing(
            f"mesh {root!r} has lost {', '.join(self.lost)}: restore them from their backup; or give up what was in them, and "
            "have them made anew, empty, by `mesh setup --new`",
            details=details,
        )


async def plan(
    t: Transport, subjects: Subjects, wanted: StreamSettings | None = None, *, patience_s: float = PATIENCE_S
) -> StreamPlan:
    """What is to be done so that the mesh has all its streams. Nothing is changed.

    Raises:
        ServerTooOld: the server is older than 2.14.
        ConfigMismatch: a stream exists with another configuration, which cannot be had by adding to it; `details` name stream,
            field, wanted and found.
        Unavailable: JetStream is off, or has no leader for `patience_s` (30 s by default).
    """
    # In a cluster 3 is tried first: how many servers it has is not known for sure while it starts.
    wanted = wanted or StreamSettings()
    configs = wanted.configs(subjects, t.max_payload, 3 if _checked_server(t) else 1)
    found = await _found(t, configs, patience_s)
    chosen = wanted.chosen()
    changes = [
        change
        for name, config in configs.items()
        if (there := found[name]) is not None
        for change in _changes(config, there, chosen)
    ]
    absent = [name for name, there in found.items() if there is None]
    return StreamPlan(
        create=[configs[name] for name in absent],
        change=changes,
        lost=[name for name in absent if purpose(subjects, name) is None],
        known=len(absent) < len(found),
        chosen=chosen,
    )


async def carry_out(t: Transport, subjects: Subjects, plan: StreamPlan, *, now: Callable[[], float] = SYSTEM.now) -> None:
    """Make and widen what `plan` says. Any number of processes may do so at once, and again.

    Args:
        now: the time. A stream of a mesh in use is made with this, in microseconds, as its first sequence: beyond every sequence
            that it may have given before.

    Raises:
        ConfigMismatch, Unavailable: as `plan`.
        Unavailable: the cluster has too few servers for the replicas that are asked for.
        BadRequest: the server refuses it.
    """
    first_seq = int(now() * _MICROSECONDS) if plan.create and await _has_worked(t, subjects) else 1
    replicas: dict[str, int] = {}
    for config in plan.create:
        try:
            await _patiently(partial(_make, t, {**config, **replicas}, plan.chosen, first_seq))
        except _TooFewServers as error:
            if "replicas" in plan.chosen:
                raise Unavailable(
                    f"the cluster has too few servers for {config['num_replicas']} replicas ({error}); start more, or ask for "
                    "fewer (--replicas)"
                ) from None
            replicas = {"num_replicas": 1}
            await _patiently(partial(_make, t, {**config, **replicas}, plan.chosen, first_seq))
    for stream in dict.fromkeys(change.stream for change in plan.change):
        await _patiently(partial(_widen, t, stream, [change for change in plan.change if change.stream == stream]))
    await _patiently(partial(_ensure_epoch, t, subjects))


async def ensure(
    t: Transport,
    subjects: Subjects,
    *,
    replicas: int | None = None,
    mailbox_limit: int | None = None,
    results_age_s: float | None = None,
    results_bytes: int | None = None,
    duplicate_window_s: float | None = None,
    trace_age_s: float | None = None,
    trace_bytes: int | None = None,
    now: Callable[[], float] = SYSTEM.now,
) -> None:
    """`plan` and `carry_out` where it is certain that what is missing may be made: the registry gets its `epoch`, too.

    Args: see `StreamSettings` and `carry_out`.

    Raises: as these.
    """
    wanted = StreamSettings(
        replicas=replicas,
        mailbox_limit=mailbox_limit,
        results_age_s=results_age_s,
        results_bytes=results_bytes,
        duplicate_window_s=duplicate_window_s,
        trace_age_s=trace_age_s,
        trace_bytes=trace_bytes,
    )
    await carry_out(t, subjects, await plan(t, subjects, wanted), now=now)


class Absent(NamedTuple):
    """What a mesh lacks."""

    lost: list[str]
    """Streams that every mesh has: nothing works without them."""
    later: dict[str, str]
    """Streams, and fields as `stream.field`, that an older mesh has not got, each with what it is for: the rest works without."""


async def absent(t: Transport, subjects: Subjects, *, patience_s: float = PATIENCE_S) -> Absent:
    """What a process of the mesh does not find on the server. Nothing is changed.

    Raises:
        ServerTooOld, ConfigMismatch, Unavailable: as `plan`.
        ConfigMismatch: a stream lacks what every mesh has, too.
    """
    wanted = await plan(t, subjects, patience_s=patience_s)
    later = {config["name"]: purpose(subjects, config["name"]) for config in wanted.create}
    for change in wanted.change:
        stream, field, found, more = change
        known = later[f"{stream}.{field}"] = purpose(subjects, stream, field)
        if known is None:
            raise ConfigMismatch(
                f"stream {stream} exists with {field} = {found!r}, this mesh needs {more!r}: `mesh setup` adds it",
                details={"stream": stream, "field": field, "wanted": more, "found": found},
            )
    return Absent(wanted.lost, {name: text for name, text in later.items() if text is not None})


async def audience(t: NatsTransport, subjects: Subjects, *, first_s: float = FIRST_S, others_s: float = OTHERS_S) -> int:
    """How many sets of this mesh's streams hear what is published here: 1 if all is well, 2 where a leaf node has one of its own.

    What is published is refused by all of them, so nothing is stored. 0 may also mean that this user may not publish mail.

    Args:
        first_s: longest wait for the first answer, in seconds.
        others_s: wait for each further one.
    """
    heard: asyncio.Queue[Message] = asyncio.Queue()
    inbox = t.new_inbox()
    subscription = await t.subscribe(inbox, heard.put_nowait)
    count = 0
    try:
        await t.publish(subjects.inbox(PROBE), headers=_REFUSED, reply=inbox)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(others_s if count else first_s):
                    message = await heard.get()
                if message.status == "503":
                    break
                count += 1
    finally:
        await subscription.unsubscribe()
    return count


async def account_has_streams(t: Transport) -> bool:
    """Whether the account has any stream, of whatever mesh or application: then its store can be read.

    Raises:
        Unavailable: see `plan`.
    """
    found = False

    async def look() -> None:
        nonlocal found
        found = bool(msgspec.json.decode(await call_api(t, "STREAM.NAMES")).get("total"))

    await _patiently(look)
    return found


def _checked_server(t: Transport) -> bool:
    """Whether the server belongs to a cluster."""
    if not isinstance(t, ServerFacts):
        return False
    _check_version(t.server_version)
    return t.clustered


def _check_version(version: tuple[int, int, int]) -> None:
    if version[:2] < MIN_SERVER:
        found, needed = ".".join(map(str, version)), ".".join(map(str, MIN_SERVER))
        raise ServerTooOld(f"nats-server {found} is too old: upgrade to {needed} or newer", details={"version": found})


class _TooFewServers(Exception):
    """The cluster has fewer servers now than the stream wants replicas."""


async def _patiently(step: Callable[[], Awaitable[None]], patience_s: float = PATIENCE_S) -> None:
    """Repeat `step` while the server cannot do it yet, as when the cluster has just started; for `patience_s`."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    told = False
    while True:
        try:
            await step()
            return
        except PASSING_ERRORS as error:
            if loop.time() >= started + patience_s:
                raise Unavailable(f"the mesh's streams cannot be used: {error}") from None
            if not told and loop.time() >= started + _TELL_S:
                told = True
                log.warning("waiting %g s at most for the mesh's streams: %s", patience_s, error)
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


async def _found(t: Transport, names: Mapping[str, Any], patience_s: float) -> dict[str, dict[str, Any] | None]:
    """The configuration of each stream; None for one that does not exist."""
    found: dict[str, dict[str, Any] | None] = {}

    async def look(name: str) -> None:
        try:
            found[name] = (await stream_state(t, name)).config
        except ApiError as error:
            if error.err_code != NO_STREAM:
                raise BadRequest(f"stream {name}: {error}") from None
            found[name] = None

    for name in names:
        await _patiently(partial(look, name), patience_s)
    return found


async def _has_worked(t: Transport, subjects: Subjects) -> bool:
    """Whether this mesh has been in use: whether one of its streams has stored more than `carry_out` writes itself."""
    newest = 0

    async def look(name: str) -> None:
        nonlocal newest
        try:
            newest = max(newest, (await stream_state(t, name)).last_seq)
        except ApiError as error:
            if error.err_code != NO_STREAM:
                raise BadRequest(f"stream {name}: {error}") from None

    for name in stream_configs(subjects, replicas=1, max_payload=t.max_payload):
        await _patiently(partial(look, name))
    return newest > 1  # 1: the registry's epoch, written with the streams


async def _make(t: Transport, config: dict[str, Any], chosen: frozenset[str], first_seq: int) -> None:
    # A stream that is made anew in a mesh in use must not give a sequence twice: refs, positions in lanes and generations are
    # sequences.
    if not await _create(t, {**config, "first_seq": first_seq} if first_seq > 1 else config):
        name = config["name"]
        await _widen(t, name, _changes(config, (await stream_state(t, name)).config, chosen))


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


def _changes(wanted: dict[str, Any], found: dict[str, Any], chosen: frozenset[str]) -> list[Widening]:
    """What the stream lacks of what is wanted.

    Raises:
        ConfigMismatch: it cannot have that without losing what it has.
    """
    name, changes = wanted["name"], []
    for field, value, there in differences(wanted, found):
        if (option := options(name).get(field)) is not None and option not in chosen:
            continue
        more = addition(field, value, there) if field != "num_replicas" else None
        if more is None:
            raise ConfigMismatch(
                f"stream {name} exists with {field} = {there!r}, this mesh wants {value!r}; change the option, or the stream",
                details={"stream": name, "field": field, "wanted": value, "found": there},
            )
        changes.append(Widening(name, field, there, more))
    return changes


async def _widen(t: Transport, stream: str, changes: list[Widening]) -> None:
    if not changes:
        return
    # Read again: another process may have added something meanwhile, which must stay.
    config = (await stream_state(t, stream)).config
    for _, field, _, wanted in changes:
        more = addition(field, wanted, config.get(field))
        config[field] = config.get(field) if more is None else more
    try:
        await call_api(t, f"STREAM.UPDATE.{stream}", config)
    except ApiError as error:
        raise BadRequest(f"stream {stream} cannot be changed: {error}") from None


async def _ensure_epoch(t: Transport, subjects: Subjects) -> None:
    registry = Registry(t, subjects)
    if await registry.get(EPOCH_KEY) is None:
        with contextlib.suppress(WrongLastSequence):  # somebody else has
            await registry.create(EPOCH_KEY, b"1")
