"""Turns of the claude backend, by the real Claude Code, offline."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.steps import UnjournaledSteps
from agentmesh.subjects import Subjects
from agentmesh.wire import Attachment
from fakes.messages import Answer, Call, FakeMessages, Refusal, Tool
from node.backends.attempted import CONTEXT, attempted
from node.backends.claude_desk import KEY, Librarian, childless, children, desk, play, pointed_at, results, runs, text
from support import Server, eventually, run

SLOW = 60.0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as found:
        pointed_at(found, monkeypatch)
        yield found


def test_text_and_thinking_stream_and_the_conversation_goes_on(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fake.play([Answer(text="one two three", thinking="hmm"), "again"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            session = await backend.start_session()
            events, session = await play(backend, session, "hello there", room.turn())
            assert [event.kind for event in events[-2:]] == ["usage", "result"]
            assert text(events) == "one two three" == events[-1].data["text"]
            assert "".join(e.data["text"] for e in events if e.kind == "thinking") == "hmm"
            assert events[-2].data["output_tokens"] > 0
            assert json.loads(json.dumps(session)) == session
            events, later = await play(backend, session, "and now?", room.turn())
            assert events[-1].data["text"] == "again"
            assert later["session_id"] != session["session_id"]
            told = json.dumps(fake.calls[-1].messages)
            assert told.index("hello there") < told.index("one two three") < told.index("and now?")
            # Only what is needed is kept: the session that is committed, and the one that this turn has made.
            assert await room.store.sessions() == {("life", session["session_id"]), ("life", later["session_id"])}
            await backend.terminate_session(later)
            await backend.terminate_session(later)
            assert await room.store.sessions() == set()
            assert not (tmp_path / "n1" / "config").exists()
            await childless(tmp_path)

    run(main(), timeout=SLOW)


def test_it_reads_and_runs_what_it_may_in_the_working_directory(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    work = tmp_path / "repository"
    work.mkdir()
    (work / "notes.txt").write_text("the word is plover\n")
    fake.play(
        [
            Answer(tools=[Tool("Read", {"file_path": str(work / "notes.txt")}), runs("pwd; env")]),
            Answer(tools=[runs("rm notes.txt")]),
            "done",
        ]
    )

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(cwd=str(work), allowed_tools=["Read", "Bash(pwd)", "Bash(env)"])
            events, _ = await play(backend, await backend.start_session(), "look", room.turn())
            uses = [event.data for event in events if event.kind == "tool_use"]
            found = {event.data["id"]: event.data for event in events if event.kind == "tool_result"}
            assert [use["name"] for use in uses] == ["Read", "Bash", "Bash"]
            assert "plover" in found[uses[0]["id"]]["text"]
            said = found[uses[1]["id"]]["text"]
            assert str(work) in said
            # Its commands have a home of the agent's own, and nothing of the node's secrets.
            assert f"HOME={tmp_path}/n1/home" in said
            assert KEY not in said
            # Nobody is there to be asked.
            assert found[uses[2]["id"]]["ok"] is False
            assert (work / "notes.txt").exists()

    run(main(), timeout=SLOW)


def test_its_calls_are_told_of_its_attempt_whose_context_its_process_has(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.play([Answer(tools=[Tool("mcp__agent__lend", {"title": "Emma"}, id="toolu_lend"), runs("env")]), "there you are"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(agent=Librarian(), allowed_tools=["Bash(env)"])
            steps = UnjournaledSteps(key="coder/7")
            with attempted(monkeypatch) as attempt:
                events, _ = await play(backend, await backend.start_session(), "may I?", room.turn(steps))
            model = "claude-sonnet-5"
            told = attempt.told(events)
            assert told == {("chat", model, ""), ("execute_tool", "lend", ""), ("execute_tool", "Bash", "")}
            assert [one.op for one in (*attempt.of_steps, *attempt.calls.without_step)].count("chat") == 2
            assert "lend" in {one.name for one in attempt.of_steps}, "its step has it"
            said = "".join(event.data["text"] for event in events if event.kind == "tool_result")
            assert CONTEXT.trace_id in said, "its process, and what that starts, is in the trace"

    run(main(), timeout=SLOW)


def test_its_own_tools_are_run_by_the_mesh(server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages) -> None:
    fake.play([Answer(tools=[Tool("mcp__agent__lend", {"title": "Emma"}, id="toolu_lend")]), "there you are"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            agent = Librarian()
            backend = room.backend(agent=agent)
            steps = UnjournaledSteps(key="coder/7")
            events, _ = await play(backend, await backend.start_session(), "may I?", room.turn(steps))
            assert [(e.kind, e.data.get("name")) for e in events if e.kind == "tool_use"] == [("tool_use", "lend")]
            assert [e.data["text"] for e in events if e.kind == "tool_result"] == ["lent Emma"]
            assert results(fake.calls[-1]) == ["lent Emma"]
            offered = {each["name"]: each for each in fake.calls[0].body["tools"]}
            assert offered["mcp__agent__lend"]["input_schema"]["properties"]["title"]["type"] == "string"
            assert [call.key for call in agent.seen] == ["coder/7/toolu_lend"]
            kinds = [step["step"] for step in steps.taken]
            assert kinds[0] == "session"
            assert kinds.index("intent") < kinds.index("result")
            await backend.release()

    run(main(), timeout=SLOW)


def test_what_a_subagent_says_stays_with_it_and_what_it_uses_is_counted(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    def script(call: Call) -> Any:
        said = json.dumps(call.messages)
        if "the inner work" in said and "delegate" not in said:
            if not results(call):
                return Answer(tools=[Tool("mcp__agent__lend", {"title": "Emma"})])
            return Answer(text="the inner answer", input_tokens=100)
        if "the inner answer" in said:
            return "the outer answer"
        inner = {"description": "inner", "prompt": "the inner work", "subagent_type": "general-purpose"}
        return Answer(text="I ask another", tools=[Tool("Agent", inner)])

    fake.play(script)

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            agent = Librarian()
            backend = room.backend(agent=agent)
            events, session = await play(backend, await backend.start_session(), "delegate", room.turn())
            assert len(agent.seen) == 1
            assert text(events) == "I ask anotherthe outer answer"
            assert [e.data["name"] for e in events if e.kind == "tool_use"] == ["Agent"]
            assert events[-2].data["input_tokens"] == 130
            # Another machine gets the subagent's transcript along with the conversation's.
            events, _ = await play(room.backend("n2"), session, "delegate more", room.turn())
            assert events[-1].kind == "result"
            assert len(list((tmp_path / "n2").rglob("subagents/*.jsonl"))) >= 1

    run(main(), timeout=SLOW)


def test_a_prompt_is_delivered_as_it_is_and_with_its_attachments(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the contents of a file")
    fake.play(["read"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            attached = Attachment(filename="notes.md", content=base64.b64encode(b"# an attached note").decode())
            turn = room.turn(attachments=(attached,))
            await play(backend, await backend.start_session(), f"/clear what is in @{secret}?", turn)
            told = json.dumps(fake.calls[0].messages)
            assert f"/clear what is in @{secret}?" in told
            assert "# an attached note" in told
            assert "the contents of a file" not in told

    run(main(), timeout=SLOW)


def test_cancelling_a_turn_ends_claude_code_and_its_commands(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    ran = tmp_path / "ran"
    fake.play([Answer(text="wait", tools=[runs(f"touch {ran}; python3 -c 'import time; time.sleep(600)'")]), "back"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(allowed_tools=["Bash"])
            before = await backend.start_session()
            turn = asyncio.create_task(play(backend, before, "work", room.turn()))
            await eventually(ran.exists, timeout=30, what="the command")
            assert len(children(tmp_path)) >= 2
            turn.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await turn
            assert turn.cancelled()
            await childless(tmp_path)
            # The session is the one before that turn, and usable.
            events, after = await play(backend, before, "and again", room.turn())
            assert events[-1].data["text"] == "back"
            assert "work" not in [block for m in fake.calls[-1].messages for block in _texts(m)]
            assert await room.store.sessions() == {("life", after["session_id"])}

    run(main(), timeout=SLOW)


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [block.get("text", "") for block in content]


@pytest.mark.parametrize(
    "case",
    [
        (Refusal(status=429), "rate_limited", True),
        (Refusal(status=529), "overloaded", True),
        (Refusal(status=500), "server_error", True),
        (Refusal(status=401), "unauthenticated", False),
        (Refusal(status=404), "not_found", False),
    ],
)
def test_what_the_model_server_refuses_is_a_typed_error(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, case: tuple[Refusal, str, bool]
) -> None:
    refusal, reason, retryable = case
    fake.play([refusal])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            before = await backend.start_session()
            events, after = await play(backend, before, "hello", room.turn())
            error = events[-1]
            assert error.kind == "error"
            assert (error.data["reason"], error.data["retryable"]) == (reason, retryable)
            assert ("retry_after_s" in error.data) is retryable
            assert KEY not in json.dumps([event.data for event in events])
            assert after == before
            await childless(tmp_path)

    run(main(), timeout=SLOW)


def test_an_answer_that_breaks_off_is_asked_for_again_and_what_it_had_said_is_void(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fake.play([Answer(text="this never comes to its end", break_after=5, how="error"), "the answer"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(max_retries=2)
            events, _ = await play(backend, await backend.start_session(), "hello", room.turn())
            assert events[-1].data.get("text") == "the answer", events[-1].data
            restarts = [at for at, event in enumerate(events) if event.data.get("restart")]
            assert text(events[restarts[-1] :] if restarts else events) == "the answer"

    run(main(), timeout=SLOW)


def test_without_a_server_for_its_transcript_a_turn_is_an_error_and_begins_nothing(
    fresh_server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    async def main() -> None:
        async with desk(fresh_server, subjects, tmp_path) as room:
            backend = room.backend()
            before = await backend.start_session()
            fresh_server.kill()
            events, after = await play(backend, before, "hello", room.turn())
            assert (events[-1].data["reason"], events[-1].data["retryable"]) == ("store_unavailable", True)
            assert after == before
            assert fake.calls == []

    run(main(), timeout=SLOW)


@pytest.mark.parametrize(
    "case",
    [
        ("ANTHROPIC_API_KEY", "x-api-key", KEY),
        ("CLAUDE_CODE_OAUTH_TOKEN", "authorization", f"Bearer {KEY}"),
        ("ANTHROPIC_AUTH_TOKEN", "authorization", f"Bearer {KEY}"),
    ],
)
def test_the_nodes_credential_reaches_the_model_server(
    server: Server, subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, str]
) -> None:
    variable, header, value = case

    async def main(fake: FakeMessages) -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            events, _ = await play(backend, await backend.start_session(), "hello", room.turn())
            assert events[-1].kind == "result", events[-1].data
            assert fake.calls[0].headers[header] == value

    with FakeMessages(["in"]) as fake:
        pointed_at(fake, monkeypatch)
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        monkeypatch.setenv(variable, KEY)
        run(main(fake), timeout=SLOW)


def test_a_model_server_that_is_not_there(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.close()

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend()
            events, _ = await play(backend, await backend.start_session(), "hello", room.turn())
            assert (events[-1].data["reason"], events[-1].data["retryable"]) == ("connection", True), events[-1].data

    run(main(), timeout=SLOW)


def test_a_budget_is_each_turns_own(server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages) -> None:
    fake.play(["a small answer"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            generous = room.backend(max_budget_usd=1.0)
            session = await generous.start_session()
            events, session = await play(generous, session, "hello", room.turn())
            cost = events[-2].data["cost_usd"]
            assert cost > 0
            # What was spent before does not count against this turn, whether the transcript is here or in the mesh.
            for machine in ("n1", "n1", "n2"):
                enough = room.backend(machine, max_budget_usd=cost * 1.5)
                for _ in range(2):
                    events, session = await play(enough, session, "again", room.turn())
                    assert events[-1].kind == "result"
                    assert events[-2].data["cost_usd"] == pytest.approx(cost)
            short = room.backend(max_budget_usd=cost / 2)
            events, _ = await play(short, session, "again", room.turn())
            assert (events[-1].kind, events[-1].data.get("code")) == ("error", "budget_exceeded"), events[-1].data

    run(main(), timeout=SLOW)


def test_secrets_do_not_come_out_of_it(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "a-token-that-nobody-sees")
    fake.play([Answer(text=f"your key is {KEY}", tools=[runs("echo $DEPLOY_TOKEN")]), "done"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(allowed_tools=["Bash"], pass_env=["DEPLOY_TOKEN"])
            steps = UnjournaledSteps()
            events, session = await play(backend, await backend.start_session(), "tell", room.turn(steps))
            kept: Any = {"project_key": "life", "session_id": session["session_id"]}
            seen = json.dumps([[e.data for e in events], session, steps.taken, await room.store.load(kept)])
            assert "your key is ***" in seen
            assert KEY not in seen
            assert "a-token-that-nobody-sees" not in seen

    run(main(), timeout=SLOW)


def test_it_gets_the_context_of_the_turns_span(server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages) -> None:
    from opentelemetry import context, propagate

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    fake.play([Answer(tools=[runs("echo traced: $TRACEPARENT")]), "done"])

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(allowed_tools=["Bash"])
            token = context.attach(propagate.extract({"traceparent": trace}))
            try:
                events, _ = await play(backend, await backend.start_session(), "look", room.turn())
            finally:
                context.detach(token)
            assert [e.data["text"] for e in events if e.kind == "tool_result"] == [f"traced: {trace}"]

    run(main(), timeout=SLOW)


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.case(429)
@pytest.mark.parametrize("bounds", [{"max_tool_runs": 3}, {"max_result_bytes": 30}, {"max_turns": 2}])
def test_a_turn_that_goes_in_circles_ends_at_its_bound(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, bounds: dict[str, Any]
) -> None:
    fake.play(lambda call: Answer(tools=[Tool("mcp__agent__lend", {"title": "ulysses"})]))

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            agent = Librarian()
            backend = room.backend(agent=agent, **bounds)
            events, _ = await play(backend, await backend.start_session(), "lend on", room.turn())
            assert (events[-1].data["reason"], events[-1].data["retryable"]) == (next(iter(bounds)), False)
            assert len(agent.seen) <= 4
            await childless(tmp_path)

    run(main(), timeout=SLOW)
