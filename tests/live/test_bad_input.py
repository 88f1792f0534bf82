"""One test per bad input: each is one clear, typed error, and nothing is harmed by it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentmesh_client
from agentmesh.edge.manage import stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.registry import decode_spec
from agentmesh.errors import (
    AlreadyStarted,
    AskTimeout,
    BackendStartFailed,
    BadRequest,
    BadState,
    InitFailed,
    MeshError,
    NotFound,
    TooLarge,
    Unavailable,
)
from agentmesh.subjects import Subjects, spec_key
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_between_agents import do, events_of, start
from support import Server, eventually, run

BAD_NAMES = [
    "",
    ".",
    "a..b",
    "a b",
    "a.*",
    "a.>",
    "$SYS",
    "_mesh",
    "a._b",
    "ü",
    "x" * 65,
    ".".join("a" * 9),
    "a\n",
    "a" * 60 + ".b" * 40,
]


async def mail(mesh: LocalMesh) -> int:
    return (await stream_state(mesh.transport, mesh.subjects.stream("mail"))).messages


@pytest.mark.case(244)
@pytest.mark.case(3)
def test_bad_names_are_refused_before_anything_is_written(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            before = (await stream_state(mesh.transport, mesh.subjects.stream("registry"))).last_seq
            for name in BAD_NAMES:
                calls: list[Any] = [
                    mesh.client.start_agent(name, kind="Recorder"),
                    mesh.client.ask(name, "hello"),
                    mesh.client.tell(name, "hello"),
                    mesh.client.notify(name, 1),
                    mesh.client.status(name),
                    mesh.client.poll(name, "1"),
                    mesh.client.stop(name),
                    mesh.client.interrupt(name),
                    mesh.client.resume(name),
                    mesh.client.cancel(name, "1"),
                    mesh.client.whereis(name),
                    mesh.client.history(name),
                    mesh.client.dead_letters(name),
                ]
                for call in calls:
                    with pytest.raises(BadRequest):
                        await call
            for kind in ("", "no kind", None):
                with pytest.raises(BadRequest):
                    await mesh.client.start_agent("fine", kind=kind)  # type: ignore[arg-type]
            assert await mail(mesh) == 0
            agents = await mesh.registry.load("agents.")
            assert agents[0] == []
            assert before > 0

    run(main(), 110)


@pytest.mark.case(244)
def test_an_agent_that_names_another_badly_is_told_in_its_callback(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss")
            for name in BAD_NAMES:
                for hand, more in (("tell", {"prompt": "x"}), ("notify", {"event": 1})):
                    await mesh.client.notify("boss", {"do": [[hand, {"target": name, **more}]]})
                await mesh.client.notify("boss", {"do": [["start_agent", {"name": name, "kind": "Recorder"}]]})
            await mesh.client.notify("boss", "last")
            assert await events_of(mesh, "boss", 1) == ["last"], "the others raised, and left the agent as it was"
            assert [agent.name for agent in await mesh.client.list_agents()] == ["boss"]

    run(main(), 110)


@pytest.mark.case(19)
@pytest.mark.case(244)
@pytest.mark.parametrize("prompt", ["", " \n\t", None, 7, b"bytes", ["list"], "\ud800"])
def test_a_prompt_that_is_no_text_is_refused_by_the_client(server: Server, subjects: Subjects, prompt: Any) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            for call in (mesh.client.ask, mesh.client.tell):
                with pytest.raises(BadRequest):
                    await call("coder", prompt)
            assert await mail(mesh) == 0

    run(main(), 110)


@pytest.mark.case(220)
@pytest.mark.case(244)
def test_what_is_too_large_is_refused_and_the_connection_lives(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder", "boss")
            huge = "x" * (mesh.transport.max_payload + 1)
            for size in (mesh.transport.max_payload - 1000, mesh.transport.max_payload + 1):
                with pytest.raises(TooLarge):
                    await mesh.client.ask("coder", huge[:size])
                with pytest.raises(TooLarge):
                    await mesh.client.notify("coder", huge[:size])
            with pytest.raises((TooLarge, BadRequest)):
                await mesh.client.start_agent("large", kind="Recorder", options={"text": huge})
            assert (await mesh.client.ask("coder", "small")).text == "small"
            largest = "y" * (mesh.transport.max_payload - (64 << 10) - 500)
            assert (await mesh.client.ask("coder", largest)).text == largest, "an answer as large as the largest prompt"
            # From one agent to another, the answer included.
            await mesh.client.notify("boss", {"do": [["tell", {"target": "coder", "prompt": largest[:400_000], "tag": "big"}]]})
            _, answer = await events_of(mesh, "boss", 2)
            assert answer["ok"], answer["code"]
            assert len(mesh.nodes) == 1
            assert mesh.nodes["n1"].services.transport.connected

    run(main(), 110)


@pytest.mark.case(220)
def test_an_answer_larger_than_a_message_is_a_typed_error(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "wordy", kind="Wordy")
            await start(mesh, "boss")
            with pytest.raises(TooLarge):
                await mesh.client.ask("wordy", "3000000", timeout=PATIENCE_S)
            assert (await mesh.client.ask("wordy", "3")).text == "www"
            await mesh.client.ask("boss", do(["tell", {"target": "wordy", "prompt": "3000000", "tag": "big"}]))
            found = await events_of(mesh, "boss", 1)
            assert found[0]["code"] == "too_large"
            status = await mesh.client.status("wordy", content=False)
            assert status.turn == 3
            with pytest.raises(TooLarge):
                await mesh.client.status("wordy", content=True)

    run(main(), 110)


@pytest.mark.case(102)
def test_an_unknown_agent_is_not_found_quickly(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            for call in (
                mesh.client.ask("nobody", "hello"),
                mesh.client.tell("nobody", "hello"),
                mesh.client.notify("nobody", 1),
                mesh.client.status("nobody"),
                mesh.client.poll("nobody", "1"),
                mesh.client.stop("nobody"),
                mesh.client.interrupt("nobody"),
                mesh.client.cancel("nobody", "1"),
                mesh.client.resume("nobody"),
                mesh.client.history("nobody"),
            ):
                with pytest.raises(NotFound):
                    await call
            assert await mesh.client.whereis("nobody") is None
            assert await mesh.client.dead_letters("nobody") == []
            assert await mail(mesh) == 0

    run(main(), 110)


@pytest.mark.case(4)
def test_a_taken_name_says_where_its_bearer_runs(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            with pytest.raises(AlreadyStarted, match="'n1'") as caught:
                await mesh.client.start_agent("coder", kind="Recorder")
            assert caught.value.details["node"] == "n1"
            assert (await mesh.client.status("coder")).kind == "Puppet"

    run(main(), 110)


@pytest.mark.case(221)
def test_an_agent_whose_kind_no_node_serves_waits_visibly_and_starts_when_one_comes(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        from live.agents import Recorder

        class Rare(Recorder):
            pass

        async with local_mesh(server, subjects) as mesh:
            with pytest.raises(Unavailable, match="Rare"):
                await mesh.client.start_agent("rare", kind="Rare", timeout=10)

            async def reasoned() -> bool:
                (entry,) = await mesh.client.list_agents()
                return entry.spec.status == "wanted" and entry.spec.reason is not None and "Rare" in entry.spec.reason.message

            await eventually(reasoned, PATIENCE_S, "the reason in the registry")
            with pytest.raises(Unavailable):
                await mesh.client.status("rare", timeout=10)
            asked = asyncio.create_task(mesh.client.ask("rare", "are you there?", timeout=PATIENCE_S))
            await mesh.node("n2", serves={"Rare": Rare})
            assert (await asked).node == "n2"
            (entry,) = await mesh.client.list_agents()
            assert (entry.spec.status, entry.spec.reason) == ("running", None)

    run(main(), 110)


@pytest.mark.case(6)
@pytest.mark.case(7)
def test_code_that_cannot_begin_is_told_apart_and_frees_the_name(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            for how, error in (
                ("raises", InitFailed),
                ("returns", InitFailed),
                ("returns_error", InitFailed),
                ("state", InitFailed),
            ):
                with pytest.raises(error) as caught:
                    await mesh.client.start_agent("odd", kind="Unfit", options={"how": how}, timeout=PATIENCE_S)
                assert caught.value.message, how
            with pytest.raises(InitFailed, match="str"):
                await mesh.client.start_agent("odd", kind="Unfit", options={"how": "returns"}, timeout=PATIENCE_S)
            with pytest.raises(BackendStartFailed, match="no_such_backend"):
                await mesh.client.start_agent("odd", kind="Recorder", backend="no_such_backend", timeout=PATIENCE_S)
            with pytest.raises(BackendStartFailed):
                await mesh.client.start_agent("odd", kind="Unfit", options={"how": "script"}, timeout=PATIENCE_S)
            await start(mesh, "odd")
            assert (await mesh.client.ask("odd", "fine")).text == "fine"

    run(main(), 110)


def test_a_start_that_hangs_names_the_node_and_the_callbacks(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            with pytest.raises(Unavailable, match=r"on node 'n1', but has not begun yet: its `init_agent`") as caught:
                await mesh.client.start_agent("odd", kind="Unfit", options={"how": "hangs"}, timeout=10)
            assert caught.value.details["node"] == "n1"
            await mesh.client.stop("odd", timeout=PATIENCE_S)

    run(main(), 110)


@pytest.mark.case(256)
@pytest.mark.parametrize("damage", ["cut off", "nested"])
def test_an_agent_whose_spec_was_damaged_while_it_had_no_owner_goes_on_with_the_one_that_it_had(
    server: Server, subjects: Subjects, damage: str
) -> None:
    deep = b'{"a":' * 2000 + b"1" + b"}" * 2000

    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            key = spec_key("coder")
            await mesh.nodes["n1"].close()
            good = await mesh.registry.get(key)
            assert good is not None and good.value is not None
            bad = b"{" if damage == "cut off" else good.value.replace(b'"options":{}', b'"options":%b' % deep)
            assert bad != good.value
            await mesh.registry.update(key, bad, good.revision)
            ref = await store(mesh.transport, mesh.subjects.inbox("coder"), b"hello")
            await mesh.node("n1")

            async def answered() -> bool:
                try:
                    return (await mesh.client.poll("coder", str(ref.seq), timeout=PATIENCE_S)).done
                except MeshError:
                    return False  # not yet: the spec is still the damaged one

            await eventually(answered, PATIENCE_S, "the answer")
            now = await mesh.registry.get(key)
            assert now is not None
            assert decode_spec(now).options == decode_spec(good).options

    run(main(), 110)


@pytest.mark.case(21)
def test_a_wrong_return_value_ends_the_turn_and_not_the_agent(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        from agentmesh.errors import BadReturn

        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "odd", kind="Unfit")
            with pytest.raises(BadReturn, match="int"):
                await mesh.client.ask("odd", "return")
            with pytest.raises(BadState, match=r"state\.events\[0\]"):
                await mesh.client.ask("odd", "state")
            assert (await mesh.client.ask("odd", "fine")).text == "fine"
            assert (await mesh.client.status("odd", content=True)).agent_state["prompts"] == ["fine"]

    run(main(), 110)


@pytest.mark.case(18)
def test_an_ask_never_hangs(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "coder")
            gate = tmp_path / "gate"
            with pytest.raises(AskTimeout, match="mesh poll coder") as caught:
                await mesh.client.ask("coder", f"gate:{gate} late", timeout=10)
            ref = caught.value.details["ref"]
            assert (await mesh.client.poll("coder", ref)).status == "pending"
            gate.touch()
            await mesh.saw("prompt_stop", "coder")

            async def done() -> bool:
                outcome = (await mesh.client.poll("coder", ref)).outcome
                return outcome is not None and outcome.text == "late"

            await eventually(done, PATIENCE_S, "the outcome of the turn that went on")
            for timeout in (0, -1, float("nan"), float("inf"), "10"):
                with pytest.raises(BadRequest):
                    await mesh.client.ask("coder", "x", timeout=timeout)  # type: ignore[arg-type]

    run(main(), 110)


@pytest.mark.processes
def test_a_server_that_is_down_at_start_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{closed.getsockname()[1]}"

    async def main() -> None:
        with pytest.raises(Unavailable, match=url):
            async with agentmesh_client.connect(url, connect_timeout=0.5):
                raise AssertionError("there is nothing to connect to")

    run(main(), 60)
    for verb in (("ask", "coder", "hello"), ("ps",), ("start", "coder", "--kind", "Recorder")):
        done = subprocess.run(
            [sys.executable, "-m", "agentmesh_client.cli.main", *verb, "--nats", url],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 5, done.stderr
        assert done.stdout == ""
        assert url in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_server_lost_while_running_is_waited_for(fresh_server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(fresh_server, subjects) as mesh:
            await start(mesh, "coder", "quick")
            gate = tmp_path / "gate"
            asked = asyncio.create_task(mesh.client.ask("coder", f"gate:{gate} through it all", timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "coder")
            fresh_server.kill()
            told = asyncio.create_task(mesh.client.tell("quick", "told meanwhile", timeout=PATIENCE_S))
            also = asyncio.create_task(mesh.client.ask("quick", "asked meanwhile", timeout=PATIENCE_S))
            with pytest.raises(Unavailable):
                await mesh.client.status("coder", timeout=0.5)
            with pytest.raises((Unavailable, AskTimeout)):
                await mesh.client.ask("quick", "too hasty", timeout=0.5)
            gate.touch()  # the turn ends while there is no server: its record waits
            fresh_server.start()
            assert (await asked).text == "through it all"
            assert (await also).text == "asked meanwhile"
            ref = await told

            async def done() -> bool:
                return (await mesh.client.poll("quick", ref, timeout=PATIENCE_S)).done

            await eventually(done, PATIENCE_S, "the outcome of what was told meanwhile")
            prompts = (await mesh.client.status("quick", content=True, timeout=PATIENCE_S)).agent_state["prompts"]
            assert sorted(prompts) == ["asked meanwhile", "told meanwhile"]
            assert sum(record.turn is not None for record in await mesh.records("coder")) == 1

    run(main(), 110)


def test_another_mesh_on_the_same_server_is_not_disturbed(server: Server) -> None:
    async def main() -> None:
        async with local_mesh(server, Subjects("one")) as one, local_mesh(server, Subjects("two")) as two:
            for mesh in (one, two):
                await start(mesh, "coder")
            assert (await one.client.ask("coder", "in one")).ref == "1"
            assert (await two.client.ask("coder", "in two")).ref == "1"
            assert [record.turn.prompt for record in await two.records("coder") if record.turn] == ["in two"]
            await one.told()
            await two.told()
            assert json.dumps([event["agent"] for event in one.seen("prompt_start")]) == '["coder"]'

    run(main(), 110)
