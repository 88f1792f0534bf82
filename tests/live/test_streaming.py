"""A turn that is watched: by a program, and by `mesh ask --stream`, while its node is killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentmesh.backend import Event
from agentmesh.edge.transport import Message
from agentmesh.records import Resolve
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome
from agentmesh_client import Ended, LiveEvent, Missed, Restarted, Started, Text, ToolResult, ToolUse, Usage
from agentmesh_client.streaming import EventReader
from agentmesh_node.services import Services
from agentmesh_node.turns.live_events import TurnEventStream
from client.test_cli import Shell
from live import steppers
from live.mesh import PATIENCE_S, ProcessMesh, local_mesh, process_mesh
from support import Server, connected, eventually, run


@pytest.mark.case(243)
def test_a_program_sees_the_turn_as_its_backend_tells_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("talker", kind="Talker")
            async with mesh.client.stream("talker", "go", timeout=PATIENCE_S) as turn:
                events = [event async for event in turn]
            assert [type(event) for event in events] == [Started, Text, ToolUse, ToolResult, Text, Usage, Ended]
            assert turn.text == "thinking about gothere"
            assert (await turn.response()).text == "it is there"
            polled = await mesh.client.poll("talker", turn.ref)
            assert isinstance(events[-1], Ended)
            assert events[-1].outcome == polled.outcome

    run(main(), 110)


async def kill_in_mid_stream(mesh: ProcessMesh, gate: Path) -> None:
    """Let the second run of the turn through, and end the process that runs the first."""
    await asyncio.to_thread(gate.touch)
    await (await mesh.host_of("coder")).kill()


@pytest.mark.case(243)
@pytest.mark.case(202)
def test_a_node_killed_in_mid_stream_leaves_a_void_tail_that_a_program_can_strike(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Halting", timeout=PATIENCE_S)
            kept: list[LiveEvent] = []
            async with mesh.client.stream("coder", str(gate), timeout=PATIENCE_S) as turn:
                async for event in turn:
                    if isinstance(event, Restarted):
                        kept = [old for old in kept if old.n < event.void_from]
                    kept.append(event)
                    if isinstance(event, Text) and not gate.exists():
                        await kill_in_mid_stream(mesh, gate)
            assert [type(event) for event in kept] == [Started, Restarted, Text, Text, Ended]
            assert "".join(event.text for event in kept if isinstance(event, Text)) == turn.text
            response = await turn.response()
            assert (turn.text, response.text) == ("onetwo", "one two")
            assert [outcome.text for outcome in await mesh.results("coder", 1)] == [response.text]

    run(main(), 110)


@pytest.mark.case(243)
@pytest.mark.case(215)
def test_what_led_to_a_durable_step_is_not_void_when_the_node_dies(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            for node in ("n1", "n2"):
                await mesh.start("node", node, "--agents", str(steppers.__file__))
            calls, gate = str(tmp_path / "calls"), tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Doer", timeout=PATIENCE_S)
            program = [["call", calls, "one"], ["call", calls, "two"], ["gate", str(gate)], ["call", calls, "three"]]
            events: list[LiveEvent] = []
            async with mesh.client.stream("coder", json.dumps(program), timeout=PATIENCE_S) as turn:
                async for event in turn:
                    events.append(event)
                    if isinstance(event, ToolResult) and event.text == "two":
                        await kill_in_mid_stream(mesh, gate)
            assert [type(event) for event in events] == [Started, ToolResult, ToolResult, Restarted, ToolResult, Ended]
            again = events[3]
            assert isinstance(again, Restarted)
            assert again.void_from == again.n, "what was shown was durable, and does not come again"
            assert [event.text for event in events if isinstance(event, ToolResult)] == ["one", "two", "three"]

    run(main(), 110)


@pytest.mark.case(243)
@pytest.mark.parametrize("output", ["text", "jsonl"])
def test_the_command_says_that_a_tail_is_void_and_prints_the_answer(
    server: Server, subjects: Subjects, tmp_path: Path, output: str
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Halting", timeout=PATIENCE_S)
            async with Shell(server, subjects).started("ask", "coder", str(gate), "--stream", "-o", output) as process:
                assert process.stdout is not None
                first = b""
                while b"one" not in first:
                    first += await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
                await kill_in_mid_stream(mesh, gate)
                out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
            assert process.returncode == 0, err.decode()
            if output == "text":
                assert (first + out).decode() == "one\nonetwo\none two\n"
                assert "begins again" in err.decode()
                assert "is void" in err.decode()
                return
            events: list[dict[str, Any]] = [json.loads(line) for line in (first + out).splitlines()]
            assert [event["type"] for event in events] == ["start", "text", "restart", "text", "text", "outcome"]
            assert events[2]["void_from"] == events[1]["n"]
            assert events[-1]["outcome"]["text"] == "one two"

    run(main(), 110)


# --- a thousand turns at once -----------------------------------------------------------------------------------------
TURNS = 1000
CALM, HELD = 5, 8
"""Events of each turn before and after the hold of the loop, and those that are due at its end: 50 a second for 0.15 s."""


@pytest.mark.case(470)
def test_a_thousand_turns_lose_no_event_when_the_loop_was_held(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as node, connected(server.url) as client:
            inbox = client.new_inbox()
            readers = [EventReader() for _ in range(TURNS)]
            events: list[list[LiveEvent]] = [[] for _ in range(TURNS)]
            outcomes = 0

            def take(message: Message) -> None:
                nonlocal outcomes
                n = int(message.subject.rpartition(".")[2])
                events[n] += readers[n].read(message.data)
                outcomes += b'"outcome"' in message.data

            await client.subscribe(f"{inbox}.*", take)
            await client.flush()
            services = cast("Services", SimpleNamespace(transport=node, token=lambda: "run"))
            streams = [TurnEventStream(services, f"agent-{n}", str(n), f"{inbox}.{n}", 5) for n in range(TURNS)]

            def tell(number: int) -> None:
                for stream in streams:
                    stream.event(Event.text(f"event {number} of this turn, with as much text as a model says at once. "))

            for number in range(CALM):
                tell(number)
                await asyncio.sleep(0)
            for number in range(HELD):
                tell(number)
            for number in range(CALM):
                tell(number)
                await asyncio.sleep(0)
            for n, stream in enumerate(streams):
                done = Resolve(outcome=Outcome(agent=f"agent-{n}", ref=str(n), ok=True), stream_to=f"{inbox}.{n}")
                TurnEventStream.close_with(services, f"agent-{n}", done, 5, stream)
            await eventually(lambda: outcomes == TURNS, what="the ends of all turns")
            assert node.dropped == 0
            assert not [event for told in events for event in told if isinstance(event, Missed)]
            assert {len([event for event in told if isinstance(event, Text)]) for told in events} == {2 * CALM + HELD}

    run(main(), 110)
