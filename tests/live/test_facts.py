"""Lifecycle facts on the wire and in process, states of every type, results that are no longer kept: end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh import Agent, Idle, Init, Response
from agentmesh.edge.manage import stream_state
from agentmesh.errors import BackendError, BadState, NotFound, TurnTimeout
from agentmesh.subjects import Subjects
from agentmesh_node.telemetry.events import CONTENT, FIELDS, Fact
from live import obedient
from live.mesh import PATIENCE_S, LocalMesh, kinds, local_mesh, process_mesh
from live.test_between_agents import start, state_of
from support import Server, eventually, run

STANDARD = {"v", "agent", "kind", "time", "node", "turn"}
GENAGENT = ["prompt_start", "prompt_stop", "prompt_error", "event_received", "halted"]


async def live_a_life(mesh: LocalMesh) -> None:
    """One turn that succeeds, one that fails, one that is told to another, an event, a halt."""
    await start(mesh, "coder", kind="Obedient")
    await mesh.client.ask("coder", "secret words")
    with pytest.raises(BackendError):
        await mesh.client.ask("coder", "fail:quota")
    await mesh.client.notify("coder", "secret handle_event=halt")
    await mesh.saw("halted", "coder")


@pytest.mark.case(103)
@pytest.mark.case(104)
@pytest.mark.case(105)
@pytest.mark.case(106)
@pytest.mark.case(107)
@pytest.mark.parametrize("content", [False, True])
def test_facts_carry_content_only_where_it_is_asked_for(server: Server, subjects: Subjects, content: bool) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=kinds(obedient), content=content) as mesh:
            await live_a_life(mesh)
            await mesh.told()
            for event in mesh.seen_all("coder"):
                extra = event.keys() - STANDARD
                allowed = FIELDS[event["kind"]]
                assert extra == (allowed if content else allowed - CONTENT), event
            first = {kind: mesh.seen(kind, "coder")[0] for kind in GENAGENT}
            assert (first["prompt_start"]["rewritten"], first["prompt_error"]["reason"]) == (False, "backend_error")
            assert ("secret" in msgspec.json.encode(mesh.events).decode()) is content
            if content:
                assert first["prompt_start"]["original_prompt"] == first["prompt_start"]["prompt"] == "secret words"
                assert first["prompt_start"]["agent_state"]["trail"] == ["pre_run", "pre_turn words"]
                assert first["prompt_stop"]["agent_state"]["trail"] == ["pre_run", "pre_turn words"]
                assert "quota" in first["prompt_error"]["message"]
                assert first["halted"]["agent_state"]["trail"][-1] == "event secret"
                assert first["event_received"]["event"] == "secret handle_event=halt"
            changes = [(event["from"], event["to"]) for event in mesh.seen("state_changed", "coder")]
            assert changes == [(None, "idle"), *[("idle", "processing"), ("processing", "idle")] * 2]

    run(main(), 110)


@pytest.mark.case(103)
def test_handlers_in_the_process_hear_the_same_facts_and_may_ask_for_content(server: Server, subjects: Subjects) -> None:
    plain: list[Fact] = []
    full: list[Fact] = []

    def failing(fact: Fact) -> None:
        fact.fields.clear()
        raise RuntimeError("a bad handler")

    async def main() -> None:
        async with local_mesh(server, subjects, serves=kinds(obedient), handlers=(failing, plain.append)) as mesh:
            remove = mesh.nodes["n1"].services.events.handle(full.append, content=True)
            await live_a_life(mesh)
            await mesh.told()
            seen = mesh.seen_all("coder")
            heard = [fact for fact in plain if fact.agent == "coder"][: len(seen)]
            assert [fact.kind for fact in heard] == [event["kind"] for event in seen]
            assert [fact.turn for fact in heard] == [event["turn"] for event in seen]
            assert all(not fact.fields.keys() & CONTENT for fact in plain)
            (began, *_) = [fact for fact in full if fact.kind == "prompt_start"]
            assert (began.fields["prompt"], began.fields["agent_state"]["trail"][0]) == ("secret words", "pre_run")
            assert (began.node, began.turn) == ("n1", 1)
            remove()
            count = len(full)
            await mesh.client.resume("coder")
            await mesh.client.ask("coder", "more")
            assert len(full) == count

    run(main(), 110)


@pytest.mark.case(103)
@pytest.mark.parametrize(("options", "env"), [(("--content",), {}), ((), {"MESH_CONTENT": "1"}), ((), {})])
def test_a_node_process_is_told_whether_to_tell_content(
    server: Server, subjects: Subjects, tmp_path: Path, options: tuple[str, ...], env: dict[str, str]
) -> None:
    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, env=env) as mesh:
            await mesh.node("n1", *options)
            await mesh.client.start_agent("coder", kind="Recorder", timeout=PATIENCE_S)
            await mesh.client.ask("coder", "secret")
            assert ("prompt" in await mesh.saw("prompt_start", "coder")) is bool(options or env)

    run(main(), 110)


@pytest.mark.case(227)
def test_a_callback_that_holds_the_loop_is_a_fact_by_name(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=kinds(obedient)) as mesh:
            await start(mesh, "heavy", kind="Blocking")
            await mesh.client.ask("heavy", "go")
            fact = await mesh.saw("callback_blocked", "heavy")
            assert (fact["callback"], fact["turn"]) == ("handle_response", 1)
            assert fact["seconds"] > 0.1

    run(main(), 110)


# --- states -----------------------------------------------------------------------------------------------------------
@pytest.mark.case(21)
@pytest.mark.parametrize("kind", ["OfStruct", "OfDataclass", "OfTypedDict", "OfDict", "OfNothing"])
def test_a_state_that_cannot_be_encoded_fails_its_turn_alone(server: Server, subjects: Subjects, kind: str) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=kinds(obedient)) as mesh:
            await start(mesh, "coder", kind=kind)
            await mesh.client.ask("coder", "good")
            with pytest.raises(BadState, match=r"state(\.x|\['x'\])"):
                await mesh.client.ask("coder", "bad")
            assert await state_of(mesh, "coder") == {"x": "good"}
            await mesh.client.ask("coder", "better")
            assert await state_of(mesh, "coder") == {"x": "better"}
            assert [outcome.ok for outcome in await mesh.results("coder", 3)] == [True, False, True]

    run(main(), 110)


class First(msgspec.Struct):
    lines: list[str] = []
    gone: int = 1


class Grown(msgspec.Struct):
    lines: list[str] = []
    new: str = "default"


class Other(msgspec.Struct):
    lines: dict[str, int]


def keeper(state: type[Any], start: Callable[[], Any], **body: Any) -> dict[str, type[Agent[Any]]]:
    """The kind `Keeper` with that State: one class after another serves the same agents, as versions of a program do."""

    async def init_agent(self: Any, options: dict[str, Any]) -> Any:
        return Init(start())

    async def handle_response(self: Any, ref: str, response: Response, state: Any) -> Any:
        if isinstance(state.lines, list):
            state.lines.append(response.text)
        else:
            state.lines[response.text] = len(state.lines)
        return Idle(state)

    base: Any = Agent.__class_getitem__(state)  # type: ignore[attr-defined]
    callbacks = {"init_agent": init_agent, "handle_response": handle_response, "__orig_bases__": (base,)}
    return {"Keeper": type("Keeper", (Agent,), {**callbacks, **body})}


async def served(mesh: LocalMesh, node: str, serves: dict[str, type[Agent[Any]]]) -> None:
    """The agents' code changes: the node ends, another process comes with other classes."""
    for old in list(mesh.nodes):
        await mesh.nodes.pop(old).close()
    await mesh.node(node, serves=serves)


