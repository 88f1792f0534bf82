"""The facts of a running mesh and its server that `mesh doctor` judges. Gathering them changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.edge import connection
from agentmesh.edge.api import call_api
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import ApiError
from agentmesh.edge.registry import Registry
from agentmesh.edge.server_errors import NO_STREAM
from agentmesh.edge.stream_configs import addition, differences, options, purpose, stream_configs
from agentmesh.edge.streams import audience
from agentmesh.edge.transport import UNANSWERED
from agentmesh.errors import MeshError, NotPermitted, Unavailable
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects
from agentmesh_client.directory import Directory
from agentmesh_client.doctor import members as processes
from agentmesh_client.doctor import servers as machines
from agentmesh_client.doctor.members import MemberFacts
from agentmesh_client.doctor.servers import ServerReport
from agentmesh_client.doctor.stored import StoredFacts, look

MODEL_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "OPENAI_API_KEY", "CODEX_API_KEY")
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
    seen: bool = True
    """Whether this user may ask about it; else nothing of it is known, and it is taken to exist."""
    replicas: int = 0
    up: int = 0
    """Replicas that are up and current."""
    behind: list[str] = []
    """The servers of the others, and what is the matter with each."""
    leader: str | None = None
    messages: int = 0
    bytes: int = 0
    duplicate_window_s: float = 0
    purpose: str | None = None
    """What it is for, if an older mesh may lack it."""
    lacks: dict[str, str | None] = {}
    """Fields in which it has less than this build uses, and what that is for, if an older mesh may lack it."""
    drift: list[str] = []
    """Fields in which its configuration differs from what the mesh needs."""


class Facts(msgspec.Struct, kw_only=True):
    """All that could be found out."""

    server: str
    version: str
    cluster: bool
    max_payload: int
    jetstream: bool
    domain: str | None = None
    """JetStream domain that the mesh's streams are in ("": none); None: none of them answers."""
    sets: int = 0
    """How many sets of the mesh's streams hear what is published here; 0: unknown."""
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
    servers: list[ServerReport] = []
    """What is known of each server: at least of the one that is connected, and the clocks of those that lead streams."""
    members: list[MemberFacts] = []
    """The nodes and supervisors."""
    password: bool = True
    """Whether this connection had to say who it is."""
    root: str = "mesh"
    exports: list[str] = []
    """Services that other accounts may import, as the monitoring pages show them."""
    user: str
    publish: dict[str, list[str]]
    """What this user is allowed and denied to publish; empty: everything is allowed."""
    subscribe: dict[str, list[str]]
    nodes: list[str]
    supervisor: str | None
    model_keys: dict[str, bool]
    """Whether this environment (not a node's) has the key."""
    stored: StoredFacts = msgspec.field(default_factory=StoredFacts)
    unseen: list[str] = []
    """What this user may not ask about."""


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
        NotPermitted: this user may not ask about any stream.
        Unavailable: a monitoring page, or the servers by `system`, cannot be asked.
    """
    unseen: list[str] = []
    streams, clocks = await _streams(transport, subjects)
    unseen += [f"the stream {stream.name}" for stream in streams if not stream.seen]
    account = await _account(transport, unseen)
    pages, source = await machines.look(monitors, system, directory)
    ailing = await machines.ailing(monitors)
    user = await _user(transport)
    permissions = user.get("permissions") or {}
    nodes, supervisor = await _members(transport, subjects)
    stored = await look(transport, subjects)
    members = await processes.look(transport, subjects, nodes, supervisor)
    unseen += [f"the clock of {found.role} {found.id}" for found in members if not found.permitted]
    return Facts(
        server=transport.server_name,
        version=".".join(map(str, transport.server_version)),
        cluster=transport.clustered,
        max_payload=transport.max_payload,
        jetstream=account is not None or any(stream.replicas for stream in streams),
        storage_used=(account or {}).get("storage", 0),
        storage_limit=((account or {}).get("limits") or {}).get("max_storage", -1),
        streams=streams,
        sync={page.name: page.sync for page in pages if page.sync is not None},
        sync_source=source,
        server_errors=ailing,
        clock_skew_s=next(reversed(clocks.values()), None),
        servers=_servers(transport, pages, clocks),
        members=members,
        password=transport.credentials.identifies or any(url.startswith("tls:") for url in transport.urls),
        user=str(user.get("user", "")),
        root=subjects.root,
        exports=await machines.exports(monitors[:1], str(user.get("account", ""))),
        publish=permissions.get("publish") or {},
        subscribe=permissions.get("subscribe") or {},
        nodes=list(nodes),
        supervisor=supervisor,
        model_keys={name: bool(environ.get(name)) for name in MODEL_KEYS},
        stored=stored,
        unseen=unseen,
        domain=transport.domain,
        sets=await _sets(transport, subjects),
    )


async def _sets(t: connection.NatsTransport, subjects: Subjects) -> int:
    try:
        return await audience(t, subjects, first_s=LOOK_S)
    except (*UNANSWERED, NotPermitted):
        return 0


async def _account(t: connection.NatsTransport, unseen: list[str]) -> dict[str, Any] | None:
    """JetStream's account information; None where JetStream is off or cannot answer, or this user may not ask for it."""
    try:
        return await _ask(t, "INFO")
    except NotPermitted:
        unseen.append("how much of its storage this account uses")
        return None
    except (ApiError, Unavailable):
        return None


