"""A mailbox with a bound, repetitions, and mail that its agent cannot deal with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import pytest

from agentmesh.edge.manage import purge, stream_state
from agentmesh.edge.read import get_last, read_all
from agentmesh.errors import AgentFailed, MailboxFull, NotFound
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_between_agents import do, events_of, start, state_of
from support import Server, eventually, run

CRASH = do(["raise", {"message": "broken"}])


async def stored(mesh: LocalMesh) -> int:
    return (await stream_state(mesh.transport, mesh.subjects.stream("mail"))).messages


@pytest.mark.case(208)
def test_a_full_mailbox_refuses_loses_nothing_and_has_room_when_mail_is_consumed(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, mailbox_limit=20) as mesh:
            await start(mesh, "busy")
            gate = tmp_path / "gate"
            refs = [await mesh.client.tell("busy", f"gate:{gate} first")]
            await mesh.saw("prompt_start", "busy")
            refs += [await mesh.client.tell("busy", f"p{number}") for number in range(19)]
            with pytest.raises(MailboxFull):
                await mesh.client.tell("busy", "one too many")
            with pytest.raises(MailboxFull):
                await mesh.client.ask("busy", "one too many")
            await mesh.client.notify("busy", "another lane")
            gate.touch()
            await eventually(lambda: len(mesh.seen("prompt_stop", "busy")) == 20, PATIENCE_S, "all that was accepted")
            assert (await state_of(mesh, "busy"))["prompts"] == ["first", *(f"p{number}" for number in range(19))]

            async def room() -> bool:
                try:
                    return (await mesh.client.ask("busy", "room again")).text == "room again"
                except MailboxFull:
                    return False

            await eventually(room, 20, "room for new mail")
            assert (await mesh.client.poll("busy", refs[0])).status == "completed"

    run(main(), 110)


@pytest.mark.case(208)
def test_what_former_owners_have_consumed_and_not_purged_frees_room_too(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, mailbox_limit=20, rest_s=0.1) as mesh:
            await start(mesh, "coder", kind="Recorder")
            for node in ("n2", "n3"):
                for number in range(9):  # less than half the bound: nothing is purged
                    await mesh.client.ask("coder", f"{node} {number}", timeout=PATIENCE_S)
                await mesh.node(node, mailbox_limit=20, rest_s=0.1)
                owner = await mesh.client.whereis("coder")
                await mesh.nodes.pop(owner or "").close()
            await mesh.client.ask("coder", "who is it now?", timeout=PATIENCE_S)

            async def room() -> bool:
                found = await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox("coder"))
                return len(found) < 10

            await eventually(room, 20, "room for new mail")

    run(main(), 110)


@pytest.mark.case(208)
@pytest.mark.parametrize("consumed", [249, 499])
def test_a_lane_always_takes_as_many_as_the_page_says(server: Server, subjects: Subjects, tmp_path: Path, consumed: int) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "busy", kind="Recorder")
            await asyncio.gather(*(mesh.client.ask("busy", f"c{n}", timeout=PATIENCE_S) for n in range(consumed)))
            assert await stored(mesh) == consumed, "as much consumed mail as may lie in a lane"
            gate = tmp_path / "gate"
            await mesh.client.tell("busy", f"gate:{gate} first")
            await mesh.saw("prompt_start", "busy", count=consumed + 1)
            await asyncio.gather(*(mesh.client.tell("busy", f"p{n}") for n in range(500)))
            assert (await mesh.client.status("busy")).queued == 500
            gate.touch()
            assert (await mesh.client.ask("busy", "the last", timeout=PATIENCE_S)).turn == consumed + 502

    run(main(), 110)


@pytest.mark.case(217)
def test_a_colleagues_full_mailbox_is_waited_for(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, mailbox_limit=20) as mesh:
            await start(mesh, "boss", "busy")
            gate = tmp_path / "gate"
            await mesh.client.tell("busy", f"gate:{gate} first")
            await mesh.saw("prompt_start", "busy")
            for turn in range(3):
                tells = [["tell", {"target": "busy", "prompt": f"p{turn}.{n}", "tag": f"p{turn}.{n}"}] for n in range(10)]
                await mesh.client.ask("boss", do(*tells))
            gate.touch()
            found = await events_of(mesh, "boss", 30)
            assert [event["answer"] for event in found] == [f"p{turn}.{n}" for turn in range(3) for n in range(10)]

    run(main(), 110)


@pytest.mark.case(207)
def test_a_repetition_is_recognised_also_when_the_first_was_purged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "echo", kind="Recorder")
            first = await mesh.client.tell("echo", "once", idempotency_key="job-7")
            for base in range(0, 700, 50):
                await asyncio.gather(*(mesh.client.ask("echo", f"p{base + number}") for number in range(50)))

            async def purged() -> bool:
                found = await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox("echo"))
                return all(message.seq > int(first) for message in found)

            await eventually(purged, PATIENCE_S, "the purge of what was consumed")
            # The server still knows the id: it holds for the window, whether the message is there or not.
            assert await mesh.client.tell("echo", "once", idempotency_key="job-7") == first
            assert (await mesh.client.ask("echo", "once", idempotency_key="job-7")).ref == first
            server.restart()  # now it knows only what is stored
            second = await mesh.client.tell("echo", "once", idempotency_key="job-7", timeout=PATIENCE_S)
            assert second != first

            async def completed() -> bool:
                return (await mesh.client.poll("echo", second, timeout=PATIENCE_S)).done

            await eventually(completed, PATIENCE_S, "the outcome of the repetition")
            outcomes = {ref: (await mesh.client.poll("echo", ref)).outcome for ref in (first, second)}
            one, two = outcomes[first], outcomes[second]
            assert one is not None
            assert two is not None
            assert (two.text, two.turn, two.ref) == (one.text, one.turn, second)
            assert (await state_of(mesh, "echo"))["prompts"].count("once") == 1

    run(main(), 110)


@pytest.mark.parametrize("kept", [True, False])
def test_a_repetition_of_what_has_no_outcome_any_more_ends_with_an_error(kept: bool, server: Server, subjects: Subjects) -> None:
    """One whose first has an outcome to come waits for it, in the same place."""

    async def main() -> None:
        async with local_mesh(server, subjects, mailbox_limit=20) as mesh:
            await start(mesh, "echo", kind="Recorder")
            first = (await mesh.client.ask("echo", "once", idempotency_key="job-7")).ref
            inbox = mesh.subjects.inbox("echo")

            async def purged() -> bool:
                found = await read_all(mesh.transport, mesh.subjects.stream("mail"), inbox)
                return all(message.seq > int(first) for message in found)

            for number in range(12):
                await mesh.client.ask("echo", f"p{number}")
            await eventually(purged, PATIENCE_S, "the purge of what was consumed")
            result = mesh.subjects.result("echo", first)

            async def stored_outcome() -> bool:
                return await get_last(mesh.transport, mesh.subjects.stream("result"), result) is not None

            await eventually(stored_outcome, PATIENCE_S, "the first one's outcome")
            if not kept:
                await purge(mesh.transport, mesh.subjects.stream("result"), result, below=1 << 40)
            server.restart()  # now it knows only the ids of what is stored
            if kept:
                again = await mesh.client.ask("echo", "once", idempotency_key="job-7", timeout=PATIENCE_S)
                assert again.ref != first
            else:
                with pytest.raises(NotFound, match="kept no more"):
                    await mesh.client.ask("echo", "once", idempotency_key="job-7", timeout=PATIENCE_S)
            assert (await state_of(mesh, "echo"))["prompts"].count("once") == 1

            found = await mesh.results("echo", 14 if kept else 13)
            codes = [outcome.error.code for outcome in found if outcome.error is not None]
            assert codes == ([] if kept else ["not_found"]), "it is stored like any other outcome: the effect is closed"

    run(main(), 110)


@pytest.mark.case(209)
@pytest.mark.case(21)
def test_a_prompt_that_crashes_its_agent_becomes_a_dead_letter_and_the_mail_behind_it_is_served(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            runs = tmp_path / "runs"
            await mesh.client.start_agent("frail", kind="Puppet", options={"runs": str(runs)})
            poison = asyncio.create_task(mesh.client.ask("frail", CRASH))
            await mesh.saw("prompt_start", "frail")
            bystander = asyncio.create_task(mesh.client.ask("frail", "bystander"))
            with pytest.raises(AgentFailed, match="broken"):
                await poison
            assert (await bystander).text == "bystander"
            assert runs.read_text().splitlines() == [CRASH, CRASH, CRASH, "bystander"]
            assert (await mesh.client.status("frail")).failed is None
            await mesh.client.notify("frail", {"do": [["raise", {"message": "in an event"}]]})
            assert (await mesh.client.ask("frail", "still there?")).text == "still there?"

    run(main(), 110)


@pytest.mark.case(210)
def test_dead_letters_are_listed_read_sent_again_and_purged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "frail")
            assert await mesh.client.dead_letters("frail") == []
            ref = await mesh.client.tell("frail", CRASH)
            nc = await nats.connect(server.url)
            await nc.jetstream().publish(mesh.subjects.inbox("frail"), b"\xff\xfe")
            await nc.jetstream().publish(mesh.subjects.notify("frail"), b"\xff")
            await nc.close()

            async def three() -> bool:
                return len(await mesh.client.dead_letters("frail")) == 3

            await eventually(three, PATIENCE_S, "three dead letters")
            letters = {
                letter.reason.code + letter.lane: letter for letter in await mesh.client.dead_letters("frail", content=True)
            }
            poison, bad, event = letters["failedinbox"], letters["bad_requestinbox"], letters["bad_requestnotify"]
            assert (poison.ref, poison.text) == (ref, CRASH)
            assert "3 times" in poison.reason.message
            assert (bad.text, bad.base64) == (None, "//4=")
            assert event.lane == "notify"
            assert [letter.text for letter in await mesh.client.dead_letters("frail")] == [None] * 3, "content only on demand"

            again = await mesh.client.retry_dead_letter("frail", poison.seq)
            assert again != ref

            async def back() -> bool:
                return any(letter.ref == again for letter in await mesh.client.dead_letters("frail"))

            await eventually(back, PATIENCE_S, "the letter that failed again")
            with pytest.raises(NotFound):
                await mesh.client.retry_dead_letter("frail", poison.seq)
            assert await mesh.client.purge_dead_letters("frail", bad.seq) == 1
            with pytest.raises(NotFound):
                await mesh.client.purge_dead_letters("frail", bad.seq)
            assert await mesh.client.purge_dead_letters("frail") == 2
            assert await mesh.client.purge_dead_letters("frail") == 0

    run(main(), 110)


@pytest.mark.case(229)
def test_an_agent_that_crashes_too_often_is_failed_and_resume_revives_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("frail", kind="Puppet")
            waiting = [await mesh.client.tell("frail", CRASH) for _ in range(2)]
            behind = await mesh.client.tell("frail", "behind them")

            async def failed() -> bool:
                (entry,) = await mesh.client.list_agents()
                return entry.spec.status == "failed"

            await eventually(failed, PATIENCE_S, "six crashes")
            shown = (await mesh.client.status("frail")).failed
            assert shown is not None
            assert "broken" in shown.message
            with pytest.raises(AgentFailed, match="mesh resume frail"):
                await mesh.client.ask("frail", "anybody?")
            (entry,) = await mesh.client.list_agents()
            assert entry.spec.status == "failed"
            assert entry.spec.reason is not None
            assert "broken" in entry.spec.reason.message
            assert await mesh.client.resume("frail") is True

            async def served() -> bool:
                return (await mesh.client.poll("frail", behind)).done

            await eventually(served, PATIENCE_S, "the mail behind the poison")
            outcomes = [(await mesh.client.poll("frail", ref)).outcome for ref in (*waiting, behind)]
            codes = [outcome.error.code if outcome is not None and outcome.error else "ok" for outcome in outcomes]
            assert codes == ["failed", "failed", "ok"]
            (entry,) = await mesh.client.list_agents()
            assert entry.spec.status == "running"
            assert entry.spec.reason is None

    run(main(), 110)


def test_a_failed_agents_consumed_mail_is_purged_and_resume_finds_the_rest(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, mailbox_limit=4, rest_s=0.1) as mesh:
            await mesh.client.start_agent("frail", kind="Puppet")
            for number in range(2):
                await mesh.client.tell("frail", CRASH, idempotency_key=f"frail-{number}")
            behind = await mesh.client.tell("frail", "behind them", idempotency_key="frail-behind")

            async def failed() -> bool:
                (entry,) = await mesh.client.list_agents()
                return entry.spec.status == "failed"

            await eventually(failed, PATIENCE_S, "six crashes")

            async def purged() -> bool:
                found = await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox("frail"))
                return [str(message.seq) for message in found] == [behind]

            await eventually(purged, PATIENCE_S, "the purge of what was consumed")
            assert (await mesh.client.status("frail")).failed is not None
            assert await mesh.client.resume("frail") is True

            async def served() -> bool:
                return (await mesh.client.poll("frail", behind)).done

            await eventually(served, PATIENCE_S, "the mail behind the poison")
            outcome = (await mesh.client.poll("frail", behind)).outcome
            assert outcome is not None
            assert outcome.ok

    run(main(), 110)