async def shown(mesh: LocalMesh, status: str) -> Any:
    found: list[Any] = []

    async def reached() -> bool:
        found[:] = await mesh.client.list_agents()
        return bool(found and found[0].spec.status == status and found[0].node in mesh.nodes)

    await eventually(reached, PATIENCE_S, f"status {status}")
    return found[0]


@pytest.mark.case(205)
def test_a_changed_state_class_reads_old_journals(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=keeper(First, First)) as mesh:
            await start(mesh, "coder", kind="Keeper")
            await mesh.client.ask("coder", "a")
            await served(mesh, "n2", keeper(Grown, Grown))
            await mesh.client.ask("coder", "b", timeout=PATIENCE_S)
            assert await state_of(mesh, "coder") == {"lines": ["a", "b"], "new": "default"}

    run(main(), 110)


@pytest.mark.case(205)
@pytest.mark.case(229)
def test_a_state_that_does_not_fit_is_shown_and_a_repaired_class_goes_on_by_itself(server: Server, subjects: Subjects) -> None:
    def migrate_state(self: Any, old: Any, version: int) -> Other:
        return Other(lines=dict.fromkeys(old["lines"], version))

    async def main() -> None:
        async with local_mesh(server, subjects, serves=keeper(First, First)) as mesh:
            await start(mesh, "coder", kind="Keeper")
            await mesh.client.ask("coder", "a")
            records = len(await mesh.records("coder"))
            await served(mesh, "n2", keeper(Other, lambda: Other({})))
            ref = await mesh.client.tell("coder", "waits")
            found = await shown(mesh, "failed")
            assert "migrate_state" in found.spec.reason.message
            assert "lines" in found.spec.reason.message
            status = await mesh.client.status("coder", content=True)
            assert status.failed is not None
            assert status.failed.code == "bad_state"
            assert status.agent_state == {"lines": ["a"], "gone": 1}
            kept = [record.kind for record in await mesh.records("coder")][records:]
            assert set(kept) <= {"activated", "rest"}, "nothing of the agent's is written"
            assert (await mesh.client.poll("coder", ref)).status == "pending"

            await served(mesh, "n3", keeper(Other, lambda: Other({}), state_version=2, migrate_state=migrate_state))
            await shown(mesh, "running")

            async def done() -> bool:
                return (await mesh.client.poll("coder", ref)).done

            await eventually(done, PATIENCE_S, "what waited")
            assert await state_of(mesh, "coder") == {"lines": {"a": 1, "waits": 1}}
            assert (await mesh.client.status("coder")).failed is None

    run(main(), 110)


