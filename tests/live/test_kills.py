"""Kill anything: nodes as processes that end by SIGKILL, or stop and go on, while agents work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.errors import Stopped, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, decode_outcome
from live.mesh import PATIENCE_S, LocalMesh, Observer, ProcessMesh, local_mesh, process_mesh
from live.test_between_agents import do
from support import Server, eventually, run

LONG_S = 110


async def state_of(mesh: ProcessMesh | LocalMesh, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = (await mesh.client.status(agent, content=True, timeout=PATIENCE_S)).agent_state
    return found


async def runs_on(mesh: ProcessMesh, agent: str, node: str) -> None:
    async def there() -> bool:
        return (await mesh.client.status(agent, timeout=PATIENCE_S)).node == node

    await eventually(there, PATIENCE_S, f"{agent} on {node}")


@pytest.mark.case(202)
@pytest.mark.case(201)
def test_killed_in_mid_turn_the_turn_runs_again_elsewhere_and_its_caller_gets_one_answer(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            runs, gate = tmp_path / "runs", tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Recorder", options={"runs": str(runs)}, timeout=PATIENCE_S)
            await mesh.client.ask("coder", "before")
            copies: list[Outcome] = []
            inbox = mesh.transport.new_inbox()
            await mesh.transport.subscribe(inbox, lambda message: copies.append(decode_outcome(message.data)))
            prompt = f"gate:{gate} the answer"
            asked = asyncio.create_task(mesh.client.ask("coder", prompt, timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "coder", 2)
            victim = await mesh.host_of("coder")
            behind = asyncio.create_task(mesh.client.ask("coder", "behind it", timeout=PATIENCE_S))
            await victim.kill()
            await mesh.saw("prompt_start", "coder", 3)
            gate.touch()
            answer = await asked
            assert (answer.text, answer.turn) == ("the answer", 2)
            assert answer.node in {"n1", "n2"} - {victim.id}
            assert (await behind).text == "behind it"
            assert runs.read_text().splitlines() == ["before", prompt, prompt, "behind it"]
            assert (await state_of(mesh, "coder"))["prompts"] == ["before", "the answer", "behind it"]
            assert [outcome.text for outcome in await mesh.results("coder", 3)] == ["before", "the answer", "behind it"]
            turns = await mesh.client.history("coder")
            assert [(turn.turn, turn.takeovers) for turn in turns] == [(1, 0), (2, 1), (3, 0)]

    run(main(), LONG_S)


EFFECTS = (
    ["tell", {"target": "worker", "prompt": "work", "tag": "w"}],
    ["notify", {"target": "worker", "event": "note"}],
    ["start_agent", {"name": "child", "kind": "Recorder"}],
    ["tell", {"target": "child", "prompt": "grow", "tag": "c"}],
    ["notify_after", {"seconds": 0.2, "event": "tick", "id": "t"}],
)
MOMENTS = [
    ("BEFORE", '.journal.:"kind":"turn"', 2),
    ("AFTER", '.journal.:"kind":"turn"', 1),
    ("BEFORE", "_INBOX.", 1),
    ("AFTER", "_INBOX.", 1),
    ("BEFORE", ".result.", 1),
    ("AFTER", ".result.", 1),
    ("BEFORE", ".peer-inbox.worker", 1),
    ("AFTER", ".peer-inbox.worker", 1),
    ("AFTER", ".peer-notify.worker", 1),
    ("BEFORE", ".agents.child", 1),
    ("AFTER", ".agents.child", 1),
    ("AFTER", ".peer-inbox.child", 1),
    ("BEFORE", ".timer.", 1),
    ("AFTER", ".timer.", 1),
]


@pytest.mark.case(203)
@pytest.mark.case(206)
@pytest.mark.case(216)
@pytest.mark.case(231)
@pytest.mark.parametrize("moment", MOMENTS, ids=[f"{when} {where}" for when, where, _ in MOMENTS])
def test_killed_between_the_commit_and_its_effects_each_happens_once(
    server: Server, subjects: Subjects, tmp_path: Path, moment: tuple[str, str, int]
) -> None:
    when, where, attempts = moment

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            runs = tmp_path / "runs"
            doomed = await mesh.node("n1", before=(str(Path(__file__).with_name("doomed.py")), when, where))
            await mesh.client.start_agent("boss", kind="Puppet", options={"runs": str(runs)}, timeout=PATIENCE_S)
            await mesh.node("n2")
            await mesh.client.start_agent("worker", kind="Recorder", timeout=PATIENCE_S)
            copies: list[Outcome] = []
            inbox = mesh.transport.new_inbox()
            await mesh.transport.subscribe(inbox, lambda message: copies.append(decode_outcome(message.data)))
            prompt = do(*EFFECTS)
            ref = await tell(mesh, "boss", prompt, inbox)
            await doomed.ended()
            await runs_on(mesh, "boss", "n2")
            await done_once(mesh, "boss", ref)
            assert runs.read_text().splitlines().count(prompt) == attempts
            assert {outcome.ref for outcome in copies} == {ref}
            assert len(set(map(repr, copies))) == 1, "copies are identical"

    run(main(), LONG_S)


async def tell(mesh: Observer, agent: str, prompt: str, reply_to: str) -> str:
    """Put a prompt into the inbox as any client would; its ref."""
    stored = await store(mesh.transport, mesh.subjects.inbox(agent), prompt.encode(), headers={"Mesh-Reply-To": reply_to})
    return str(stored.seq)


async def done_once(mesh: ProcessMesh, boss: str, ref: str) -> None:
    """Every effect of `EFFECTS` has happened, and a later exchange over the same lanes shows that none comes again."""

    async def all_back() -> bool:
        return len((await state_of(mesh, boss))["events"]) >= 3

    await eventually(all_back, PATIENCE_S, "two answers and a tick")
    await mesh.client.ask(
        boss, do(["notify", {"target": "worker", "event": "last"}], ["notify", {"target": "child", "event": "last"}])
    )

    async def last_arrived() -> bool:
        states = [await state_of(mesh, name) for name in ("worker", "child")]
        return all(state["events"][-1:] == ["last"] for state in states)

    await eventually(last_arrived, PATIENCE_S, "what was sent last")
    events = (await state_of(mesh, boss))["events"]
    assert sorted(event.get("answer") or event["timer"] for event in events) == ["c", "t", "w"]
    worker, child = await state_of(mesh, "worker"), await state_of(mesh, "child")
    assert (worker["prompts"], worker["events"]) == (["work"], ["note", "last"])
    assert (child["prompts"], child["events"]) == (["grow"], ["last"])
    assert (await mesh.results(boss, 1))[0].ref == ref
    assert sum(record.kind == "turn" for record in await mesh.records(boss)) == 2


@pytest.mark.case(204)
def test_a_frozen_owner_that_wakes_after_the_takeover_commits_nothing(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Puppet", timeout=PATIENCE_S)
            await mesh.client.start_agent("peer", kind="Puppet", timeout=PATIENCE_S)
            frozen = await mesh.host_of("coder")
            prompt = do(["notify", {"target": "peer", "event": "once"}])
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} {prompt}", timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "coder")
            frozen.freeze()
            await mesh.saw("prompt_start", "coder", 2)  # its lease has lapsed
            gate.touch()
            answer = await asked
            assert answer.node != frozen.id
            before = [record.id for record in await mesh.records("coder")]
            frozen.thaw()
            await eventually(lambda: stands_empty(mesh, frozen.id), PATIENCE_S, "its insight that it owns nothing")
            assert [record.id for record in await mesh.records("coder")][: len(before)] == before
            turns = [record for record in await mesh.records("coder") if record.turn is not None]
            assert [record.node for record in turns] == [answer.node]
            assert [outcome.node for outcome in await mesh.results("coder", 1)] == [answer.node]
            await mesh.client.ask("coder", do(["notify", {"target": "peer", "event": "last"}]))

            async def last_arrived() -> bool:
                return bool((await state_of(mesh, "peer"))["events"][-1:] == ["last"])

            await eventually(last_arrived, PATIENCE_S, "what was sent last")
            assert (await state_of(mesh, "peer"))["events"] == ["once", "last"]
            third = await mesh.client.start_agent("third", kind="Recorder", timeout=PATIENCE_S)
            assert third.node == frozen.id, "it can be given agents again"

    async def stands_empty(mesh: ProcessMesh, node: str) -> bool:
        reply = await mesh.transport.request(mesh.subjects.node(node), b'{"op":"ping"}', timeout=60)
        leased = any(entry.id == node and entry.lease.agents == 0 for entry in await mesh.client.nodes())
        return leased and json.loads(reply.data)["agents"] == 0

    run(main(), LONG_S)


@pytest.mark.case(204)
@pytest.mark.case(225)
def test_of_two_processes_with_one_node_id_the_newer_acts_and_the_older_ends(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Recorder", timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} the answer", timeout=PATIENCE_S))
            first = await mesh.saw("prompt_start", "coder")
            older = mesh.hosts["n1"]
            older.freeze()
            newer = await mesh.node("n1", log="n1-again")
            await mesh.saw("prompt_start", "coder", 2)
            gate.touch()
            assert (await asked).text == "the answer"
            older.thaw()
            assert await older.ended() == 0, "it yields"
            turns = [record for record in await mesh.records("coder") if record.turn is not None]
            assert len(turns) == 1
            assert first["node"] == "n1"
            assert newer.running
            assert (await mesh.client.ask("coder", "still served")).text == "still served"

    run(main(), LONG_S)


@pytest.mark.case(205)
@pytest.mark.case(44)
def test_state_halt_chain_and_session_survive_a_kill(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("chain", kind="Puppet", options={"keep": "this"}, timeout=PATIENCE_S)
            await mesh.client.start_agent("serial", kind="Sequel", timeout=PATIENCE_S)
            assert (await mesh.client.ask("serial", "one")).text == "first answer"
            first = f"gate:{gate} " + do(["then", {"decision": "prompt", "text": "the chained one"}])
            asked = asyncio.create_task(mesh.client.ask("chain", first, timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "chain")
            await mesh.client.notify("chain", {"do": [["then", {"decision": "halt"}]]})
            behind = await mesh.client.tell("chain", "behind")
            await mesh.saw("event_received", "chain")
            gate.touch()
            await asked
            await mesh.saw("halted", "chain")
            for name in ("chain", "serial"):
                where = await mesh.client.whereis(name)
                if where in mesh.hosts and mesh.hosts[where].running:
                    await mesh.hosts[where].kill()
                    await mesh.node(where)  # so that there is always a second one
            status = await mesh.client.status("chain", content=True, timeout=PATIENCE_S)
            assert status.halted
            assert status.queued == 2
            assert status.agent_state["options"] == {"keep": "this"}
            assert await mesh.client.resume("chain", timeout=PATIENCE_S)

            async def served() -> bool:
                return (await mesh.client.poll("chain", behind, timeout=PATIENCE_S)).done

            await eventually(served, PATIENCE_S, "the mail behind")
            assert (await state_of(mesh, "chain"))["prompts"][1:] == ["the chained one", "behind"]
            answer = await mesh.client.ask("serial", "two", timeout=PATIENCE_S)
            assert (answer.text, answer.session_id) == ("second answer", "s-1")
            assert (await state_of(mesh, "serial"))["prompts"] == ["first answer", "second answer"]

    run(main(), LONG_S)


@pytest.mark.case(200)
@pytest.mark.case(216)
def test_a_coordinator_gathers_its_answers_although_every_node_dies_once(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gates = [tmp_path / f"gate{number}" for number in range(3)]
            await mesh.client.start_agent("boss", kind="Gatherer", options={"gates": [str(g) for g in gates]}, timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("boss", "go", timeout=PATIENCE_S))
            for number, gate in enumerate(gates):
                await mesh.saw("prompt_start", f"boss.w{number}")
                if number < 2:
                    victim = ("n1", "n2")[number]
                    await mesh.hosts[victim].kill()
                    await mesh.node(victim)
                gate.touch()
            answer = await asked
            assert answer.text == "w0 w1 w2"
            assert len(await mesh.results("boss", 1)) == 1
            for number in range(3):
                assert len((await state_of(mesh, f"boss.w{number}"))["prompts"]) == 1

    run(main(), LONG_S)


@pytest.mark.case(212)
@pytest.mark.case(211)
def test_mail_sent_while_no_node_is_up_is_served_when_one_comes(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.nodes["n1"].close()
            refs = [await mesh.client.tell("coder", f"p{number}") for number in range(5)]
            await mesh.client.notify("coder", "an event")
            assert (await mesh.client.poll("coder", refs[0])).status == "pending"
            asked = asyncio.create_task(mesh.client.ask("coder", "and an ask", timeout=PATIENCE_S))
            await mesh.node("n2")
            assert (await asked).text == "and an ask"
            later = await mesh.connect()
            polled = [(await later.poll("coder", ref)).outcome for ref in refs]
            assert [outcome.text for outcome in polled if outcome] == [f"p{number}" for number in range(5)]
            assert (await state_of(mesh, "coder"))["events"] == ["an event"]

    run(main(), LONG_S)


@pytest.mark.case(243)
def test_a_takeover_shows_in_a_turns_live_events(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            await mesh.client.start_agent("coder", kind="Halting", timeout=PATIENCE_S)
            seen: list[dict[str, Any]] = []
            inbox = mesh.transport.new_inbox()
            await mesh.transport.subscribe(inbox, lambda message: seen.append(json.loads(message.data)))
            await store(mesh.transport, mesh.subjects.inbox("coder"), str(gate).encode(), headers={"Mesh-Stream-To": inbox})
            await eventually(lambda: len(seen) == 2, PATIENCE_S, "the first half of the stream")
            gate.touch()
            await (await mesh.host_of("coder")).kill()
            await eventually(lambda: seen[-1]["type"] == "outcome", PATIENCE_S, "the outcome")
            first, last = seen[0]["owner"], seen[-1]["owner"]
            assert last > first
            types = ["start", "text", "start", "text", "text", "outcome"]
            owners = [first, first, last, last, last, last]
            assert [(event["type"], event["owner"]) for event in seen] == list(zip(types, owners, strict=True))

    run(main(), LONG_S)


@pytest.mark.case(101)
@pytest.mark.case(97)
def test_a_stop_that_finds_no_node_is_finished_by_the_next(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            for name in ("coder", "other"):
                await mesh.client.start_agent(name, kind="Recorder")
            await mesh.nodes["n1"].close()
            asked = asyncio.create_task(mesh.client.ask("coder", "too late", timeout=PATIENCE_S))

            async def stored() -> bool:
                found = await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox("coder"))
                return bool(found)

            await eventually(stored, PATIENCE_S, "the prompt in the mailbox")
            with pytest.raises(Unavailable, match="marked `stopping`"):
                await mesh.client.stop("coder", timeout=10)
            await mesh.client.stop("other", wait=False)
            # A node that has none of the agents' code can finish a stop.
            await mesh.node("n2", serves={})
            with pytest.raises(Stopped):
                await asked

            async def gone() -> bool:
                # The outcome comes first; the tombstone and the registry follow.
                return "coder" not in [agent.name for agent in await mesh.client.list_agents()]

            await eventually(gone, PATIENCE_S, "the end of the stopped agent")
            await mesh.node("n3")
            info = await mesh.client.start_agent("other", kind="Recorder", timeout=PATIENCE_S)
            assert info.node == "n3"

    run(main(), LONG_S)


@pytest.mark.case(214)
@pytest.mark.case(201)
def test_everything_is_killed_server_included_and_comes_back_as_it_was(
    fresh_server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_mesh(fresh_server, subjects, tmp_path, "n1", "n2") as mesh:
            gate, shut = tmp_path / "gate", tmp_path / "shut"
            await mesh.client.start_agent("coder", kind="Puppet", timeout=PATIENCE_S)
            await mesh.client.start_agent("sleeper", kind="Recorder", timeout=PATIENCE_S)
            await mesh.client.start_agent("halted", kind="Puppet", timeout=PATIENCE_S)
            await mesh.client.ask("sleeper", "remember me")
            await mesh.client.ask("halted", do(["then", {"decision": "halt"}]))
            await mesh.client.ask("coder", do(["notify_after", {"seconds": 3600, "event": "later", "id": "t"}]))
            chain = do(["then", {"decision": "prompt", "text": f"gate:{shut} the chained one"}])
            await mesh.client.ask("coder", chain)  # the chained turn is in its middle when everything dies
            await mesh.saw("prompt_start", "coder", 3)
            queued = [await mesh.client.tell("coder", f"p{number}") for number in range(3)]
            waiting = await mesh.client.tell("halted", "wait for me")
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} asked before", timeout=PATIENCE_S))
            await mesh.saw("mailbox_queued", "coder", depth=4)
            for host in mesh.hosts.values():
                await host.kill()
            fresh_server.kill()
            fresh_server.start()
            shut.touch()
            gate.touch()
            await asyncio.gather(mesh.start("supervisor", "s2"), mesh.node("n3"))
            assert (await asked).text == "asked before", "its caller has waited through all of it"
            state = await state_of(mesh, "coder")
            assert state["prompts"][2:] == ["the chained one", "p0", "p1", "p2", "asked before"]
            outcomes = [(await mesh.client.poll("coder", ref)).outcome for ref in queued]
            assert [outcome.text for outcome in outcomes if outcome] == ["p0", "p1", "p2"]
            assert (await state_of(mesh, "sleeper"))["prompts"] == ["remember me"]
            assert (await mesh.client.poll("halted", waiting)).status == "pending"
            assert await mesh.client.resume("halted")
            timers = await read_all(mesh.transport, mesh.subjects.stream("timer"), mesh.subjects.timer("coder", "t"))
            assert len(timers) == 1
            assert await mesh.client.cancel_timer("coder", "t")

    run(main(), LONG_S)


@pytest.mark.case(222)
def test_a_node_that_is_told_to_end_hands_its_agents_over_first(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            gate = tmp_path / "gate"
            names = [f"a{number}" for number in range(6)]
            for name in names:
                await mesh.client.start_agent(name, kind="Recorder", timeout=PATIENCE_S)
            leaving = await mesh.host_of("a0")
            asked = asyncio.create_task(mesh.client.ask("a0", f"gate:{gate} running", timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "a0")
            ended = asyncio.create_task(leaving.terminate())
            await eventually(lambda: draining(mesh, leaving.id), PATIENCE_S, "the drain")
            gate.touch()
            answer = await asked
            assert answer.node == leaving.id, "a running turn may end"
            assert await ended == 0
            assert {await mesh.client.whereis(name) for name in names} == {"n1", "n2"} - {leaving.id}
            assert sorted(await texts(mesh, names)) == names

    async def draining(mesh: ProcessMesh, node: str) -> bool:
        return any(entry.id == node and entry.lease.draining for entry in await mesh.client.nodes())

    async def texts(mesh: ProcessMesh, names: Sequence[str]) -> list[str]:
        return [(await mesh.client.ask(name, name, timeout=PATIENCE_S)).text for name in names]

    run(main(), LONG_S)


@pytest.mark.case(224)
def test_agents_work_while_no_supervisor_does(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            await mesh.client.start_agent("coder", kind="Recorder", timeout=PATIENCE_S)
            await mesh.hosts["s1"].kill()
            assert (await mesh.client.ask("coder", "without one")).text == "without one"
            await (await mesh.host_of("coder")).kill()
            asked = asyncio.create_task(mesh.client.ask("coder", "later then", timeout=PATIENCE_S))
            await mesh.start("supervisor", "s2")
            assert (await asked).text == "later then"

    run(main(), LONG_S)


def test_the_event_that_began_a_turn_is_json_that_anyone_can_read(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.client.ask("coder", "hello")
            began = await mesh.saw("prompt_start", "coder")
            assert json.loads(json.dumps(began)) | {"v": 1, "agent": "coder", "node": "n1", "rewritten": False} == began
            assert "prompt" not in began, "content only on demand"

    run(main(), LONG_S)
