"""What callbacks decide, and how they fail, end to end: docs/semantics.md part A through server, node and client."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import AskTimeout, BackendError, InitFailed, Interrupted, NotFound, TurnTimeout
from agentmesh.registry_values import Restart
from agentmesh.subjects import Subjects
from agentmesh.wire import decode_outcome
from live import obedient
from live.mesh import PATIENCE_S, LocalMesh, kinds, local_mesh
from live.test_between_agents import start, state_of
from support import Server, eventually, run


def obedient_mesh(server: Server, subjects: Subjects, **settings: Any) -> AbstractAsyncContextManager[LocalMesh]:
    return local_mesh(server, subjects, serves=kinds(obedient), **settings)


async def trail(mesh: LocalMesh, agent: str, *last: str) -> list[str]:
    """What the agent has noted, once it ends with `last`."""
    found: list[str] = []

    async def reached() -> bool:
        found[:] = (await state_of(mesh, agent))["trail"]
        return tuple(found[len(found) - len(last) :]) == last

    await eventually(reached, PATIENCE_S, f"{last} in the trail of {agent}")
    return found


async def said(log: Path, *lines: str) -> None:
    """Wait until exactly these lines are in the file."""
    await eventually(lambda: log.exists() and log.read_text().splitlines() == list(lines), PATIENCE_S, f"{lines} in {log}")


# --- start ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(11)
@pytest.mark.case(12)
@pytest.mark.case(484)
@pytest.mark.parametrize(("order", "code"), [("error", "pre_run_failed"), ("raise", "pre_run_crashed")])
def test_a_pre_run_that_fails_ends_the_agent_and_terminate_agent_is_told_why(
    server: Server, subjects: Subjects, tmp_path: Path, order: str, code: str
) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            log = tmp_path / "log"
            await mesh.client.start_agent("coder", kind="Obedient", options={"log": str(log), "orders": {"pre_run": order}})
            await said(log, f"terminate_agent {code}")

            async def ended() -> bool:
                (found,) = await mesh.client.list_agents(stopped=True)
                reason = found.spec.reason
                return found.spec.status == "stopped" and reason is not None and reason.code == code

            await eventually(ended, PATIENCE_S, "its end with the reason")
            for call in (mesh.client.ask("coder", "hello"), mesh.client.status("coder"), mesh.client.stop("coder")):
                with pytest.raises(NotFound, match=rf"'coder' has ended \({code}: "):
                    await call
            asked = await mesh.client.transport.request(f"{subjects.root}.ask.coder", b"hello", timeout=PATIENCE_S)
            assert f"it has ended with {code}: " in str(decode_outcome(asked.data).error)

    run(main(), 110)


# --- ask, tell, poll ----------------------------------------------------------------------------------------------------
@pytest.mark.case(18)
@pytest.mark.case(22)
@pytest.mark.case(23)
@pytest.mark.case(24)
@pytest.mark.case(25)
@pytest.mark.case(28)
@pytest.mark.case(29)
def test_what_was_asked_and_what_was_told_can_be_polled(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Obedient")
            gate = tmp_path / "gate"
            with pytest.raises(AskTimeout) as caught:
                await mesh.client.ask("coder", f"gate:{gate} asked", timeout=10)
            asked = caught.value.details["ref"]
            told = await mesh.client.tell("coder", "told")
            failed = await mesh.client.tell("coder", "fail:quota")
            skipped = await mesh.client.tell("coder", "pre_turn=skip")
            assert len({asked, told, failed, skipped}) == 4
            for ref in (asked, told, failed, skipped):
                assert (await mesh.client.poll("coder", ref)).status == "pending"
            with pytest.raises(NotFound):
                await mesh.client.poll("coder", "999999")
            gate.touch()

            async def over() -> bool:
                return (await mesh.client.poll("coder", skipped)).done

            await eventually(over, PATIENCE_S, "the last of them")
            outcomes = [(await mesh.client.poll("coder", ref)).outcome for ref in (asked, told, failed, skipped)]
            assert [o and (o.text or (o.error and o.error.code)) for o in outcomes] == [
                "asked",
                "told",
                "backend_error",
                "pre_turn_skipped",
            ]

    run(main(), 110)


@pytest.mark.case(14)
@pytest.mark.case(20)
@pytest.mark.case(54)
@pytest.mark.case(60)
@pytest.mark.case(86)
@pytest.mark.case(87)
@pytest.mark.case(89)
def test_the_caller_is_answered_behind_all_callbacks_in_their_order(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Observing")
            gate = tmp_path / "gate"
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} go"))
            await mesh.saw("prompt_start", "coder")
            await mesh.client.notify("coder", "one")
            await mesh.client.notify("coder", "two")
            await mesh.saw("event_received", "coder", 2)
            gate.touch()
            await asked
            ran = ["stream text", "stream result", "handle_response", "post_turn", "event one", "event two"]
            assert (await state_of(mesh, "coder"))["trail"] == ["pre_run", "pre_turn go", *ran]
            assert (await mesh.client.status("coder")).state == "idle"

    run(main(), 110)


# --- halts and events -----------------------------------------------------------------------------------------------------
@pytest.mark.case(44)
@pytest.mark.case(55)
@pytest.mark.case(56)
@pytest.mark.case(57)
@pytest.mark.case(58)
def test_a_halt_among_deferred_events_keeps_the_chained_prompt_and_the_other_events(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Obedient")
            gate = tmp_path / "gate"
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} handle_response=prompt:chained"))
            await mesh.saw("prompt_start", "coder")
            for event in ("asks handle_event=prompt:born", "halts handle_event=halt", "last"):
                await mesh.client.notify("coder", event)
            await mesh.saw("event_received", "coder", 3)
            gate.touch()
            assert (await asked).text
            assert (await trail(mesh, "coder", "event last"))[-3:] == ["event asks", "event halts", "event last"]
            status = await mesh.client.status("coder")
            assert (status.halted, status.state, status.queued) == (True, "idle", 2)
            await mesh.client.resume("coder")
            turns = [
                line for line in await trail(mesh, "coder", "pre_turn born", "handle_response", "post_turn") if "pre_turn" in line
            ]
            assert turns[1:] == ["pre_turn chained", "pre_turn born"]

    run(main(), 110)


@pytest.mark.case(45)
@pytest.mark.case(47)
@pytest.mark.case(48)
@pytest.mark.case(49)
@pytest.mark.case(50)
@pytest.mark.case(51)
def test_post_run_runs_once_for_each_halt(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            log = tmp_path / "log"
            await mesh.client.start_agent("coder", kind="Obedient", options={"log": str(log)})
            await mesh.client.notify("coder", "first handle_event=halt")
            await mesh.saw("halted", "coder")
            await said(log, "post_run")
            await mesh.client.notify("coder", "again handle_event=halt")
            await trail(mesh, "coder", "event again")
            await mesh.client.resume("coder")
            await mesh.client.notify("coder", "prompts handle_event=prompt:awake")
            await trail(mesh, "coder", "pre_turn awake", "handle_response", "post_turn")
            assert (await mesh.client.ask("coder", "handle_response=halt post_run=raise")).text
            await mesh.saw("halted", "coder", 2)
            assert (await mesh.client.status("coder")).halted, "a raising post_run leaves the halt complete"
            await mesh.told()
            assert len(mesh.seen("halted", "coder")) == 2
            await mesh.client.stop("coder")
            await said(log, "post_run", "post_run", "terminate_agent stopped")

    run(main(), 110)


# --- callbacks that fail --------------------------------------------------------------------------------------------------
@pytest.mark.case(59)
@pytest.mark.case(62)
@pytest.mark.case(78)
@pytest.mark.case(83)
@pytest.mark.case(88)
def test_callbacks_that_raise_leave_no_trace_and_stop_nothing(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Obedient")
            gate = tmp_path / "gate"
            gate.touch()
            held = asyncio.create_task(mesh.client.ask("coder", f"gate:{tmp_path / 'held'} handle_error=raise post_turn=raise"))
            await mesh.saw("prompt_start", "coder")
            await mesh.client.notify("coder", "raises handle_event=raise")
            await mesh.client.notify("coder", "fine")
            await mesh.saw("event_received", "coder", 2)
            await mesh.client.interrupt("coder")
            with pytest.raises(Interrupted):
                await held
            noted = ["pre_run", "pre_turn post_turn", "event fine"]
            assert (await state_of(mesh, "coder"))["trail"] == noted
            answer = await mesh.client.ask("coder", "handle_response=prompt:next post_turn=raise")
            assert answer.text == "handle_response=prompt:next post_turn=raise"
            after = await trail(mesh, "coder", "pre_turn next", "handle_response", "post_turn")
            assert after == [*noted, "pre_turn post_turn", "handle_response", "pre_turn next", "handle_response", "post_turn"]
            with pytest.raises(BackendError, match="quota"):
                await mesh.client.ask("coder", "fail:quota")

    run(main(), 110)


@pytest.mark.case(21)
def test_a_crash_of_handle_response_leaves_nothing_of_the_turn(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            log = tmp_path / "log"
            await mesh.client.start_agent("coder", kind="Obedient", options={"log": str(log)})
            with pytest.raises(Exception, match="as ordered, in handle_response"):
                await mesh.client.ask("coder", "handle_response=raise", timeout=PATIENCE_S)
            assert (await state_of(mesh, "coder"))["trail"] == ["pre_run"]
            assert (await mesh.client.ask("coder", "fine", timeout=PATIENCE_S)).text == "fine"
            assert log.read_text().splitlines() == ["terminate_agent task_crashed"] * 3

    run(main(), 110)


@pytest.mark.case(6)
def test_a_class_that_cannot_be_made_fails_its_start(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            with pytest.raises(InitFailed, match="no room"):
                await mesh.client.start_agent("coder", kind="Homeless", timeout=PATIENCE_S)
            await start(mesh, "coder", kind="Obedient")

    run(main(), 110)


CRASHING = ("cancelled", "exits", "error", "metadata")
FAILING = {
    "text": "backend_error",
    "surrogate": None,  # text that UTF-8 cannot hold becomes text that it can
    "usage": "backend_error",
    "session": "backend_error",
    "reason": "backend_error",
    "label": "bad_return",
    "exclusive": "bad_return",
    "empty": "bad_return",
    "field": "bad_state",
    **dict.fromkeys(CRASHING, "failed"),
}


@pytest.mark.case(21)
@pytest.mark.case(244)
def test_nothing_that_an_agent_or_its_backend_gives_spoils_the_journal(
    server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="agentmesh.node")  # what is logged here no report of a test can carry

    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            restart = Restart(max=100)
            await mesh.client.start_agent("coder", kind="Hostile", restart=restart, timeout=PATIENCE_S)
            refs = {prompt: await mesh.client.tell("coder", prompt) for prompt in FAILING}
            assert (await mesh.client.ask("coder", "fine", timeout=PATIENCE_S)).text == "fine"
            codes = {}
            for prompt, ref in refs.items():
                outcome = (await mesh.client.poll("coder", ref)).outcome
                codes[prompt] = outcome.error.code if outcome is not None and outcome.error is not None else None
            assert codes == FAILING
            assert len(await mesh.records("coder")) > len(FAILING), "each can be read"
            await mesh.nodes["n1"].drain()
            await mesh.nodes["n1"].close()
            await mesh.node("n2", serves=kinds(obedient))
            assert (await mesh.client.ask("coder", "again", timeout=PATIENCE_S)).node == "n2"
            trail = (await state_of(mesh, "coder"))["trail"]
            assert [line for line in trail if line in ("fine", "again", *FAILING)] == ["fine", "again"]

    run(main(), 110)


# --- watchdog and late results ------------------------------------------------------------------------------------------------
@pytest.mark.case(69)
@pytest.mark.case(70)
def test_the_watchdog_of_a_class_begins_anew_with_each_turn(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Hurried")
            await mesh.client.ask("coder", "handle_response=prompt:chained", timeout=PATIENCE_S)
            done = await trail(mesh, "coder", "pre_turn chained", "handle_response", "post_turn")
            assert not any("handle_error" in line for line in done), "two turns took longer than one may"
            with pytest.raises(TurnTimeout, match=r"1\.5 s"):
                await mesh.client.ask("coder", "hang", timeout=PATIENCE_S)
            assert "handle_error timeout" in (await state_of(mesh, "coder"))["trail"]

    run(main(), 110)


@pytest.mark.case(73)
@pytest.mark.case(64)
@pytest.mark.case(96)
def test_what_a_killed_task_still_says_is_dropped(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Stubborn")
            asked = asyncio.create_task(mesh.client.ask("coder", "stubborn"))
            await mesh.saw("prompt_start", "coder")
            assert await mesh.client.interrupt("coder")
            with pytest.raises(Interrupted):
                await asked
            assert (await mesh.client.ask("coder", "fine")).text == "fine"
            assert (await state_of(mesh, "coder"))["trail"].count("handle_response") == 1
            assert [outcome.ok for outcome in await mesh.results("coder", 2)] == [False, True]
            await start(mesh, "slow", kind="Hurried")
            answer = await mesh.client.ask("slow", "go", timeout=PATIENCE_S)
            assert answer.duration_ms is not None
            assert 800 <= answer.duration_ms < 1500

    run(main(), 110)
