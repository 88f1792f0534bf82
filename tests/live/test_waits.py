"""Waits inside a turn, on real servers: an agent used as a tool (docs/architecture.md#waits; case 218)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.edge.read import read_all
from agentmesh.registry_values import Restart
from agentmesh.subjects import Subjects
from live import steppers
from live.mesh import PATIENCE_S, LocalMesh, ProcessMesh, kinds, local_mesh
from live.test_between_agents import do
from live.test_steps import LONG_S, lines, program, stepping_mesh
from support import Server, eventually, run


def asking(agent: str, prompt: Any, seconds: float = PATIENCE_S) -> list[Any]:
    return ["ask", agent, prompt, seconds]


@contextlib.asynccontextmanager
async def asking_mesh(
    server: Server, subjects: Subjects, *agents: str, more: Mapping[str, type[Agent[Any]]] | None = None, **settings: Any
) -> AsyncIterator[LocalMesh]:
    """A mesh on this loop with these agents, all of them `Doer`s, that serves `more` kinds besides."""
    async with local_mesh(server, subjects, serves={**kinds(steppers), **(more or {})}, **settings) as mesh:
        for agent in agents:
            await mesh.client.start_agent(agent, kind="Doer", timeout=PATIENCE_S)
        yield mesh


async def ask(mesh: LocalMesh | ProcessMesh, agent: str, *ops: Any) -> Any:
    """What a program gives."""
    return msgspec.json.decode((await mesh.client.ask(agent, program(*ops), timeout=PATIENCE_S)).text)


async def letters(mesh: LocalMesh | ProcessMesh, lane: str, agent: str) -> int:
    """How many messages a lane has been given."""
    return len(await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.lane(lane, agent)))


async def book(mesh: LocalMesh | ProcessMesh, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = (await mesh.client.status(agent, content=True, timeout=PATIENCE_S)).agent_state
    return found


# --- answers ----------------------------------------------------------------------------------------------------------
def test_a_turn_asks_other_agents_and_goes_on_with_what_they_say(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, "a", "b", "c") as mesh:
            deeper = [asking("c", "deep")]
            assert await ask(
                mesh, "a", asking("b", "one"), asking("b", deeper), ["both", asking("b", "x"), asking("c", "y")]
            ) == [
                "one",
                ["deep"],
                ["x", "y"],
            ]
            assert (await book(mesh, "a"))["events"] == [], "answers to waits are no events"
            assert await letters(mesh, "peer-notify", "a") == 0

    run(main(), LONG_S)


def test_a_request_that_cannot_be_delivered_or_takes_too_long_ends_its_wait(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, "a", "b") as mesh:
            assert await ask(mesh, "a", asking("nobody", "hello")) == ["!not_found"]
            assert await ask(mesh, "a", asking("not a name", "hello")) == ["!bad_request"]
            gate = tmp_path / "gate"
            slow = asking("b", [["gate", str(gate)]], 0.2)
            assert await ask(mesh, "a", slow, asking("nobody", "again")) == ["!timeout", "!not_found"]
            gate.touch()
            assert await ask(mesh, "a", asking("b", "well?")) == ["well?"], "the late answer is nobody's"
            state = await book(mesh, "a")
            assert state["events"] == [], "neither late answers nor undelivered requests become events"

    run(main(), LONG_S)


@pytest.mark.case(451)
@pytest.mark.slow
def test_a_wait_for_an_agent_that_has_failed_or_is_halted_ends_with_its_state(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, "a", more=kinds(), wait_patience_s=1.0) as mesh:
            await mesh.client.start_agent("broken", kind="Puppet", restart=Restart(max=0), timeout=PATIENCE_S)
            await mesh.client.tell("broken", do(["raise", {"message": "for good"}]))
            await mesh.saw("failed", "broken")
            await mesh.client.start_agent("tired", kind="Puppet", timeout=PATIENCE_S)
            await mesh.client.ask("tired", do(["then", {"decision": "halt"}]))
            assert await ask(mesh, "a", asking("broken", "hello", 600)) == ["!failed"]
            assert await ask(mesh, "a", asking("tired", "hello", 600)) == ["!unavailable"]

            async def withdrawn() -> bool:
                return (await mesh.client.status("tired")).queued == 0

            await eventually(withdrawn, PATIENCE_S, "the question is withdrawn")
            await mesh.client.resume("tired")
            assert (await mesh.client.ask("tired", "awake", timeout=PATIENCE_S)).text == "awake"
            assert [turn.turn for turn in await mesh.client.history("tired")] == [1, 2], "no turn ran for it"

    run(main(), LONG_S)


def test_a_full_event_lane_does_not_starve_a_turn_that_waits(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, "a", "b", mailbox_limit=8) as mesh:
            gate = f"{subjects.root}.opened"
            asked = asyncio.create_task(ask(mesh, "a", asking("b", [["gate", "/nonexistent"]], 2.0), asking("b", gate)))
            await mesh.saw("prompt_start", "b")
            for number in range(8):
                await mesh.client.notify("a", {"n": number})
            await mesh.client.interrupt("b")
            assert await asked == ["!interrupted", gate]
            assert [event["n"] for event in (await book(mesh, "a"))["events"]] == list(range(8))

    run(main(), LONG_S)


# --- circles ----------------------------------------------------------------------------------------------------------
@pytest.mark.case(218)
@pytest.mark.parametrize("chain", ["a", "ab", "abc"])
def test_an_agent_that_waits_up_the_chain_is_not_waited_for(server: Server, subjects: Subjects, chain: str) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, *chain) as mesh:
            ops: list[Any] = [asking("a", "and you?")]
            for agent in reversed(chain[1:]):
                ops = [asking(agent, ops)]
            expected: Any = "!cycle"
            for _ in chain:
                expected = [expected]
            assert await ask(mesh, "a", *ops) == expected
            assert await letters(mesh, "peer-inbox", "a") == 0, "nothing was sent"
            assert (
                await ask(mesh, "a", "said") == []
                and (await book(mesh, "a"))["answers"][0] == msgspec.json.encode(expected).decode()
            )

    run(main(), LONG_S)


@pytest.mark.case(218)
@pytest.mark.parametrize("circle", ["ab", "abc", "abcde"])
def test_of_a_circle_that_no_path_shows_one_wait_ends_and_the_others_go_on(
    server: Server, subjects: Subjects, tmp_path: Path, circle: str
) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, *circle) as mesh:
            gate = tmp_path / "gate"
            turns = []
            for number, agent in enumerate(circle):
                after = circle[(number + 1) % len(circle)]
                turns.append(asyncio.create_task(ask(mesh, agent, ["gate", str(gate)], asking(after, f"from {agent}"))))
            for agent in circle:
                await mesh.saw("prompt_start", agent)
            gate.touch()
            answers = [answer for [answer] in await asyncio.gather(*turns)]
            assert answers.count("!cycle") == 1, answers
            assert sorted(answers)[1:] == sorted(
                f"from {agent}" for agent, answer in zip(circle, answers, strict=True) if answer != "!cycle"
            )

    run(main(), LONG_S)


def test_waits_that_are_no_circle_are_left_alone(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with asking_mesh(server, subjects, "a", "b", "c", "d") as mesh:
            gate = tmp_path / "gate"
            held = asyncio.create_task(ask(mesh, "d", ["gate", str(gate)]))
            await mesh.saw("prompt_start", "d")
            # a waits for b and c, both wait for d, and b is asked by c as well: much waiting, no circle.
            fan = asyncio.create_task(ask(mesh, "a", ["both", asking("b", [asking("d", "1")]), asking("c", [asking("b", "2")])]))
            await mesh.saw("prompt_start", "c")
            control = mesh.subjects.control("d")
            probes: list[bytes] = []
            await mesh.transport.subscribe(control, lambda message: probes.append(message.data))
            await eventually(lambda: len(probes) > 4, PATIENCE_S, "probes of those who wait")
            gate.touch()
            assert await fan == [[["1"], ["2"]]]
            await held

    run(main(), LONG_S)


async def has_step(mesh: ProcessMesh, agent: str) -> bool:
    return any(record.kind == "step" for record in await mesh.records(agent))


async def runs_elsewhere(mesh: ProcessMesh, agent: str, node: str) -> bool:
    """Whether the agent's turn has begun on another node."""
    return (await mesh.records(agent))[-1].node != node


