"""How long does it take to tell who waits for whom, in a mesh of many agents of which few do anything?"""

from __future__ import annotations

import time

from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects
from bench import sleepers
from bench.figures import Bound, Figure
from bench.stage import Stage


async def owing(stage: Stage) -> list[Figure]:
    """`Mesh.owes` of the largest crowd of agents at rest, and some with a prompt that waits. No process runs them, and none is
    asked."""
    subjects, count, busy = Subjects("owing"), max(stage.sizes.crowds), stage.sizes.workers
    like = await sleepers.pattern(stage)
    transport = await stage.transport()
    await ensure(transport, subjects, replicas=stage.replicas)
    names = [f"owing.{number}" for number in range(count + busy)]
    await sleepers.put(transport, subjects, like, "none", names)
    mesh = await stage.client(subjects.root)
    for name in names[:busy]:
        await mesh.tell(name, "hello")
    figure = Figure(name=f"who waits for whom, {count:,} agents at rest, {busy} not", unit="s", bound=Bound(limit=5, of="value"))
    for _ in range(stage.sizes.rounds):
        began = time.perf_counter()
        found = await mesh.owes()
        figure.add(time.perf_counter() - began)
        if (found.read, len(found.waits)) != (busy, busy):
            raise RuntimeError(f"{found.read} agents were read, and {len(found.waits)} waits found; there are {busy}")
    return [figure]
