"""What roles cost: `python -m bench.under_roles`. The same asks to a mesh where nobody logs in and to one under roles.

Each mesh has a server of its own, and the callers' asks alternate between them. Two open meshes beside each other say how far
figures differ by themselves. Callers of another account ask by a plain request, beside the same in an open mesh. Then tenants:
what the flood of one, a process of its own, does to the asks of another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import nats
from nats.aio.client import Client

from agentmesh.access.roles import INSIDE, Role
from agentmesh.access.static_conf import User, rendered
from agentmesh.errors import MailboxFull
from agentmesh_client import Mesh
from bench.cli import loop_factory
from bench.clock import ASK_S, Call, quantile, side_by_side
from bench.figures import Bound, Figure
from bench.report import table
from bench.side import SLICE, Side
from bench.stage import FULL, NO_VARIABLES, ROOT, SMOKE, Child, Sizes, Stage, stage_on
from support import Server, eventually

HERE = Path(__file__).parents[2]
PASSWORD = secrets.token_urlsafe(24)
OPEN, OTHER, ROLES = "open", "another open one", "under roles"
WITHIN = Bound(limit=1.05)
FLOODED = Bound(limit=1.5)
SHARES = {"p50": 0.5, "p99": 0.99}
AT_ONCE = 32
"""Messages of a flooding tenant that are on their way at once."""


class SecuredStage(Stage):
    """A stage whose server has the generated layout."""

    callers_rate = 0.0
    """Messages of callers a second that each process takes for one prefix; 0 is no bound."""

    async def supervisor(self, root: str, environ: Mapping[str, str] = NO_VARIABLES) -> Child:
        """Start a supervisor, which takes no more of them than a node."""
        return await super().supervisor(root, {**environ, "MESH_CALLERS_RATE": str(self.callers_rate)})

    def url_as(self, role: Role) -> str:
        return self.url.replace("//", f"//{role}:{PASSWORD}@")

    def url_of(self, caller: str) -> str:
        """Its address for a caller in the other account."""
        return self.url.replace("//", f"//{caller}:{PASSWORD}@")


def secured() -> Server:
    """A server with all roles, and a caller for each of two teams; with plain passwords, since no connection is timed."""
    callers = [User(name, "caller", PASSWORD, agents=(f"{of}.",)) for name, of in (("one", "many"), ("two", "other"))]
    return Server(name="bench", config=rendered(ROOT, [*(User(role, role, PASSWORD) for role in INSIDE), *callers]))


async def costs(sizes: Sizes) -> list[Figure]:
    """An ask under roles beside an open one, and beside that one open mesh beside another."""
    half = {way: Figure(name=f"ask, one caller, p50, {way}", unit="ms", floor=OPEN, bound=_bound(way)) for way in (OTHER, ROLES)}
    name = "the node's processor for an ask"
    spent = {way: Figure(name=f"{name}, {way}", unit="us", floor=OPEN, bound=_bound(way)) for way in (OTHER, ROLES)}
    plain = Figure(name="ask by a plain request from another account, p50", unit="ms", floor="the same in an open mesh")
    for number in range(sizes.rounds):
        async with contextlib.AsyncExitStack() as stack:
            stages: dict[str, Stage] = {}
            for way in (OPEN, OTHER, ROLES)[:: -1 if number % 2 else 1]:  # whose processes are older changes, too
                made = stage_on(secured(), sizes, SecuredStage) if way == ROLES else stage_on(Server(name="bench"), sizes)
                stages[way] = await stack.enter_async_context(made)
            sides = {way: await Side.of(stage, ROOT, HERE, {}) for way, stage in stages.items()}
            both = [
                await _plain(stack, stages[OPEN].url, "one"),
                await _plain(stack, _secured(stages[ROLES]).url_of("one"), "one"),
            ]
            taken = dict(zip(sides, await side_by_side(*(side.one for side in sides.values()), count=sizes.calls), strict=True))
            for way, figure in half.items():
                figure.add(quantile(taken[way], 0.5), quantile(taken[OPEN], 0.5))
            calls = [partial(one.request, "mesh.ask.many.0", b"hello", timeout=30) for one in both]
            near, far = await side_by_side(*calls, count=sizes.calls)
            plain.add(quantile(far, 0.5), quantile(near, 0.5))
            for turn in range(max(2, sizes.each // SLICE)):
                for side in list(sides.values())[:: -1 if turn % 2 else 1]:
                    await side.ask_all(min(SLICE, sizes.each))
            for way, figure in spent.items():
                figure.add(sides[way].cpu_us, sides[OPEN].cpu_us)
    return [*half.values(), *spent.values(), plain]


def _bound(way: str) -> Bound | None:
    return WITHIN if way == ROLES else None


def _secured(stage: Stage) -> SecuredStage:
    assert isinstance(stage, SecuredStage)
    return stage


async def _plain(stack: contextlib.AsyncExitStack, url: str, user: str) -> Client:
    made = await nats.connect(url, inbox_prefix=f"_INBOX.{user}".encode())
    stack.push_async_callback(made.close)
    return made


async def tenants(sizes: Sizes, callers_rate: float = 0.0) -> list[Figure]:
    """What one tenant's flood does to another's asks: by requests to the gateway from the callers' account, and by mail that is
    published inside the mesh's account. Beside each what as large a flood of plain publishes does to a plain queue, with a
    server of its own and no mesh: floods, servers and victims share the same cores. With `callers_rate` the mesh's processes take
    no more of callers in a second for one prefix, which is nothing to mail inside the account."""
    mesh, floor = ("the gateway", "the mail"), ("a bare request", "a JetStream queue")
    slower = {
        (way, share): Figure(
            name=f"ask of a tenant, {share}, while another floods {way}",
            unit="ms",
            floor="without the flood",
            bound=_flooded(share),
        )
        for way in mesh
        for share in SHARES
    }
    beside = {
        (way, plain, share): Figure(
            name=f"times as long as without it, {share}, {way}", unit="x", floor=plain, bound=_flooded(share)
        )
        for way in mesh
        for plain in floor
        for share in SHARES
    }
    async with contextlib.AsyncExitStack() as stack:
        stage = _secured(await stack.enter_async_context(stage_on(secured(), sizes, SecuredStage)))
        stage.callers_rate = callers_rate
        side = await Side.of(stage, ROOT, HERE, {"callers_rate": callers_rate})
        operator = await stage.client()
        await operator.start_agent("other.quiet", kind="Echo")
        quiet = await _plain(stack, stage.url_of("two"), "two")
        bare = await stack.enter_async_context(stage_on(Server(name="bench"), sizes))
        floors = await bare.floors()
        agents = [f"many.{number}" for number in range(len(side.all))]
        ways: dict[str, tuple[Stage, Call, tuple[str, ...]]] = {
            "the gateway": (
                stage,
                partial(quiet.request, "mesh.ask.other.quiet", b"hello", timeout=30),
                (stage.url_of("one"), "_INBOX.one", str(AT_ONCE), *(f"mesh.tell.{agent}" for agent in agents)),
            ),
            "the mail": (
                stage,
                partial(operator.ask, "other.quiet", "hello", timeout=ASK_S),
                (stage.url_as("operator"), "_INBOX.operator", str(AT_ONCE), *(f"mesh.inbox.{agent}" for agent in agents)),
            ),
            "a bare request": (bare, floors.bare, (bare.url, "_INBOX", str(AT_ONCE), "floor.stored")),
            "a JetStream queue": (bare, floors.queue, (bare.url, "_INBOX", str(AT_ONCE), "floor.stored")),
        }
        for _ in range(sizes.rounds):
            times: dict[tuple[str, float], float] = {}
            for name, (where, call, flood) in ways.items():
                (calm,) = await side_by_side(call, count=sizes.calls)
                child = await where.spawn(str(Path(__file__).with_name("flood.py")), *flood)
                (flooded,) = await side_by_side(call, count=sizes.calls)
                await child.end()
                for share, quant in SHARES.items():
                    times[name, quant] = quantile(flooded, quant) / quantile(calm, quant)
                    if name in mesh:
                        slower[name, share].add(quantile(flooded, quant), quantile(calm, quant))
                for agent in agents if name in mesh else ():
                    await eventually(partial(_drained, operator, agent), ASK_S, "the end of the flood")
            for (way, plain, share), figure in beside.items():
                figure.add(times[way, SHARES[share]], times[plain, SHARES[share]])
    return [*slower.values(), *beside.values()]


def _flooded(share: str) -> Bound | None:
    return FLOODED if share == "p99" else None


async def _drained(mesh: Mesh, agent: str) -> bool:
    try:
        return (await mesh.ask(agent, "drained", timeout=ASK_S)).text is not None
    except MailboxFull:
        return False


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.under_roles", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: proves that it runs, and nothing else")
    parser.add_argument("--callers-rate", type=float, default=0.0, help="tenants: MESH_CALLERS_RATE of node and supervisor")
    parser.add_argument("--only", choices=("costs", "tenants"))
    options = parser.parse_args()
    # Three meshes are started for each round: many short rounds say more than a few long ones.
    sizes = SMOKE if options.smoke else msgspec.structs.replace(FULL, calls=300, callers=16, each=40)
    sizes = msgspec.structs.replace(sizes, rounds=options.rounds)
    runs: dict[str, Callable[[Sizes], Coroutine[Any, Any, list[Figure]]]] = {
        "costs": costs,
        "tenants": partial(tenants, callers_rate=options.callers_rate),
    }
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        for name, run in runs.items():
            if options.only in (None, name):
                print(table({name: runner.run(run(sizes))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