def test_a_raised_version_calls_migrate_state_though_the_state_still_fits(server: Server, subjects: Subjects) -> None:
    async def migrate_state(self: Any, old: Any, version: int) -> First:
        return First(lines=[f"{line} of version {version}" for line in old["lines"]])

    async def main() -> None:
        async with local_mesh(server, subjects, serves=keeper(First, First)) as mesh:
            await start(mesh, "coder", kind="Keeper")
            await mesh.client.ask("coder", "a")
            second = keeper(First, First, state_version=2, migrate_state=migrate_state)
            await served(mesh, "n2", second)
            await mesh.client.ask("coder", "b", timeout=PATIENCE_S)
            await served(mesh, "n3", second)
            await mesh.client.ask("coder", "c", timeout=PATIENCE_S)
            assert (await state_of(mesh, "coder"))["lines"] == ["a of version 1", "b", "c"]

    run(main(), 110)


@pytest.mark.case(70)
def test_the_watchdog_of_a_start_goes_before_that_of_the_class(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=kinds(obedient)) as mesh:
            await mesh.client.start_agent("coder", kind="Hurried", watchdog_s=0.2)
            with pytest.raises(TurnTimeout, match=r"0\.2 s"):
                await mesh.client.ask("coder", "hang", timeout=PATIENCE_S)

    run(main(), 110)


# --- results ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(27)
@pytest.mark.parametrize("limit", [{"results_age_s": 2.0}, {"results_bytes": 20_000}])
def test_results_are_kept_by_age_and_by_size(server: Server, subjects: Subjects, limit: dict[str, Any]) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, **limit) as mesh:
            config = (await stream_state(mesh.transport, subjects.stream("result"))).config
            assert (config["max_msgs"], config["max_msgs_per_subject"]) == (-1, -1), "not by number"
            await start(mesh, "coder", kind="Recorder")
            first = (await mesh.client.ask("coder", "x" * 5000)).ref
            assert (await mesh.client.poll("coder", first)).done
            for number in range(5 if "results_bytes" in limit else 0):
                await mesh.client.ask("coder", f"{number}" * 5000)

            async def forgotten() -> bool:
                try:
                    return not (await mesh.client.poll("coder", first)).done
                except NotFound:
                    return True

            await eventually(forgotten, PATIENCE_S, "the oldest result's end")
            with pytest.raises(NotFound):
                await mesh.client.poll("coder", first)

    run(main(), 110)