# --- takeovers --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.case(218)
@pytest.mark.case(215)
@pytest.mark.parametrize("victims", ["a", "b", "ab", "ba"])
def test_a_wait_outlives_the_nodes_of_both_sides(server: Server, subjects: Subjects, tmp_path: Path, victims: str) -> None:
    async def main() -> None:
        async with stepping_mesh(server, subjects, tmp_path, "n1", "n2", "n3", "n4") as mesh:
            for agent in "ab":
                await mesh.client.start_agent(agent, kind="Doer", timeout=PATIENCE_S)
            calls, gate = str(tmp_path / "calls"), tmp_path / "gate"
            inner = [["call", calls, "b1"], ["gate", str(gate)], ["call", calls, "b2"]]
            asked = asyncio.create_task(
                ask(mesh, "a", ["call", calls, "a1"], asking("b", inner), ["call", calls, "a2"], asking("b", "more"))
            )
            await eventually(lambda: "b1" in lines(tmp_path / "calls"), PATIENCE_S, "b's turn")
            await eventually(lambda: has_step(mesh, "b"), PATIENCE_S, "b's first step")
            for number, agent in enumerate(victims, 1):
                victim = await mesh.host_of(agent)
                await victim.kill()
                await eventually(lambda agent=agent, at=victim.id: runs_elsewhere(mesh, agent, at), PATIENCE_S, "a takeover")
                await mesh.start("node", f"m{number}", "--agents", str(steppers.__file__))
            gate.touch()
            assert await asked == ["a1", ["b1", "b2"], "a2", "more"]
            made = lines(tmp_path / "calls")
            assert made == ["a1", "b1", "b2", "a2"], "no call that was completed was made again"
            assert await letters(mesh, "peer-inbox", "b") == 2, "no request was sent twice"
            assert [o.text for o in await mesh.results("b", 2)] == ['["b1","b2"]', "more"]

    run(main(), LONG_S)
