"""The facts of a running mesh and its server that `mesh doctor` judges. Gathering them changes nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.edge import connection
from agentmesh.edge.address import without_credentials
from agentmesh.edge.api import API, call_api
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import ApiError
from agentmesh.edge.registry import Registry
from agentmesh.edge.server_errors import NO_STREAM
from agentmesh.edge.streams import differences, stream_configs
from agentmesh.edge.transport import UNANSWERED, Message
from agentmesh.errors import MeshError, Unavailable
from agentmesh.subjects import SUPERVISOR_KEY, Subjects
from agentmesh.wire import SupervisorLease
from agentmesh_client.directory import Directory
from agentmesh_client.doctor.stored import StoredFacts, look
from agentmesh_client.permission import last_report, refusal

MODEL_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "OPENAI_API_KEY", "CODEX_API_KEY")
OPTIONS = frozenset(("num_replicas", "duplicate_window", "max_age", "max_bytes", "max_msgs_per_subject"))
"""Fields of a stream that operators may choose."""
UNLIMITED = {"max_age": 0, "max_bytes": -1, "max_msgs": -1}
"""Limits that a stream must leave open unless its own configuration sets them: they would drop or refuse messages that the mesh
needs."""
LOOK_S = 2.0
"""Wait for one answer."""
_SECOND = 1_000_000_000


class StreamFacts(msgspec.Struct, kw_only=True):
    """One stream, as its leader shows it."""

    name: str
    exists: bool
    replicas: int = 0
    up: int = 0
    """Replicas that are up and current."""
    leader: str | None = None
    messages: int = 0
    bytes: int = 0
    duplicate_window_s: float = 0
    drift: list[str] = []
    """Fields in which its configuration differs from what the mesh needs."""


class Facts(msgspec.Struct, kw_only=True):
    """All that could be found out."""

    server: str
    version: str
    cluster: bool
    max_payload: int
    jetstream: bool
    storage_used: int = 0
    storage_limit: int = -1
    """Of this account, in bytes; -1: the server's own."""
    streams: list[StreamFacts]
    sync: dict[str, str]
    """When each server writes to its disk (`always`, or seconds as in `120s`), by its name; empty: this user cannot know."""
    sync_source: str | None
    server_errors: list[str] = []
    """Health problems reported by the servers whose monitoring pages are known."""
    clock_skew_s: float | None
    """How far the server's clock is ahead of this machine's."""
    user: str
    publish: dict[str, list[str]]
    """What this user is allowed and denied to publish; empty: everything is allowed."""
    subscribe: dict[str, list[str]]
    nodes: list[str]
    supervisor: str | None
    model_keys: dict[str, bool]
    """Whether this environment (not a node's) has the key."""
    stored: StoredFacts = msgspec.field(default_factory=StoredFacts)


async def gather(
    transport: connection.NatsTransport,
    subjects: Subjects,
    environ: Mapping[str, str],
    *,
    monitors: Sequence[str] = (),
    system: str | None = None,
    directory: Path | None = None,
) -> Facts:
    """Ask for everything.

    Args:
        environ: where model keys are looked for; their values are not read.
        monitors: base URLs of the servers' monitoring pages, for `sync_interval`.
        system: address of a server with a user of the system account, for the same.
        directory: where `mesh up` may have left its server's configuration, for the same.

    Raises:
        NotPermitted: this user may not ask about streams.
        Unavailable: a monitoring page, or the servers by `system`, cannot be asked.
    """
    account = await _account(transport)
    streams, skew = await _streams(transport, subjects)
    sync, source = await _sync(monitors, system, directory)
    ailing = [text for texts in await asyncio.gather(*(asyncio.to_thread(_ailing, url) for url in monitors)) for text in texts]
    user = await _user(transport)
    permissions = user.get("permissions") or {}
    nodes, supervisor = await _members(transport, subjects)
    return Facts(
        server=transport.server_name,
        version=".".join(map(str, transport.server_version)),
        cluster=transport.clustered,
        max_payload=transport.max_payload,
        jetstream=account is not None,
        storage_used=(account or {}).get("storage", 0),
        storage_limit=((account or {}).get("limits") or {}).get("max_storage", -1),
        streams=streams,
        sync=sync,
        sync_source=source,
        server_errors=ailing,
        clock_skew_s=skew,
        user=str(user.get("user", "")),
        publish=permissions.get("publish") or {},
        subscribe=permissions.get("subscribe") or {},
        nodes=nodes,
        supervisor=supervisor,
        model_keys={name: bool(environ.get(name)) for name in MODEL_KEYS},
        stored=await look(transport, subjects),
    )


