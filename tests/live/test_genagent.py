"""GenAgent's behaviours end to end, one or more of each group of docs/semantics.md part A. The turn machine's own tests
(tests/mesh/turn) show every case; these show that the shells carry them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import (
    BackendError,
    Interrupted,
    NoTerminalEvent,
    NotFound,
    PreRunCrashed,
    PreTurnHalted,
    PreTurnInvalid,
    PreTurnSkipped,
    Stopped,
    TaskCrashed,
    TurnTimeout,
)
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_between_agents import do, events_of, start, state_of
from support import Server, eventually, run


async def idle(mesh: LocalMesh, agent: str) -> None:
    status = await mesh.client.status(agent)
    assert (status.state, status.queued, status.current_request, status.halted) == ("idle", 0, None, False)


# --- start, init, pre_run -----------------------------------------------------------------------------------------
@pytest.mark.case(1)
@pytest.mark.case(2)
@pytest.mark.case(5)
@pytest.mark.case(8)
@pytest.mark.case(9)
def test_a_started_agent_is_idle_and_its_options_arrive_unchanged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            options = {"path": "src", "deep": {"list": [1, 2.5, None, True]}, "text": "ü"}
            info = await mesh.client.start_agent("picky", kind="Picky", options=options)
            assert (info.status, info.node, await mesh.client.whereis("picky")) == ("running", "n1", "n1")
            await idle(mesh, "picky")
            assert (await state_of(mesh, "picky"))["options"] == options
            await mesh.client.ask("picky", "hello")
            assert (await state_of(mesh, "picky"))["events"][0] == "pre_run"
            assert (await state_of(mesh, "picky"))["events"].count("pre_run") == 1
            began = await mesh.saw("state_changed", "picky")
            assert (began["from"], began["to"]) == (None, "idle")

    run(main(), 110)


@pytest.mark.case(10)
@pytest.mark.case(12)
def test_pre_run_may_be_slow_or_fail(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("slow", kind="Preparing", options={"gate": str(gate)})
            asked = asyncio.create_task(mesh.client.ask("slow", "hello", timeout=PATIENCE_S))
            await mesh.client.notify("slow", "waits as well")
            await mesh.told()
            assert mesh.seen("prompt_start", "slow") == []
            gate.touch()
            assert (await asked).text == "hello"
            with contextlib.suppress(PreRunCrashed):  # it may be over before the caller is told that it had begun
                await mesh.client.start_agent("broken", kind="Preparing", options={"gate": ""})

            async def ended() -> bool:
                found = {agent.name: agent.spec for agent in await mesh.client.list_agents(stopped=True)}
                reason = found["broken"].reason
                return found["broken"].status == "stopped" and reason is not None and reason.code == PreRunCrashed.code

            await eventually(ended, PATIENCE_S, "its end with the reason")

    run(main(), 110)


# --- ask, tell, queueing, self-chain --------------------------------------------------------------------------------
@pytest.mark.case(13)
@pytest.mark.case(16)
@pytest.mark.case(35)
@pytest.mark.case(38)
def test_callers_are_served_one_by_one_in_order(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Recorder")
            gate = tmp_path / "gate"
            first = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} p0"))
            await mesh.saw("prompt_start", "coder")
            rest = []
            for number in range(1, 6):
                rest.append(asyncio.create_task(mesh.client.ask("coder", f"p{number}")))
                await mesh.saw("mailbox_queued", "coder", depth=number)
            gate.touch()
            assert [(await task).text for task in (first, *rest)] == [f"p{number}" for number in range(6)]
            await mesh.told()
            kinds = [event["kind"] for event in mesh.events if event["kind"] in ("prompt_start", "prompt_stop")]
            assert kinds == ["prompt_start", "prompt_stop"] * 6

    run(main(), 110)


@pytest.mark.case(31)
@pytest.mark.case(32)
@pytest.mark.case(33)
@pytest.mark.case(34)
@pytest.mark.case(22)
@pytest.mark.case(26)
def test_a_chained_turn_comes_before_queued_mail_and_answers_nobody(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            gate = tmp_path / "gate"
            chain = do(["then", {"decision": "prompt", "text": "chained"}])
            first = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} {chain}"))
            await mesh.saw("prompt_start", "coder")
            ref = await mesh.client.tell("coder", "queued")
            gate.touch()
            assert (await first).text == chain

            async def done() -> bool:
                return (await mesh.client.poll("coder", ref)).done

            await eventually(done, PATIENCE_S, "the queued one")
            state = await state_of(mesh, "coder")
            assert state["prompts"] == [chain, "chained", "queued"]
            assert len(set(state["refs"])) == 3
            with pytest.raises(NotFound):
                await mesh.client.poll("coder", state["refs"][1])
            again = await mesh.client.poll("coder", ref)
            assert again == await (await mesh.connect()).poll("coder", ref)

    run(main(), 110)


# --- halt and resume --------------------------------------------------------------------------------------------------
@pytest.mark.case(17)
@pytest.mark.case(30)
@pytest.mark.case(39)
@pytest.mark.case(40)
@pytest.mark.case(41)
@pytest.mark.case(42)
@pytest.mark.case(43)
def test_a_halted_agent_keeps_what_comes_and_resume_goes_on(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            assert await mesh.client.resume("coder") is False
            await mesh.client.ask("coder", do(["then", {"decision": "halt"}]))
            assert await mesh.saw("halted", "coder")
            asked = asyncio.create_task(mesh.client.ask("coder", "waits", timeout=PATIENCE_S))
            await mesh.saw("mailbox_queued", "coder", depth=1)
            ref = await mesh.client.tell("coder", "waits too")
            await mesh.client.notify("coder", {"do": [["then", {"decision": "prompt", "text": "from an event"}]]})
            await events_of(mesh, "coder", 1)
            status = await mesh.client.status("coder")
            assert (status.halted, status.state, status.queued) == (True, "idle", 3)
            assert (await mesh.client.poll("coder", ref)).status == "pending"
            assert await mesh.client.resume("coder") is True
            assert (await asked).text == "waits"

            async def all_run() -> bool:
                return bool((await state_of(mesh, "coder"))["prompts"][1:] == ["waits", "waits too", "from an event"])

            await eventually(all_run, PATIENCE_S, "everything that waited")
            await idle(mesh, "coder")

    run(main(), 110)


# --- notify and deferral ------------------------------------------------------------------------------------------------
@pytest.mark.case(52)
@pytest.mark.case(53)
@pytest.mark.case(54)
@pytest.mark.case(55)
@pytest.mark.case(61)
@pytest.mark.case(62)
@pytest.mark.case(63)
def test_events_of_a_turn_are_handled_after_it_in_order_and_none_is_lost(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            await start(mesh, "deaf", kind="Unfit")
            gate = tmp_path / "gate"
            first = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} first"))
            await mesh.saw("prompt_start", "coder")
            for number in range(5):
                await mesh.client.notify("coder", number)
            await mesh.client.notify("coder", {"do": [["raise", {"message": "in an event"}]]})
            await mesh.client.notify("coder", {"do": [["then", {"decision": "prompt", "text": "born of an event"}]]})
            await mesh.saw("event_received", "coder", 7)
            assert (await state_of(mesh, "coder"))["events"] == []
            gate.touch()
            await first
            assert (await state_of(mesh, "coder"))["events"][:5] == list(range(5)), "before the caller was answered"

            async def born() -> bool:
                return bool((await state_of(mesh, "coder"))["prompts"] == ["first", "born of an event"])

            await eventually(born, PATIENCE_S, "the turn of the event")
            assert len((await state_of(mesh, "coder"))["events"]) == 6
            await mesh.client.notify("deaf", {"any": "event"})
            assert (await mesh.client.ask("deaf", "fine")).text == "fine"

    run(main(), 110)


# --- interrupt, watchdog, crash -----------------------------------------------------------------------------------------
@pytest.mark.case(64)
@pytest.mark.case(65)
@pytest.mark.case(66)
@pytest.mark.case(67)
@pytest.mark.case(68)
def test_an_interrupted_turn_ends_and_the_next_runs(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Picky")
            assert await mesh.client.interrupt("coder") is False
            running = asyncio.create_task(mesh.client.ask("coder", f"gate:{tmp_path / 'never'} first"))
            await mesh.saw("prompt_start", "coder")
            waiting = asyncio.create_task(mesh.client.ask("coder", "second"))
            await mesh.saw("mailbox_queued", "coder", depth=1)
            assert await mesh.client.interrupt("coder", ref="999") is False
            assert await mesh.client.interrupt("coder") is True
            with pytest.raises(Interrupted):
                await running
            assert (await waiting).text == "second"
            assert (await mesh.saw("prompt_error", "coder"))["reason"] == "interrupted"
            assert "error interrupted" in (await state_of(mesh, "coder"))["events"]

    run(main(), 110)


@pytest.mark.case(69)
@pytest.mark.case(71)
@pytest.mark.case(72)
@pytest.mark.case(75)
@pytest.mark.case(15)
@pytest.mark.case(74)
@pytest.mark.case(77)
@pytest.mark.case(105)
def test_every_way_that_a_turn_can_fail_is_told_apart(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Failing", watchdog_s=1)
            ways: list[tuple[str, type[Exception], str]] = [
                ("refuse", BackendError, "quota"),
                ("terminal", BackendError, "overloaded"),
                ("unnamed", BackendError, "unknown"),
                ("silent", NoTerminalEvent, "without a result"),
                ("crash", TaskCrashed, "stream"),
                ("observer", TaskCrashed, "observer"),
                ("hang", TurnTimeout, "1 s"),
            ]
            for prompt, error, words in ways:
                with pytest.raises(error, match=words):
                    await mesh.client.ask("coder", prompt, timeout=PATIENCE_S)
                await idle(mesh, "coder")
            assert (await mesh.client.ask("coder", "fine")).text == "fine"
            await mesh.told()
            reasons = [event["reason"] for event in mesh.seen("prompt_error", "coder")]
            codes = ["backend_error"] * 3 + ["no_terminal_event", "task_crashed", "task_crashed", "timeout"]
            assert reasons == codes
            assert [turn.error.code if turn.error else "ok" for turn in await mesh.client.history("coder")] == [*codes, "ok"]

    run(main(), 110)


@pytest.mark.case(76)
@pytest.mark.case(46)
def test_handle_error_may_try_again_for_the_same_caller_or_halt(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder", kind="Picky")
            answer = await mesh.client.ask("coder", "fail:again", timeout=PATIENCE_S)
            assert answer.text == "third time"
            assert [outcome.ref for outcome in await mesh.results("coder", 1)] == [answer.ref]
            events = (await state_of(mesh, "coder"))["events"]
            assert events.count("error backend_error") == 2
            assert events.count("post_turn False") == 2
            with pytest.raises(BackendError):
                await mesh.client.ask("coder", "fail:halt")
            assert (await mesh.client.status("coder")).halted

    run(main(), 110)


# --- pre_turn, post_turn, streams, sessions --------------------------------------------------------------------------------
@pytest.mark.case(80)
@pytest.mark.case(81)
@pytest.mark.case(82)
@pytest.mark.case(83)
@pytest.mark.case(84)
@pytest.mark.case(85)
@pytest.mark.case(86)
@pytest.mark.case(103)
def test_pre_turn_rewrites_skips_and_halts(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, content=True) as mesh:
            await start(mesh, "picky", kind="Picky")
            assert (await mesh.client.ask("picky", "a draft")).text == "a final"
            began = await mesh.saw("prompt_start", "picky")
            assert (began["rewritten"], began["prompt"], began["original_prompt"]) == (True, "a final", "a draft")
            with pytest.raises(PreTurnSkipped):
                await mesh.client.ask("picky", "skip me")
            with pytest.raises(PreTurnSkipped):
                await mesh.client.ask("picky", "raise in pre_turn")
            with pytest.raises(PreTurnInvalid):
                await mesh.client.ask("picky", "nonsense in pre_turn")
            assert (await state_of(mesh, "picky"))["events"] == [
                "pre_run",
                "pre_turn a draft",
                "post_turn True",
                "pre_turn skip me",
            ]
            await idle(mesh, "picky")
            with pytest.raises(PreTurnHalted):
                await mesh.client.ask("picky", "halt me")
            assert (await mesh.client.status("picky")).halted
            await mesh.told()
            assert len(mesh.seen("prompt_start", "picky")) == 1

    run(main(), 110)


@pytest.mark.case(89)
@pytest.mark.case(90)
@pytest.mark.case(91)
@pytest.mark.case(93)
@pytest.mark.case(94)
@pytest.mark.case(108)
@pytest.mark.case(109)
def test_streams_usage_and_sessions(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "talker", kind="Talker")
            answer = await mesh.client.ask("talker", "go")
            assert (answer.text, answer.usage) == ("it is there", {"input_tokens": 3, "output_tokens": 4, "tool_calls": 1})
            await mesh.client.ask("talker", "again")
            assert (await mesh.client.status("talker")).usage == {"input_tokens": 6, "output_tokens": 8, "tool_calls": 2}
            await start(mesh, "serial", kind="Sequel")
            answers = [await mesh.client.ask("serial", "next") for _ in range(3)]
            assert [(one.text, one.session_id) for one in answers] == [
                ("first answer", "s-1"),
                ("second answer", "s-1"),
                ("third answer", "s-1"),
            ]
            with pytest.raises(BackendError) as caught:
                await mesh.client.ask("serial", "next")
            assert caught.value.details["reason"] == "no_script"

    run(main(), 110)


# --- stop ---------------------------------------------------------------------------------------------------------------
@pytest.mark.case(97)
@pytest.mark.case(98)
@pytest.mark.case(99)
@pytest.mark.case(101)
@pytest.mark.case(26)
@pytest.mark.case(49)
def test_stop_kills_the_turn_and_answers_everybody(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            runs = tmp_path / "runs"
            await mesh.client.start_agent("coder", kind="Leaving", options={"runs": str(runs)})
            done = await mesh.client.tell("coder", "done before")
            await mesh.saw("prompt_stop", "coder")
            running = asyncio.create_task(mesh.client.ask("coder", f"gate:{tmp_path / 'never'} running"))
            await mesh.saw("prompt_start", "coder", 2)
            queued = [asyncio.create_task(mesh.client.ask("coder", f"queued {number}")) for number in range(3)]
            await mesh.saw("mailbox_queued", "coder", depth=3)
            ref = await mesh.client.tell("coder", "told")
            await mesh.client.stop("coder")
            for task in (running, *queued):
                with pytest.raises(Stopped):
                    await task
            outcome = (await mesh.client.poll("coder", ref)).outcome
            assert outcome is not None
            assert outcome.error is not None
            assert outcome.error.code == "stopped"
            assert (await mesh.client.poll("coder", done)).outcome is not None
            said = [line for line in runs.read_text().splitlines() if line.startswith("leaving")]
            assert said == ["leaving: stopped"], "terminate_agent ran once, and post_run did not"
            with pytest.raises(NotFound):
                await mesh.client.stop("coder")
            with pytest.raises(NotFound):
                await mesh.client.ask("coder", "anybody?")

    run(main(), 110)


@pytest.mark.case(100)
@pytest.mark.case(97)
def test_a_name_is_free_at_once_and_its_next_bearer_sees_nothing_of_the_last(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2") as mesh:
            lives = set()
            for life in range(5):
                info = await mesh.client.start_agent("coder", kind="Puppet", options={"life": life}, timeout=PATIENCE_S)
                lives.add(info.incarnation)
                await mesh.client.ask("coder", do(["then", {"decision": "halt"}]), timeout=PATIENCE_S)
                for number in range(3):
                    await mesh.client.tell("coder", f"never run {number}")
                await mesh.client.notify("coder", "seen by this life only")
                await mesh.client.stop("coder")
            info = await mesh.client.start_agent("coder", kind="Puppet", timeout=PATIENCE_S)
            assert len({*lives, info.incarnation}) == 6
            await idle(mesh, "coder")
            assert (await mesh.client.ask("coder", "first")).turn == 1
            state = await state_of(mesh, "coder")
            assert (state["prompts"], state["events"], state["options"]) == (["first"], [], {})

    run(main(), 110)


# --- telemetry ----------------------------------------------------------------------------------------------------------
@pytest.mark.case(37)
@pytest.mark.case(104)
@pytest.mark.case(106)
@pytest.mark.case(107)
def test_lifecycle_events_say_what_happened(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            answer = await mesh.client.ask("coder", do(["then", {"decision": "halt"}]))
            await mesh.saw("halted", "coder")
            stop = await mesh.saw("prompt_stop", "coder")
            assert (stop["ref"], stop["turn"]) == (answer.ref, 1)
            assert stop["duration_ms"] >= 0
            await mesh.told()
            changes = [(event["from"], event["to"]) for event in mesh.seen("state_changed", "coder")]
            assert changes == [(None, "idle"), ("idle", "processing"), ("processing", "idle")]
            await mesh.client.notify("coder", "idle to idle is silent")
            await events_of(mesh, "coder", 1)
            await mesh.told()
            assert len(mesh.seen("state_changed", "coder")) == 3
            known: list[Any] = [event["kind"] for event in mesh.events if event.get("agent") == "coder"]
            assert known.index("started") < known.index("prompt_start") < known.index("prompt_stop") < known.index("halted")

    run(main(), 110)
