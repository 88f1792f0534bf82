"""Turns of the codex backend: the real program, a fake model."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh import semconv
from agentmesh.agent import Agent
from agentmesh.backend import Event, Room
from agentmesh.edge.blobs import Blobs
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import ensure
from agentmesh.errors import BackendError
from agentmesh.subjects import Subjects
from agentmesh.wire import Attachment
from agentmesh_node.backends.codex.backend import CodexBackend
from agentmesh_node.backends.codex.rollout import MemoryStore
from fakes.responses import Call, Reply, ResponsesServer, Text, Thought, say, shell
from node.backends.attempted import attempted
from node.backends.codex import KEY, KEY_NAME, Plain, backend, of, options, play, processes, program, text_of, turn, until
from support import Server, connected, eventually, run

pytestmark = pytest.mark.processes

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def fake() -> Iterator[ResponsesServer]:
    with ResponsesServer() as server:
        yield server


def test_a_turn_streams_thoughts_text_tools_and_tokens(fake: ResponsesServer, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    asked = Reply((Thought("first look"), Text("let me see"), shell("pwd; echo made > made.txt")), usage=(100, 20, 60))
    fake.script = [asked, say("all is well", usage=(150, 5, 100))]

    async def main() -> None:
        made = backend(tmp_path / "files", fake, cwd=str(work))
        events, session = await play(made, await made.start_session(), "do it")
        kinds = [event.kind for event in events]
        assert kinds.index("thinking") < kinds.index("text") < kinds.index("tool_use") < kinds.index("tool_result")
        assert text_of(events) == "let me seeall is well"
        assert len(of("text", events)) == 4, "text comes as the model says it"
        (use,), (result,) = of("tool_use", events), of("tool_result", events)
        assert use["name"] == "shell"
        assert "echo made" in use["input"]["command"]
        assert (result["id"], result["ok"], result["text"]) == (use["id"], True, f"{work}\n")
        assert (work / "made.txt").read_text() == "made\n"
        assert of("usage", events)[-1] == {
            "input_tokens": 90, "output_tokens": 25, "cache_read_input_tokens": 160, "model": "fake-model", "tool_calls": 1,
        }  # fmt: skip
        assert events[-1].data["text"] == "all is well"
        assert events[-1].data["session_id"] == session["session_id"]
        assert not list((tmp_path / "files" / "codex" / "homes").iterdir())

    run(main(), PATIENCE_S)


def test_its_calls_are_told_of_its_attempt(fake: ResponsesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.script = [Reply((shell("exit 3"),), usage=(100, 20, 60)), say("it failed", usage=(150, 5, 100))]

    async def main() -> None:
        made = backend(tmp_path, fake)
        with attempted(monkeypatch) as attempt:
            events, _ = await play(made, await made.start_session(), "do it")
        assert attempt.told(events) == {("chat", "fake-model", ""), ("execute_tool", "shell", "error")}
        chats = [one for one in (*attempt.of_steps, *attempt.calls.without_step) if one.op == "chat"]
        assert [one.attributes[semconv.INPUT_TOKENS] for one in chats] == [100, 150], "with what was cached"

    run(main(), PATIENCE_S)


def test_a_command_that_fails_is_a_result_that_says_so(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply((shell("echo no >&2; exit 3"),)), say("it failed")]

    async def main() -> None:
        made = backend(tmp_path, fake)
        events, _ = await play(made, await made.start_session(), "do it")
        assert [(result["ok"], result["text"]) for result in of("tool_result", events)] == [(False, "no\n")]

    run(main(), PATIENCE_S)


def test_the_next_turn_remembers_on_another_node_too(
    fake: ResponsesServer, tmp_path: Path, server: Server, subjects: Subjects
) -> None:
    fake.script = [say("one"), say("two"), say("three")]

    async def main() -> None:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)
            there: dict[str, Any] = {"transport": transport, "root": subjects.root}
            first = backend(tmp_path / "n1", fake, **there)
            _, session = await play(first, await first.start_session(), "my name is Ada")
            second = backend(tmp_path / "n2", fake, **there)
            _, session = await play(second, await second.resume_session(session), "what is my name?")
            assert fake.requests[-1].texts("user") == ["my name is Ada", "what is my name?"]
            assert fake.requests[-1].texts("assistant") == ["one"]
            _, session = await play(first, session, "go on")
            assert fake.requests[-1].texts("assistant") == ["one", "two"]
            await first.terminate_session(session)
            await first.terminate_session(session)
            assert not await read_all(transport, subjects.blob_stream, subjects.blob_chunks("*"))

    run(main(), PATIENCE_S)


@pytest.mark.case(92)
def test_a_turn_that_fails_leaves_the_session_as_it_was(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [say("one"), Reply((shell("echo x"),)), Reply(status=400), say("two")]

    async def main() -> None:
        made = backend(tmp_path, fake)
        _, session = await play(made, await made.start_session(), "first")
        events, after = await play(made, session, "second")
        assert events[-1].kind == "error"
        assert after == session
        await play(made, after, "third")
        assert fake.requests[-1].texts("user") == ["first", "third"]

    run(main(), PATIENCE_S)


def test_nothing_stays_stored_of_a_turn_that_failed(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [say("one"), Reply((shell("echo x"),)), Reply(status=400), say("two")]

    async def main() -> None:
        store = MemoryStore()
        made = CodexBackend(Plain(), options(fake), room=Room("coder", "life", str(tmp_path)), store=store)
        _, session = await play(made, await made.start_session(), "first")
        await play(made, session, "second")
        assert len(store) == len(session["rollout"]["parts"]) + 1
        _, session = await play(made, session, "third")
        assert len(store) == len(session["rollout"]["parts"])
        await made.terminate_session(session)
        assert len(store) == 0

    run(main(), PATIENCE_S)


def test_turns_wait_for_a_place_and_give_it_back_also_when_they_are_killed(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply((), end="open"), say("served")]

    async def main() -> None:
        places = asyncio.Semaphore(1)
        rooms = [Room("coder", "life", str(tmp_path / str(number)), place=lambda: places) for number in range(2)]
        first, second = (CodexBackend(Plain(), options(fake), room=room, store=MemoryStore()) for room in rooms)
        hung = asyncio.create_task(play(first, await first.start_session(), "first"))
        await asyncio.to_thread(fake.wait_for_calls, 1)
        waiting = asyncio.create_task(play(second, await second.start_session(), "second"))
        assert places.locked()
        done, _ = await asyncio.wait((waiting,), timeout=0.5)
        assert not done
        assert len(fake.requests) == 1, "no second child has asked"
        hung.cancel()
        events, _ = await waiting
        assert events[-1].kind == "result"
        await asyncio.wait((hung,))
        assert not places.locked()

    run(main(), PATIENCE_S)


def test_a_turn_that_lost_its_node_goes_on_behind_its_last_step(fake: ResponsesServer, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    fake.script = [Reply((Text("I write"), shell("echo line >> log"))), Reply((), end="open"), say("written")]

    async def main() -> None:
        made = backend(tmp_path / "files", fake, cwd=str(work))
        session = await made.start_session()
        lost = turn()
        stream = await made.prompt(session, "write a line", lost)
        await until(stream, "usage")
        await asyncio.to_thread(fake.wait_for_calls, 2)
        await stream.events.aclose()  # type: ignore[attr-defined]
        again = turn(*lost.steps.taken)
        events, after = await play(made, session, "write a line", again)
        assert fake.calls == 3, "only the call that was in flight is made again"
        assert fake.requests[2].texts("user").count("write a line") == 1
        assert len(fake.requests[2].outputs()) == 1
        assert (work / "log").read_text() == "line\n"
        replayed = [event for event in events if event.replayed]
        assert [event.kind for event in replayed] == ["text", "tool_use", "tool_result", "usage"]
        assert replayed[0].data == {"text": "I write"}
        assert of("usage", events)[-1]["output_tokens"] == 6
        assert events[-1].data["text"] == "written"
        events, _ = await play(made, after, "and now?")
        assert fake.requests[-1].texts("assistant") == ["I write", "written"]

    run(main(), PATIENCE_S)


def test_a_step_whose_copy_is_gone_is_no_step(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply((shell("echo x"),)), say("done"), say("again")]

    async def main() -> None:
        made = backend(tmp_path, fake)
        session = await made.start_session()
        ended = turn()
        _, after = await play(made, session, "go", ended)
        await made.terminate_session(after)
        events, _ = await play(made, session, "go", turn(*ended.steps.taken))
        assert events[-1].data["text"] == "again"
        assert fake.requests[-1].texts("user")[-1] == "go"

    run(main(), PATIENCE_S)


def test_a_thread_whose_copy_is_gone_is_an_error_that_says_so(fake: ResponsesServer, tmp_path: Path) -> None:
    async def main() -> None:
        made = backend(tmp_path, fake)
        _, session = await play(made, await made.start_session(), "go")
        await made.terminate_session(session)
        events, _ = await play(made, session, "go on")
        assert (events[-1].kind, events[-1].data["reason"], events[-1].data["retryable"]) == ("error", "session_lost", False)

    run(main(), PATIENCE_S)


# --- the agent's own tools ---------------------------------------------------------------------------------------------
class Librarian(Agent[dict[str, Any]]):
    """Counts what its tool is called for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def look_up(self, word: str) -> str:
        """Look a word up."""
        self.calls.append(word)
        return f"{word} means 42"

    tools = (look_up,)


