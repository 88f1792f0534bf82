"""`mesh setup`, which makes a mesh's streams, and what the other verbs do about them.

Nodes and supervisors make none: they wait. `mesh up` makes those of the server that it runs, if nothing was ever stored there
(docs/design/019-creating-is-a-verb.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict

from agentmesh.edge import streams
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.streams import StreamPlan, StreamSettings, Widening
from agentmesh.errors import StreamMissing, Unavailable, WrongDomain
from agentmesh.subjects import Subjects
from agentmesh_node.process.address import PATIENCE_S, MeshAddress
from agentmesh_node.process.nats_server import EmbeddedServer
from agentmesh_node.process.options import StreamOptions
from agentmesh_node.process.signals import EXIT_INTERRUPTED, EXIT_OK, StopSignal, report_error, run

log = logging.getLogger("agentmesh.service")

LOOK_S = 1.0
"""How often a process that waits for streams looks for them."""
LAST_LOOKS = 5
"""Looks that are for the streams alone that it can do without, once the others are there: who makes these makes those, too."""
_NANOSECONDS = frozenset(("max_age", "duplicate_window", "subject_delete_marker_ttl"))


def settings(options: StreamOptions, replicas: int | None = None) -> StreamSettings:
    """The streams as the options say."""
    return StreamSettings(replicas=replicas, **asdict(options))


def setup(where: MeshAddress, wanted: StreamSettings, *, new: bool, dry_run: bool) -> int:
    """Make what the mesh lacks, and say what that is. Returns the exit code."""
    code = EXIT_OK
    logging.basicConfig(format="mesh: %(message)s")

    async def main(_: StopSignal) -> None:
        nonlocal code
        async with _connected(where, "mesh-setup") as transport:
            subjects = Subjects(where.root)
            plan = await streams.plan(transport, subjects, wanted)
            await _no_second_set(transport, subjects, plan)
            refusal = None if new else plan.refusal(where.root)
            if dry_run or refusal is None:
                for line in _lines(plan, where.root):
                    print(line, flush=True)  # noqa: T201 - the command's output
            if refusal is not None:
                code = report_error(refusal)
            elif not dry_run:
                await streams.carry_out(transport, subjects, plan)
                print(f"mesh {where.root!r} has all its streams", flush=True)  # noqa: T201

    return run(main, called_off=EXIT_INTERRUPTED) or code


async def _no_second_set(transport: NatsTransport, subjects: Subjects, plan: StreamPlan) -> None:
    """Refuse to make, or to go on with, a second set of the mesh's streams within hearing.

    Raises:
        WrongDomain: there is one.
    """
    sets = await streams.audience(transport, subjects)
    here = subjects.stream("mail") not in (config["name"] for config in plan.create)
    if sets > int(here):
        raise WrongDomain(
            f"another set of streams of mesh {subjects.root!r} can be heard from here, beyond a leaf node: two sets store each "
            "other's mail, and nothing but another root keeps them apart. If that mesh is meant, name its JetStream domain "
            "(--domain); if this is another one, give it another root (--root)",
            details={"sets": sets},
        )


def _lines(plan: StreamPlan, root: str) -> Iterator[str]:
    """What is to be done, for people."""
    for config in plan.create:
        copies = config["num_replicas"]
        yield f"make {config['name']}: {', '.join(config['subjects'])}; {copies} {'copy' if copies == 1 else 'copies'}"
    for change in plan.change:
        yield _line(change)
    if not plan.create and not plan.change:
        yield f"nothing to do for mesh {root!r}"


def _line(change: Widening) -> str:
    found, wanted = (f"{value / 1e9:g} s" if change.field in _NANOSECONDS else str(value) for value in change[2:])
    if change.field == "subjects":
        return f"change {change.stream}: it takes {', '.join(s for s in change.wanted if s not in change.found)}, too"
    return f"change {change.stream}: {change.field} from {found} to {wanted}"


async def set_up_own(server: EmbeddedServer, where: MeshAddress, wanted: StreamSettings) -> None:
    """Give the mesh on a server of our own its streams.

    Raises:
        StreamMissing: its store has held a mesh that the server does not show, so nothing is made.
        ConfigMismatch, Unavailable: see `agentmesh.edge.streams.plan`.
    """
    async with _connected(where, "mesh-setup") as transport:
        subjects = Subjects(where.root)
        plan = await streams.plan(transport, subjects, wanted)
        refusal = plan.refusal(where.root)
        if refusal is not None and not server.is_new():
            if plan.known:
                raise refusal
            if not await streams.account_has_streams(transport):
                raise StreamMissing(
                    f"{server.store} has held a mesh, and its server shows nothing of it: the store may be encrypted "
                    "with a key that this server was not given. Nothing was made there, so nothing is lost: run the server that "
                    "it belongs to, or choose another directory (--data)",
                    details=refusal.details,
                )
        await streams.carry_out(transport, subjects, plan)
    server.used()


async def streams_there(where: MeshAddress, own_id: str, waiting: Callable[[str], None]) -> None:
    """Return when the mesh's streams exist, however long that takes; `waiting` is told why there is a wait.

    Raises:
        ServerTooOld, ConfigMismatch, Unavailable: see `agentmesh.edge.streams.absent`; `Unavailable` only at the first look.
    """
    subjects = Subjects(where.root)
    async with _connected(where, f"mesh-setup-{own_id}") as transport:
        absent = await streams.absent(transport, subjects)
        if absent.lost:
            reason = f"mesh {where.root!r} lacks {', '.join(absent.lost)}: run `mesh setup`, which says more; waiting for that"
            waiting(f"{StreamMissing.code}: {reason}")
            log.warning("%s: %s", StreamMissing.code, reason, extra={"code": StreamMissing.code, "missing": absent.lost})
        unseen, last_looks = False, LAST_LOOKS if absent.lost else 0
        while absent.lost or (absent.later and last_looks):
            await asyncio.sleep(LOOK_S)
            last_looks -= not absent.lost
            try:
                absent = await streams.absent(transport, subjects, patience_s=0.0)
            except Unavailable as error:  # it has waited for longer than any outage is: the log says once that it goes on
                if not unseen:
                    log.warning("whether the mesh's streams are there cannot be seen now: %s; still waiting", error)
                unseen = True
            else:
                unseen = False
        for name, purpose in absent.later.items():
            log.warning("%s is not there, so this process works without %s: run `mesh setup` to add it", name, purpose)


@contextlib.asynccontextmanager
async def _connected(where: MeshAddress, name: str) -> AsyncIterator[NatsTransport]:
    transport = await connect(
        where.servers, name=name, connect_timeout=PATIENCE_S, wait_s=where.wait_s, api=where.api, login=where.login
    )
    try:
        yield transport
    finally:
        await transport.close()