async def _ask(t: connection.NatsTransport, call: str) -> dict[str, Any]:
    """The reply to a request of JetStream's API.

    Raises:
        ApiError, Unavailable: see `api`.
        NotPermitted: this user may not ask.
    """
    reply: dict[str, Any] = msgspec.json.decode(await call_api(t, call, timeout=LOOK_S))
    return reply


# --- streams ------------------------------------------------------------------------------------------------------
async def _streams(t: connection.NatsTransport, subjects: Subjects) -> tuple[list[StreamFacts], dict[str, float]]:
    """Each stream of the mesh; and of the servers that lead them, how far their clocks are ahead of this machine's.

    Raises:
        NotPermitted: this user may ask about none of them.
    """
    refused: NotPermitted | None = None
    found: list[StreamFacts] = []
    clocks: dict[str, float] = {}
    for name, wanted in stream_configs(subjects, replicas=1, max_payload=t.max_payload).items():
        sent = SYSTEM.now()
        try:
            info = await _ask(t, f"STREAM.INFO.{name}")
        except NotPermitted as error:
            refused = error
            found.append(StreamFacts(name=name, exists=True, seen=False, purpose=purpose(subjects, name)))
            continue
        except (ApiError, Unavailable) as error:
            gone = isinstance(error, ApiError) and error.err_code == NO_STREAM
            found.append(StreamFacts(name=name, exists=not gone, purpose=purpose(subjects, name)))
            continue
        if "ts" in info:
            clocks[(info.get("cluster") or {}).get("leader") or t.server_name] = machines.ahead(info["ts"], sent, SYSTEM.now())
        found.append(_stream(subjects, name, wanted, info))
    if refused is not None and not any(stream.seen for stream in found):
        raise refused
    return found, clocks


def _stream(subjects: Subjects, name: str, wanted: dict[str, Any], info: dict[str, Any]) -> StreamFacts:
    config, cluster = info["config"], info.get("cluster") or {}
    replicas = cluster.get("replicas") or ()
    others = [one for one in replicas if one.get("current") and not one.get("offline")]
    drift: list[str] = []
    lacks: dict[str, str | None] = {}
    for field, value, there in differences(wanted, config):
        text = f"{field} is {there!r}, not {value!r}"
        if field in options(name):
            continue
        if addition(field, value, there) is None:
            drift.append(text)
        else:
            lacks[text] = purpose(subjects, name, field)
    limits = {field: bound for field, bound in UNLIMITED.items() if field not in wanted or wanted[field] == bound}
    drift += [f"{field} is {config[field]}" for field, bound in limits.items() if config.get(field, bound) not in (0, -1)]
    return StreamFacts(
        name=name,
        exists=True,
        replicas=config["num_replicas"],
        up=len(others) + 1,
        behind=[_behind(one) for one in replicas if one not in others],
        leader=cluster.get("leader") if cluster else None,
        messages=info["state"]["messages"],
        bytes=info["state"]["bytes"],
        duplicate_window_s=config.get("duplicate_window", 0) / _SECOND,
        lacks=lacks,
        drift=drift,
    )


def _behind(replica: Mapping[str, Any]) -> str:
    """A replica that is not up to date, in words."""
    why = "cannot be reached" if replica.get("offline") else f"{replica.get('lag', 0)} writes behind"
    return f"{replica.get('name', '?')} ({why})"


# --- servers ------------------------------------------------------------------------------------------------------
def _servers(t: connection.NatsTransport, pages: Sequence[ServerReport], clocks: Mapping[str, float]) -> list[ServerReport]:
    """What their own reports say, what the connection says of its server, and the clocks of those that lead streams."""
    found = {page.name: page for page in pages if page.version is not None}
    if t.server_name not in found:
        version = ".".join(map(str, t.server_version))
        found[t.server_name] = ServerReport(name=t.server_name, version=version, max_payload=t.max_payload)
    for name, ahead in clocks.items():
        known = found.setdefault(name, ServerReport(name=name))
        if known.clock_ahead_s is None:
            found[name] = msgspec.structs.replace(known, clock_ahead_s=ahead)
    return [found[name] for name in sorted(found)]


# --- members -----------------------------------------------------------------------------------------------------
async def _user(t: connection.NatsTransport) -> dict[str, Any]:
    """What the server reports about the user of this connection."""
    try:
        reply = await t.request("$SYS.REQ.USER.INFO", timeout=LOOK_S)
        return msgspec.json.decode(reply.data, type=dict[str, Any]).get("data") or {}
    except (*UNANSWERED, NotPermitted, msgspec.DecodeError):
        return {}


async def _members(t: connection.NatsTransport, subjects: Subjects) -> tuple[dict[str, str], str | None]:
    """Nodes that are alive, with the versions of their programs, and the leading supervisor."""
    registry = Registry(t, subjects)
    try:
        nodes = await Directory(t, subjects, registry).nodes()
        entry = await registry.get(SUPERVISOR_KEY)
        leads = msgspec.json.decode(entry.value, type=SupervisorLease).id if entry is not None and entry.value else None
    except (MeshError, msgspec.DecodeError):
        return {}, None
    return {node.id: node.lease.version for node in nodes}, leads