async def _account(t: connection.NatsTransport) -> dict[str, Any] | None:
    """JetStream's account information; None where JetStream is off or cannot answer."""
    try:
        return await _ask(t, "INFO")
    except (ApiError, Unavailable):  # not `NotPermitted`: the diagnosis speaks of that
        return None


async def _ask(t: connection.NatsTransport, call: str) -> dict[str, Any]:
    """The reply to a request of JetStream's API.

    Raises:
        ApiError, Unavailable: see `api`.
        NotPermitted: this user may not ask.
    """
    try:
        reply: dict[str, Any] = msgspec.json.decode(await call_api(t, call, timeout=LOOK_S))
    except Unavailable:
        # NATS reports that as an error of the connection; the request itself only times out.
        forbidden = refusal(last_report(t), f"{API}.{call}")
        if forbidden is not None:
            raise forbidden from None
        raise
    return reply


# --- streams ------------------------------------------------------------------------------------------------------
async def _streams(t: connection.NatsTransport, subjects: Subjects) -> tuple[list[StreamFacts], float | None]:
    """Each stream of the mesh, and how far the server's clock is ahead."""
    found: list[StreamFacts] = []
    skew: float | None = None
    for name, wanted in stream_configs(subjects, replicas=1, max_payload=t.max_payload).items():
        sent = SYSTEM.now()
        try:
            info = await _ask(t, f"STREAM.INFO.{name}")
        except (ApiError, Unavailable) as error:  # as above
            gone = isinstance(error, ApiError) and error.err_code == NO_STREAM
            found.append(StreamFacts(name=name, exists=not gone))
            continue
        if "ts" in info:
            skew = _seconds(info["ts"]) - (sent + SYSTEM.now()) / 2
        found.append(_stream(name, wanted, info))
    return found, skew


def _stream(name: str, wanted: dict[str, Any], info: dict[str, Any]) -> StreamFacts:
    config, cluster = info["config"], info.get("cluster") or {}
    others = [one for one in cluster.get("replicas") or () if one.get("current") and not one.get("offline")]
    drift = [
        f"{field} is {there!r}, not {value!r}" for field, value, there in differences(wanted, config) if field not in OPTIONS
    ]
    limits = {field: bound for field, bound in UNLIMITED.items() if field not in wanted or wanted[field] == bound}
    drift += [f"{field} is {config[field]}" for field, bound in limits.items() if config.get(field, bound) not in (0, -1)]
    return StreamFacts(
        name=name,
        exists=True,
        replicas=config["num_replicas"],
        up=len(others) + 1,
        leader=cluster.get("leader") if cluster else None,
        messages=info["state"]["messages"],
        bytes=info["state"]["bytes"],
        duplicate_window_s=config.get("duplicate_window", 0) / _SECOND,
        drift=drift,
    )


def _seconds(moment: str) -> float:
    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", moment)).timestamp()