def test_the_agents_own_tools_are_codexs_too(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [
        Reply((Call("look_up", {"word": "mesh"}), Call("look_up", {"wrong": 1}))), say("42"),
        Reply((Call("look_up", {"word": "node"}),)), say("42"),
    ]  # fmt: skip

    async def main() -> None:
        agent = Librarian()
        made = backend(tmp_path, fake, agent)
        events, session = await play(made, await made.start_session(), "what does it mean?")
        assert agent.calls == ["mesh"]
        assert [(r["ok"], r["text"].partition(":")[0]) for r in of("tool_result", events)] == [
            (True, "mesh means 42"), (False, "the input does not fit this tool"),
        ]  # fmt: skip
        assert fake.requests[1].outputs()[0] == "mesh means 42"
        await play(made, session, "and that?")
        assert agent.calls == ["mesh", "node"], "the thread knows the tools in later turns"

    run(main(), PATIENCE_S)


def test_a_tool_that_was_called_before_its_node_died_is_not_called_again(fake: ResponsesServer, tmp_path: Path) -> None:
    call = {"id": "old", "name": "look_up", "input": {"word": "mesh"}}
    result = {"id": "old", "name": "look_up", "ok": True, "text": "known already"}
    ask = Reply((Call("look_up", {"word": "mesh"}), Call("look_up", {"word": "mesh"})))
    fake.script = [ask, say("so"), ask, say("so")]

    async def main() -> None:
        agent = Librarian()
        made = backend(tmp_path, fake, agent)
        session = await made.start_session()
        intent: dict[str, Any] = {"step": "intent", "call": call}
        await play(made, session, "what?", turn(intent, {"step": "ran", "call": call, "result": result}))
        assert fake.requests[1].outputs() == ["known already", "mesh means 42"]
        assert agent.calls == ["mesh"], "the second one is a call of its own"
        await play(made, session, "what?", turn(intent))
        outputs = fake.requests[3].outputs()
        assert "unknown" in outputs[0], "it may have taken effect: it is not fired again blindly"
        assert outputs[1] == "mesh means 42"

    run(main(), PATIENCE_S)


# --- the end of a turn before its time ----------------------------------------------------------------------------------
def test_a_cancelled_turn_ends_codex_and_the_command_that_it_runs(fake: ResponsesServer, tmp_path: Path) -> None:
    mark = f"{secrets.randbelow(10**9)}.5"
    fake.script = [Reply((shell(f"sleep {mark}", wait_ms=30_000),))]

    async def main() -> None:
        made = backend(tmp_path, fake)
        stream = await made.prompt(await made.start_session(), "wait", turn())
        reading = asyncio.create_task(_read(stream.events))
        await eventually(lambda: len(processes(f"sleep {mark}")) > 0, PATIENCE_S, "the command")
        reading.cancel()
        await asyncio.wait((reading,))
        assert reading.cancelled()
        await eventually(lambda: not processes(f"sleep {mark}"), PATIENCE_S, "the end of the command")
        assert not list((tmp_path / "codex" / "homes").iterdir())

    run(main(), PATIENCE_S)


async def _read(events: Any) -> list[Event]:
    return [event async for event in events]


DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[0] + ".pid", "w").write(str(__import__("os").getpid()))
time.sleep(600)
"""


def test_a_child_that_heeds_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "deaf"
    program(place, DEAF, monkeypatch)

    async def main() -> None:
        made = backend(tmp_path / "files", "http://127.0.0.1:9/v1")
        stream = await made.prompt(await made.start_session(), "hello?", turn())
        reading = asyncio.create_task(_read(stream.events))
        await eventually(lambda: (tmp_path / "deaf.pid").exists(), PATIENCE_S, "the child")
        reading.cancel()
        await asyncio.wait((reading,))
        assert not processes(str(place))

    run(main(), PATIENCE_S)


# --- options, key, files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given",
    [
        {"modle": "x"}, {"sandbox": "none"}, {"cwd": "relative"}, {"approval_policy": "always"}, {"env": "PATH"},
        {"config": {"model_providers": {"mesh": {}}}}, {"start_timeout_s": "long"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        backend(tmp_path, "http://127.0.0.1:9/v1", **given)
    assert caught.value.details["reason"] == "bad_options"


@pytest.mark.parametrize(("name", "reason"), [(KEY_NAME, "no_credentials"), ("CODEX_BINARY", "not_installed")])
def test_what_the_node_lacks_is_said_at_the_start(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "" if name == KEY_NAME else str(tmp_path / "nothing"))

    async def main() -> None:
        with pytest.raises(BackendError) as caught:
            await backend(tmp_path, "http://127.0.0.1:9/v1").start_session()
        assert caught.value.details["reason"] == reason

    run(main())


def test_a_session_of_another_backend_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(BackendError) as caught:
            await backend(tmp_path, "http://127.0.0.1:9/v1").resume_session({"session_id": 5})
        assert caught.value.details["reason"] == "bad_session"

    run(main())


def test_the_key_is_nowhere_but_in_the_request(
    fake: ResponsesServer, tmp_path: Path, server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does the model's shell see it, nor does it get out where a server or a command says it."""
    fake.script = [
        Reply((shell(f'env; echo {KEY}; echo {KEY} >&2'), Text(f"the key is {KEY}", pieces=1))),
        Reply((Text(f"it is {KEY}", pieces=1),)),
        Reply(status=401, failure={"message": f"the key {KEY} is bad"}),
    ]  # fmt: skip
    monkeypatch.setenv("ANOTHER_SECRET", "of the node")

    async def main() -> None:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)
            made = backend(tmp_path, fake, transport=transport, root=subjects.root)
            about = turn()
            events, session = await play(made, await made.start_session(), "tell me", about)
            assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"
            (result,) = of("tool_result", events)
            assert KEY_NAME not in result["text"]
            assert "ANOTHER_SECRET" not in result["text"]
            assert result["text"].splitlines().count("***") == 2, "one from each of its two outputs, in whatever order"
            failed, _ = await play(made, session, "once more")
            assert "***" in failed[-1].data["message"]
            blobs = Blobs(transport, subjects)
            stored = [zlib.decompress(await blobs.get(name)) for name in session["rollout"]["parts"]]
            assert b"***" in b"".join(stored)
            for whatever in (events, failed, session, about.steps.taken, stored):
                assert "sk-fake" not in repr(whatever)

    run(main(), PATIENCE_S)


