"""One seed: its stage, its storm, its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from agentmesh_client.admin import Operator
from agentmesh_client.client import Mesh
from chaos import calm
from chaos.report import History, Result, summary
from chaos.schedule import CLIENTS, Fault, schedule
from chaos.stage import Stage
from chaos.storm import Storm
from judge.moves import moved_wrongly
from judge.verdict import judge
from sim.workload import IMMORTAL, Workload

THREADS = 6
"""Tasks of each client."""
ASK_S = 60.0
"""How long a caller waits: longer than servers take to elect a leader twice."""
PATIENCE_S = 180.0
"""By when everything must be done once nothing goes wrong any more: well beyond the duplicate window."""
BACK_S = 60.0
"""How long servers and processes may take to be well again behind the storm."""
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "ask": 8, "plain": 3, "tell": 8, "notify": 5, "pass": 5, "call": 4, "steps": 2, "slowly": 2, "wait": 1, "timer": 1,
        "halt": 0.1, "flaky": 0.1, "start": 0.3, "stop": 0.3, "spawn": 0.3, "mortal": 1, "resume": 0.3, "set": 0.3,
    }
)  # fmt: skip
"""What clients do. Agents halt and crash rarely: there are many prompts a second, and a failed agent runs none."""


class Notes:
    """What happens in a run, line by line; `say` hears each at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.lines: list[str] = []
        self._say = say
        self._began = time.monotonic()

    def add(self, line: str) -> None:
        """Note something, with its time."""
        self.lines.append(f"{time.monotonic() - self._began:8.2f} s  {line}")
        self._say(self.lines[-1])


@contextlib.asynccontextmanager
async def _unheard() -> AsyncIterator[None]:
    """The connections of the clients in this process are cut on purpose: what they log of it is no news."""
    logger = logging.getLogger("agentmesh")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


async def run_seed(
    seed: int, seconds: float, logs: Path, say: Callable[[str], None], *, weights: Mapping[str, float] = WEIGHTS,
    patience: float = PATIENCE_S,
) -> Result:  # fmt: skip
    """Run one seed to its verdict.

    Args:
        seconds: how long things go wrong.
        logs: a directory for what the processes say.
        say: hears each line of the run as it happens.
        weights: how often clients do what.
        patience: seconds within which all must be done behind the last fault.
    """
    notes = Notes(say)
    stage = Stage(seed, logs, notes.add)
    faults = schedule(seed, seconds)
    async with _unheard(), stage.running():
        work = Workload(stage, clients=len(CLIENTS), threads=THREADS, weights=weights, ask_s=ASK_S)
        await work.prepare()
        notes.add(f"seed {seed}: {len(faults)} faults in {seconds:.0f} s")
        storm = Storm(stage.processes, stage.servers, stage.wires, stage, notes.add)
        wrong, calm_after = await _weather(stage, storm, work, notes, faults=faults, seconds=seconds, patience=patience)
        wrong += await stage.recorder.finish()
        evidence = stage.recorder.evidence(work.history)
        answered = stage.recorder.answered()
    wrong += [f"{own_id} ended with {code}" for own_id, kept in stage.processes.items() for code in kept.ends if code]
    wrong += await asyncio.to_thread(judge, evidence, IMMORTAL)
    wrong += await asyncio.to_thread(list, moved_wrongly(evidence))
    history = History(seed=seed, seconds=seconds, faults=faults, notes=notes.lines, wrong=wrong, evidence=evidence)
    result = Result(
        seed=seed, seconds=seconds, took=stage.now(), calm_after=calm_after, faults=dict(storm.done), history=history
    )  # fmt: skip
    for line in summary(result, answered):
        say(line)
    return result


async def _weather(
    stage: Stage, storm: Storm, work: Workload, notes: Notes, *, faults: Sequence[Fault], seconds: float, patience: float
) -> tuple[list[str], float]:
    """The storm, with clients at work in it, and the calm behind it. What is wrong, and how long it took to be done."""
    broken: list[str] = []

    async def load() -> None:
        try:
            await work.run(seconds)
        except* Exception as errors:  # noqa: BLE001 - no call of a client may raise what is not the mesh's: that is a finding
            broken.append(f"a client broke: {''.join(traceback.format_exception(errors))}")

    async with stage.client("operator") as mesh, asyncio.TaskGroup() as group:
        operator = group.create_task(calm.operate(mesh))
        loading = group.create_task(load())
        await storm.blow(faults, seconds, Operator(mesh.transport, mesh.subjects))
        notes.add("calm: nothing goes wrong any more")
        since = stage.now()
        wrong = await _settle(stage, mesh, patience)
        await loading
        wrong = wrong or await _settle(stage, mesh, patience)  # what clients had under way may have come behind it
        operator.cancel()
    return [*broken, *wrong], stage.now() - since


async def _settle(stage: Stage, mesh: Mesh, patience: float) -> list[str]:
    await stage.servers.healthy(BACK_S)
    for process in stage.processes.values():
        await process.ready(BACK_S)
    left = await calm.settle(stage.recorder, mesh, patience, stage.now)
    return [f"not done {patience:.0f} s after the last fault: {line}" for line in left]
