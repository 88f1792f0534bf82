"""Ending a request ends what was asked on its behalf, on a real server (docs/architecture.md#withdrawals)."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.steppers import Doer
from live.test_steps import lines
from support import Server, eventually, run

TREE = ("boss", "reviewer", "helper")


END_S = 5.0
"""How long a request with an end has: enough that its chain of questions begins on a busy machine."""


def chain(calls: Path, gate: Path) -> str:
    """`boss` asks `reviewer`, who asks `helper`, who makes a call, waits, and would make nine more.

    Neither of those who ask ends with its wait: each would wait as well, and then make a call.
    """
    more: list[Any] = [["call", str(calls), f"late{n}"] for n in range(9)]
    helper = [["call", str(calls), "first"], ["gate", str(gate)], *more]
    reviewer = [["ask", "helper", helper, 300], ["gate", str(gate)], ["call", str(calls), "reviewer"]]
    return json.dumps([["ask", "reviewer", reviewer, 300], ["gate", str(gate)], ["call", str(calls), "boss"]])


async def begun(mesh: LocalMesh, tmp_path: Path, *, ends: bool = False) -> str:
    for name in TREE:
        await mesh.client.start_agent(name, kind="Doer", timeout=PATIENCE_S)
    end_by = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=END_S) if ends else None
    ref = await mesh.client.tell("boss", chain(tmp_path / "calls", tmp_path / "gate"), end_by=end_by)
    await eventually(lambda: lines(tmp_path / "calls") == ["first"], PATIENCE_S, "the first call")
    return ref


async def ended(mesh: LocalMesh, code: str, asked: str) -> None:
    """All three requests have ended: the first with `code`, those that were asked on its behalf with `asked`."""
    for name, expected in zip(TREE, (code, asked, asked), strict=True):
        (outcome,) = await mesh.results(name, 1)
        assert outcome.error is not None and outcome.error.code == expected, name

    async def idle() -> bool:
        found = [await mesh.client.status(name, timeout=PATIENCE_S) for name in TREE]
        return all(status.state == "idle" for status in found)

    await eventually(idle, PATIENCE_S, "the end of all turns")


@pytest.mark.case(350)
@pytest.mark.case(355)
@pytest.mark.case(358)
@pytest.mark.case(450)
@pytest.mark.parametrize("way", ["interrupt", "cancel", "end_by"])
def test_an_asked_agent_makes_no_more_calls_when_its_asker_has_ended(
    server: Server, subjects: Subjects, tmp_path: Path, way: str
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2", serves={"Doer": Doer}) as mesh:
            ref = await begun(mesh, tmp_path, ends=way == "end_by")
            match way:
                case "interrupt":
                    told = await mesh.client.end("boss", how="interrupt", wait=PATIENCE_S)
                    assert told.done and [(one.agent, one.ended) for one in told.withdrawn] == [("reviewer", True)]
                case "cancel":
                    assert not await mesh.client.cancel("boss", ref), "one that runs is not touched"
                    assert await mesh.client.cancel("boss", ref, tree=True)
            # With an end each has its own, and nobody need be told: a question's is that of its wait, which is over before the
            # turn that waits must end (case 450). So the turn goes on without an answer, until its own end.
            codes = {"interrupt": "interrupted", "cancel": "cancelled", "end_by": "expired"}
            await ended(mesh, codes[way], "expired" if way == "end_by" else "cancelled")
            (tmp_path / "gate").touch()
            assert (await mesh.client.ask("helper", "hello", timeout=PATIENCE_S)).text == "hello"
            assert lines(tmp_path / "calls") == ["first"], "nothing of what was withdrawn runs on"

    run(main(), 110)


@pytest.mark.case(351)
def test_what_nobody_ends_goes_on(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Doer": Doer}) as mesh:
            ref = await begun(mesh, tmp_path)
            (tmp_path / "gate").touch()
            (outcome,) = await mesh.results("boss", 1)
            assert outcome.ok and outcome.ref == ref and len(lines(tmp_path / "calls")) == 12

    run(main(), 110)
