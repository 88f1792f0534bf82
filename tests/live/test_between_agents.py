"""Agents that talk to agents: what a callback asks for happens once, if its record commits."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from typing import Any

import pytest

from agentmesh.errors import BackendError, Expired, NotFound, Stopped
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from support import Server, eventually, run


def do(*calls: Any) -> str:
    """A prompt that has a Puppet do these."""
    return json.dumps(calls)


async def state_of(mesh: LocalMesh, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = (await mesh.client.status(agent, content=True, timeout=PATIENCE_S)).agent_state
    return found


async def events_of(mesh: LocalMesh, agent: str, count: int) -> list[Any]:
    """The events that an agent has handled, once there are `count`."""
    found: list[Any] = []

    async def enough() -> bool:
        found[:] = (await state_of(mesh, agent))["events"]
        return len(found) >= count

    await eventually(enough, PATIENCE_S, f"{count} events of {agent}")
    return found


async def start(mesh: LocalMesh, *names: str, kind: str = "Puppet") -> None:
    for name in names:
        await mesh.client.start_agent(name, kind=kind, timeout=PATIENCE_S)


@pytest.mark.case(216)
@pytest.mark.case(219)
def test_a_tagged_tell_brings_its_answer_back_once_with_the_senders_name(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2") as mesh:
            await start(mesh, "boss", "worker")
            tell = ["tell", {"target": "worker", "prompt": "count the files", "tag": "files"}]
            failing = ["tell", {"target": "worker", "prompt": "fail:quota", "tag": "fails"}]
            untagged = ["tell", {"target": "worker", "prompt": "say nothing"}]
            await mesh.client.ask("boss", do(tell, failing, untagged, ["notify", {"target": "worker", "event": {"n": 1}}]))
            ok = {"answer": "files", "agent": "worker", "ok": True, "text": "count the files", "code": None}
            not_ok = {"answer": "fails", "agent": "worker", "ok": False, "text": None, "code": "backend_error"}
            assert await events_of(mesh, "boss", 2) == [ok, not_ok]
            assert (await state_of(mesh, "boss"))["senders"] == [None, "worker", "worker"]

            async def all_done() -> bool:
                worker = await state_of(mesh, "worker")
                return bool(len(worker["prompts"]) == 2 and worker["events"])

            await eventually(all_done, PATIENCE_S, "the worker's turns")
            worker = await state_of(mesh, "worker")
            assert worker["prompts"] == ["count the files", "say nothing"]
            assert worker["events"] == [{"n": 1}]
            assert set(worker["senders"]) == {"boss"}
            assert len((await state_of(mesh, "boss"))["events"]) == 2, "an answer only where there is a tag"

    run(main(), 110)


@pytest.mark.case(216)
@pytest.mark.case(209)
def test_what_a_callback_asks_for_happens_only_if_its_record_commits(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss", "worker")
            asks = (
                ["notify", {"target": "worker", "event": "never"}],
                ["start_agent", {"name": "child", "kind": "Puppet"}],
                ["notify_after", {"seconds": 0, "event": "never"}],
            )
            await mesh.client.tell("boss", do(*asks, ["raise", {"message": "no"}]))
            await mesh.saw("dead_lettered", "boss")
            await mesh.client.notify("boss", {"do": [*asks, ["raise", {"message": "no"}]]})
            await mesh.client.ask("boss", do(["notify", {"target": "worker", "event": "ever"}]))
            assert await events_of(mesh, "worker", 1) == ["ever"]
            assert (await state_of(mesh, "boss"))["events"] == []
            assert await mesh.client.whereis("child") is None

    run(main(), 110)


@pytest.mark.case(200)
@pytest.mark.case(216)
def test_a_coordinator_gathers_fifty_answers_and_its_caller_gets_one(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2") as mesh:
            await start(mesh, "lead", kind="Collector")
            names = [f"w.{number:02}" for number in range(50)]
            answer = await mesh.client.ask("lead", " ".join(names), timeout=PATIENCE_S)
            assert answer.text == " ".join(names)
            assert answer.turn == 1
            assert [outcome.ok for outcome in await mesh.results("lead", 1)] == [True]
            spread = [agent.node for agent in await mesh.client.list_agents() if agent.name.startswith("w.")]
            assert set(spread) == {"n1", "n2"}
            assert len(spread) == 50

    run(main(), 110)


@pytest.mark.case(217)
def test_what_cannot_be_done_comes_back_and_holds_up_nothing_else(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss", "worker", "taken")
            await mesh.client.ask(
                "boss",
                do(
                    ["tell", {"target": "nobody", "prompt": "hello", "tag": "t"}],
                    ["notify", {"target": "nobody", "event": 1}],
                    ["start_agent", {"name": "taken", "kind": "Puppet"}],
                    ["stop_agent", {"name": "nobody.else"}],
                    ["notify", {"target": "worker", "event": "arrives"}],
                ),
            )
            found = await events_of(mesh, "boss", 4)
            assert sorted(found, key=json.dumps) == sorted(
                [
                    {"undelivered": {"kind": "tell", "target": "nobody", "tag": "t"}, "code": "not_found"},
                    {"undelivered": {"kind": "notify", "target": "nobody"}, "code": "not_found"},
                    {"undelivered": {"kind": "start_agent", "target": "taken"}, "code": "already_started"},
                    {"undelivered": {"kind": "stop_agent", "target": "nobody.else"}, "code": "not_found"},
                ],
                key=json.dumps,
            )
            assert await events_of(mesh, "worker", 1) == ["arrives"]
            assert (await mesh.client.ask("boss", "still there?")).text == "still there?"

    run(main(), 110)


@pytest.mark.case(217)
def test_a_failed_start_fails_the_later_effects_of_its_record_on_that_name(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss", "taken")
            await mesh.client.ask(
                "boss",
                do(
                    ["start_agent", {"name": "taken", "kind": "Puppet"}],
                    ["tell", {"target": "taken", "prompt": "for my child only", "tag": "t"}],
                ),
            )
            codes = [event["code"] for event in await events_of(mesh, "boss", 2)]
            assert codes == ["already_started", "not_found"]
            await mesh.client.ask("boss", do(["start_agent", {"name": "taken", "kind": "Puppet", "if_exists": "use"}]))
            await mesh.client.ask("boss", do(["tell", {"target": "taken", "prompt": "for anyone", "tag": "u"}]))
            assert (await events_of(mesh, "boss", 3))[2]["text"] == "for anyone"
            assert (await state_of(mesh, "taken"))["prompts"] == ["for anyone"]

    run(main(), 110)


@pytest.mark.case(200)
def test_a_deferred_request_is_answered_later_and_once(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "desk")
            first = asyncio.create_task(mesh.client.ask("desk", do(["then", {"decision": "defer"}])))
            await mesh.saw("prompt_stop", "desk")
            second = asyncio.create_task(mesh.client.ask("desk", do(["then", {"decision": "defer"}])))
            await mesh.saw("prompt_stop", "desk", 2)
            assert (await mesh.client.ask("desk", "not deferred")).text == "not deferred"
            refs = (await state_of(mesh, "desk"))["refs"]
            assert (await mesh.client.poll("desk", refs[0])).status == "pending"
            late = {"do": [["reply", {"ref": refs[0], "text": "late answer"}], ["reply", {"ref": refs[0], "text": "later"}]]}
            await mesh.client.notify("desk", late)
            await mesh.client.notify("desk", {"do": [["reply", {"ref": refs[0], "text": "even later"}]]})
            await mesh.client.notify("desk", {"do": [["reply", {"ref": refs[1], "error": "no idea"}]]})
            assert (await first).text == "late answer"
            with pytest.raises(BackendError, match="no idea"):
                await second
            assert [outcome.text for outcome in await mesh.results("desk", 3)] == ["not deferred", "late answer", None]
            await mesh.client.notify("desk", {"do": [["reply", {"ref": "999", "text": "to nobody"}]]})
            assert (await mesh.client.ask("desk", "fine")).text == "fine"

    run(main(), 110)


@pytest.mark.case(200)
def test_a_deferred_request_ends_with_its_deadline_or_with_the_agent(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "desk")
            defer = do(["then", {"decision": "defer"}])
            soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
            with pytest.raises(Expired):
                await mesh.client.ask("desk", defer, deadline=soon, timeout=PATIENCE_S)
            open_one = asyncio.create_task(mesh.client.ask("desk", defer))
            await mesh.saw("prompt_stop", "desk", 2)
            await mesh.client.stop("desk")
            with pytest.raises(Stopped):
                await open_one

    run(main(), 110)


@pytest.mark.case(200)
def test_an_exclusive_deferral_holds_back_prompts_but_not_events(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "desk")
            first = asyncio.create_task(mesh.client.ask("desk", do(["then", {"decision": "exclusive"}])))
            await mesh.saw("prompt_stop", "desk")
            second = asyncio.create_task(mesh.client.ask("desk", "my turn"))
            await mesh.saw("mailbox_queued", "desk", depth=1)
            await mesh.client.notify("desk", "an event")
            assert (await events_of(mesh, "desk", 1)) == ["an event"]
            await mesh.told()
            assert len(mesh.seen("prompt_start", "desk")) == 1
            ref = (await state_of(mesh, "desk"))["refs"][0]
            await mesh.client.notify("desk", {"do": [["reply", {"ref": ref, "text": "done"}]]})
            assert (await first).text == "done"
            assert (await second).text == "my turn"

    run(main(), 110)


def test_agents_start_and_stop_agents_and_linked_ones_end_with_their_parent(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2") as mesh:
            await start(mesh, "boss")
            await mesh.client.ask(
                "boss",
                do(
                    ["start_agent", {"name": "child.a", "kind": "Puppet", "link": True, "options": {"of": "boss"}}],
                    ["start_agent", {"name": "child.b", "kind": "Puppet"}],
                    ["start_agent", {"name": "child.c", "kind": "Puppet", "link": True}],
                    ["tell", {"target": "child.a", "prompt": "hello", "tag": "a"}],
                    ["tell", {"target": "child.b", "prompt": "hello", "tag": "b"}],
                ),
            )
            assert {event["answer"] for event in await events_of(mesh, "boss", 2)} == {"a", "b"}
            assert (await state_of(mesh, "child.a"))["options"] == {"of": "boss"}
            await mesh.client.ask("boss", do(["stop_agent", {"name": "child.b"}]))
            await mesh.saw("stopped", "child.b")
            await mesh.client.ask("boss", do(["start_agent", {"name": "child.b", "kind": "Recorder"}]))
            await mesh.client.ask("boss", do(["tell", {"target": "child.b", "prompt": "again", "tag": "b2"}]))
            assert (await events_of(mesh, "boss", 3))[2]["text"] == "again"
            await mesh.client.stop("boss")
            await mesh.saw("stopped", "child.a")
            await mesh.saw("stopped", "child.c")

            async def gone() -> bool:
                return [agent.name for agent in await mesh.client.list_agents()] == ["child.b"]

            await eventually(gone, PATIENCE_S, "the end of the linked children")
            with pytest.raises(NotFound):
                await mesh.client.ask("child.a", "anybody?")

    run(main(), 110)


@pytest.mark.case(206)
def test_mail_between_agents_keeps_its_order_per_lane(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2") as mesh:
            await start(mesh, "a", "b", "sink", kind="Puppet")
            for turn in range(20):
                for sender in ("a", "b"):
                    calls = [["notify", {"target": "sink", "event": [sender, turn, n]}] for n in range(5)]
                    await mesh.client.tell(sender, do(*calls))
            found = await events_of(mesh, "sink", 200)
            assert len(found) == 200
            for sender in ("a", "b"):
                assert [event[1:] for event in found if event[0] == sender] == [[t, n] for t in range(20) for n in range(5)]

    run(main(), 110)


def test_an_agent_may_write_to_itself(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "selfish")
            own = {"target": "selfish", "prompt": do(["notify", {"target": "selfish", "event": "from me"}]), "tag": "me"}
            await mesh.client.ask("selfish", do(["tell", own]))
            found = await events_of(mesh, "selfish", 2)
            assert {event if isinstance(event, str) else event["answer"] for event in found} == {"from me", "me"}
            assert (await state_of(mesh, "selfish"))["senders"][-1] == "selfish"

    run(main(), 110)