# --- when servers write to their disks ------------------------------------------------------------------------------
async def _sync(monitors: Sequence[str], system: str | None, directory: Path | None) -> tuple[dict[str, str], str | None]:
    """`sync_interval` by server, and where it was read. Only users of the system account can ask NATS for it."""
    if monitors:
        pages = await asyncio.gather(*(asyncio.to_thread(_page, url) for url in monitors))
        return _synced(pages), "the monitoring pages"
    if system is not None:
        return _synced(await _ping(system)), "the system account"
    text = await asyncio.to_thread(_local, directory) if directory is not None else None
    if text is not None:
        return {"mesh up": text}, "the configuration that `mesh up` has written"
    return {}, None


def _synced(pages: Iterable[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for page in pages:
        config = (page.get("jetstream") or {}).get("config") or {}
        if config.get("sync_always"):
            found[page["server_name"]] = "always"
        elif "sync_interval" in config:
            found[page["server_name"]] = f"{config['sync_interval'] / _SECOND:g}s"
    return found


def _page(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise _no_page(url)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/varz", timeout=LOOK_S) as response:
            return msgspec.json.decode(response.read(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise Unavailable(f"the monitoring page {without_credentials(url)} cannot be read: {error}") from None
    except http.client.InvalidURL:  # whose text has a piece of the URL
        raise _no_page(url) from None


def _no_page(url: str) -> Unavailable:
    return Unavailable(f"{without_credentials(url)} is no monitoring page; for example http://127.0.0.1:8222")


def _ailing(url: str) -> list[str]:
    """The health problems that a server reports of itself."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/healthz?details=true", timeout=LOOK_S):
            return []
    except urllib.error.HTTPError as error:
        with error:
            try:
                said = msgspec.json.decode(error.read(), type=dict[str, Any])
            except msgspec.DecodeError:
                said = {}
        found = [str(one.get("error", one)) for one in said.get("errors") or ()]
        return found or [str(said.get("error") or f"{without_credentials(url)} answers {error.code}")]
    except OSError as error:
        raise Unavailable(f"the monitoring page {without_credentials(url)} cannot be read: {error}") from None
    except http.client.InvalidURL:
        raise _no_page(url) from None


async def _ping(system: str) -> list[dict[str, Any]]:
    """The reports that every server of the cluster gives to a user of the system account."""
    pages: list[dict[str, Any]] = []

    def take(message: Message) -> None:
        if message.data:
            pages.append(msgspec.json.decode(message.data).get("data") or {})

    transport = await connection.connect(system, name="mesh-doctor")
    try:
        inbox = transport.new_inbox()
        await transport.subscribe(inbox, take)
        await transport.publish("$SYS.REQ.SERVER.PING.VARZ", reply=inbox)
        await asyncio.sleep(LOOK_S)  # it is not known how many will answer
    finally:
        await transport.close()
    if not pages:
        raise Unavailable("no server answers the user of --system; it must belong to the system account")
    return pages


def _local(directory: Path) -> str | None:
    try:
        text = (directory / "nats" / "nats-server.conf").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'sync_interval: "([^"]+)"', text)
    return found[1] if found else None


# --- members -----------------------------------------------------------------------------------------------------
async def _user(t: connection.NatsTransport) -> dict[str, Any]:
    """What the server reports about the user of this connection."""
    try:
        reply = await t.request("$SYS.REQ.USER.INFO", timeout=LOOK_S)
        return msgspec.json.decode(reply.data, type=dict[str, Any]).get("data") or {}
    except (*UNANSWERED, msgspec.DecodeError):
        return {}


async def _members(t: connection.NatsTransport, subjects: Subjects) -> tuple[list[str], str | None]:
    """Nodes that are alive, and the leading supervisor."""
    registry = Registry(t, subjects)
    try:
        nodes = await Directory(t, subjects, registry).nodes()
        entry = await registry.get(SUPERVISOR_KEY)
        leads = msgspec.json.decode(entry.value, type=SupervisorLease).id if entry is not None and entry.value else None
    except (MeshError, msgspec.DecodeError):
        return [], None
    return [node.id for node in nodes], leads
