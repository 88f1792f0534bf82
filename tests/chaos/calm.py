"""What an operator does: resume what has halted or failed, and see when everything is done that was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator

from agentmesh.errors import MeshError
from agentmesh_client.client import Mesh
from chaos.records import Recorder
from judge.verdict import repetitions
from sim.workload import IMMORTAL

_LOOK_S = 0.5
_RESUME_S = 2.0


async def operate(mesh: Mesh) -> None:
    """Resume agents that have halted or failed, for ever: else a run soon does nothing but wait for them."""
    while True:
        await asyncio.gather(*(_resume(mesh, agent) for agent in IMMORTAL))
        await asyncio.sleep(_RESUME_S)


async def settle(
    recorder: Recorder, mesh: Mesh, seconds: float, clock: Callable[[], float], *, immortal: Collection[str] = IMMORTAL
) -> list[str]:
    """Wait until everything is done, for so long at most. Returns what is not done."""
    end = clock() + seconds
    while left := await _left(recorder, mesh, immortal):
        if clock() > end:
            return left
        await asyncio.sleep(_LOOK_S)
    return []


async def _resume(mesh: Mesh, agent: str) -> None:
    try:
        await mesh.resume(agent, timeout=3.0)
    except MeshError:
        return  # it shows in what is left


async def _left(recorder: Recorder, mesh: Mesh, immortal: Collection[str]) -> list[str]:
    try:
        statuses = {entry.name: entry.spec.status for entry in await mesh.list_agents()}
    except MeshError as error:
        return [f"the registry cannot be read: {error}"]
    left = [f"{agent} is {statuses.get(agent, 'unknown')}" for agent in immortal if statuses.get(agent) != "running"]
    left += [f"{agent} is {status}" for agent, status in statuses.items() if status in ("wanted", "stopping")]
    return [*left, *_open(recorder)]


def _open(recorder: Recorder) -> Iterator[str]:
    letters, answered = recorder.letters(), recorder.answered()
    repeated = repetitions(letters)
    newest: dict[tuple[str, str], int] = {}
    for letter in letters:
        newest[letter.agent, letter.lane] = letter.seq
        if letter.is_prompt and (letter.agent, str(letter.seq)) not in answered and letter.seq not in repeated:
            yield f"request {letter.agent} {letter.seq} ({letter.text}) has no outcome"
    for agent, (record, ledger) in recorder.agents().items():
        if record.kind not in ("rest", "tombstone", "swept"):
            yield f"the journal of {agent} ends with {record.kind}"
        elif record.kind == "rest" and ledger is not None:
            if ledger.halted or ledger.timers or ledger.deferred or ledger.awaiting or ledger.failed:
                yield f"{agent} is halted, or waits for timers or answers"
            for (name, lane), seq in newest.items():
                if name == agent and seq > (record.positions or {}).get(lane, 0):
                    yield f"{agent} has not seen {lane} {seq}"
