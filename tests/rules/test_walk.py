"""The path of one ask is as docs/architecture.md#one-ask-file-by-file tells it: a simulated ask goes it, step by step."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from citations import ROOT
from sim.agents import Cell
from sim.loop import SimLoop, run_sim
from sim.world import World

ELSEWHERE = {
    "edge/connection.py::NatsTransport.call",  # the simulation has a transport of its own
    "edge/nats_client.py::Client.take",
    "host/catalog.py::Catalog._activate",  # the agent is awake
    "owner/owner.py::Owner.activate",
    "owner/claim.py::claim_ownership",
    "backend.py::Backend.prompt",  # a protocol
}
"""Steps that this ask does not take."""


def told() -> list[str]:
    """The functions that the page names, in its order."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("## One ask, file by file\n")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py::[\w.]+)`", section)
    return [name for name in dict.fromkeys(named) if re.fullmatch(r"_?[a-z_]+", name.rpartition("::")[2].rpartition(".")[2])]


@contextmanager
def called(names: list[str]) -> Iterator[list[str]]:
    """Those of `names` that are called within the block, in the order of their first calls."""
    ends = {name: tuple(f"/{name}".split("::")) for name in names}
    found: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            for name, (file, function) in ends.items():
                if function == code.co_qualname and name not in found and code.co_filename.endswith(file):
                    found.append(name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)


def test_an_ask_goes_the_way_that_the_page_tells() -> None:
    steps = [step for step in told() if step not in ELSEWHERE]
    gone: list[str] = []

    async def main(loop: SimLoop) -> None:
        world = World(loop, "walk")
        Cell.dice, Cell.slowness, Cell.crashed = world.dice("agents"), 0.0, set()
        await world.prepare()
        world.supervisor("s1")
        world.node("n1")

        async def client() -> None:
            async with world.client("c1") as mesh:
                await mesh.start_agent("cell", kind="Cell")
                await mesh.ask("cell", "add a")
                await asyncio.sleep(0.5)  # of virtual time: what the first one leaves to be done is done
                with called(steps) as found:
                    await mesh.ask("cell", "add b")
                gone.extend(found)

        await world.process("c1").spawn(client())

    run_sim(main)
    assert gone == steps
    assert set(told()) >= ELSEWHERE, "the page tells of steps that are gone"