def test_what_needs_an_approval_is_declined(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [Reply((shell("touch asked"),)), say("so be it")]

    async def main() -> None:
        made = backend(tmp_path, fake, approval_policy="untrusted", sandbox="read-only")
        events, _ = await play(made, await made.start_session(), "do it")
        assert [(result["ok"], result["text"]) for result in of("tool_result", events)] == [(False, "declined")]
        assert events[-1].data["text"] == "so be it"

    run(main(), PATIENCE_S)


def test_the_sandbox_keeps_commands_to_the_working_directory(fake: ResponsesServer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    fake.script = [Reply((shell(f"touch {outside}; touch inside; touch $TMPDIR/t && ls"),)), say("done")]

    async def main() -> None:
        made = backend(tmp_path / "files", fake)
        events, _ = await play(made, await made.start_session(), "do it")
        assert of("tool_result", events)[0]["text"].endswith("inside\n")
        assert not outside.exists()

    run(main(), PATIENCE_S)


def test_attachments_reach_the_model(fake: ResponsesServer, tmp_path: Path) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    notes = base64.b64encode(b"remember the milk").decode()
    given = (Attachment(filename="../../notes.txt", content=notes), Attachment(filename="dot.png", content=pixel))

    def script(body: dict[str, Any]) -> Reply:
        said = str(body["input"])
        if "milk" in said:
            return say("done")
        named = re.search(r"- (/\S+/notes\.txt)", said)
        assert named is not None
        return Reply((shell(f"cat {named[1]}"),))

    fake.script = script

    async def main() -> None:
        made = backend(tmp_path, fake)
        events, _ = await play(made, await made.start_session(), "read", turn(attachments=given))
        assert of("tool_result", events)[0]["text"] == "remember the milk"
        parts = [part for item in fake.requests[0].inputs for part in item.get("content", ())]
        assert any(part.get("type") == "input_image" for part in parts)
        bad = (Attachment(filename="x", content="%%%"),)
        events, _ = await play(made, await made.start_session(), "read", turn(attachments=bad))
        assert events[-1].data["reason"] == "bad_attachment"

    run(main(), PATIENCE_S)


def test_outside_a_mesh_it_works_in_one_process(fake: ResponsesServer) -> None:
    async def main() -> None:
        made = CodexBackend(Plain(), options(fake))
        _, session = await play(made, await made.start_session(), "one")
        await play(made, session, "two")
        assert fake.requests[-1].texts("user") == ["one", "two"]
        await made.release()

    run(main(), PATIENCE_S)


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.case(429)
@pytest.mark.parametrize("bounds", [{"max_iterations": 3}, {"max_tool_runs": 3}, {"max_result_bytes": 40}])
def test_a_turn_that_goes_in_circles_ends_at_its_bound(fake: ResponsesServer, tmp_path: Path, bounds: dict[str, Any]) -> None:
    fake.script = [Reply((Call("look_up", {"word": f"w{n}"}),)) for n in range(20)]

    async def main() -> None:
        agent = Librarian()
        made = backend(tmp_path, fake, agent, **bounds)
        events, _ = await play(made, await made.start_session(), "look up all words")
        assert (events[-1].data["reason"], events[-1].data["retryable"]) == (next(iter(bounds)), False)
        assert len(agent.calls) in (3, 4)

    run(main(), PATIENCE_S)
