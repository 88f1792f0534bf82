"""The anthropic backend within a mesh: what its callers watch, and what it lets go of."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fakes
from agentmesh.agent import Agent, Idle, Init, Prompt
from agentmesh.backend import Response
from agentmesh.errors import BackendError, BackendStartFailed, Interrupted, MeshError
from agentmesh.subjects import Subjects
from agentmesh.tools import McpStdio, tool
from agentmesh_client import Ended, Restarted, ToolResult, ToolUse
from fakes.messages import Answer, FakeMessages, Refusal, Tool
from live.mesh import PATIENCE_S, local_mesh
from node.tools.mcp.serving import alive, pids
from support import Server, eventually, run

MCP_SERVER = Path(fakes.__file__).with_name("mcp_server.py")
"""To be run: to import it is to import the whole SDK."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        yield server


@tool(effect="pure")
async def double(number: int) -> int:
    """Double a number."""
    return 2 * number


class Model(Agent[list[str]]):
    """Tries once more after an error, if told so, and remembers what it was told."""

    backend = "anthropic"
    tools: ClassVar[tuple[Any, ...]] = (double,)

    async def init_agent(self, options: dict[str, Any]) -> Init[list[str]]:
        return Init([], backend={"attempts": 2, "max_wait_s": 0.1, **options})

    async def handle_response(self, ref: str, response: Response, state: list[str]) -> Idle[list[str]]:
        return Idle([*state, response.text])

    async def handle_error(self, ref: str, error: MeshError, state: list[str]) -> Idle[list[str]] | Prompt[list[str]]:
        reason = str(error.details["reason"])
        again = error.details.get("retryable") and reason not in state
        return Prompt("go on", [*state, reason]) if again else Idle([*state, reason])


def test_a_watched_turn_shows_tools_and_what_is_void_of_a_broken_answer(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play([
        Answer(text="let me see. ", tools=(Tool("double", {"number": 2}, "c1"),)),
        Answer(text="half an answer", break_after=4),
        "it is four",
    ])  # fmt: skip

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Model": Model}) as mesh:
            await mesh.client.start_agent("m", kind="Model")
            async with mesh.client.stream("m", "two times two?", timeout=PATIENCE_S) as turn:
                events = [event async for event in turn]
                (use,) = [event for event in events if isinstance(event, ToolUse)]
                (result,) = [event for event in events if isinstance(event, ToolResult)]
                (restart,) = [event for event in events if isinstance(event, Restarted)]
                assert (use.name, use.input, result.text) == ("double", {"number": 2}, "4")
                assert restart.void_from > result.n
                assert turn.text == "let me see. it is four"
                last = events[-1]
                assert isinstance(last, Ended)
                assert last.outcome.text == "it is four"

    run(main(), 110)


def test_a_failed_turn_tells_the_agent_why_and_a_retry_goes_on_behind_what_was_done(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    overloaded = Refusal(headers={"retry-after-ms": "1"})
    fake.play([Answer(tools=(Tool("double", {"number": 2}, "c1"),)), overloaded, overloaded, "four", Refusal(status=401)])

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Model": Model}) as mesh:
            await mesh.client.start_agent("m", kind="Model")
            assert (await mesh.client.ask("m", "two times two?", timeout=PATIENCE_S)).text == "four"
            with pytest.raises(BackendError) as caught:
                await mesh.client.ask("m", "and three?", timeout=PATIENCE_S)
            assert caught.value.details["reason"] == "unauthenticated"
            assert caught.value.details["retryable"] is False
            status = await mesh.client.status("m", content=True, timeout=PATIENCE_S)
            assert status.agent_state == ["overloaded", "four", "unauthenticated"]

    run(main(), 110)
    retried = fake.calls[3].messages
    assert [m["role"] for m in retried] == ["user", "assistant", "user", "user"]
    assert retried[-1]["content"] == [{"type": "text", "text": "go on"}]


def test_an_interrupt_ends_the_tool_that_runs_and_the_next_prompt_is_answered(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        @tool(effect="pure")
        async def hang() -> None:
            """Never come back."""
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        class Hanging(Model):
            tools: ClassVar[tuple[Any, ...]] = (hang,)

            async def handle_error(self, ref: str, error: MeshError, state: list[str]) -> Idle[list[str]]:
                return Idle(state)

        fake.play([Answer(tools=(Tool("hang", {}, "c1"),)), "free again"])
        async with local_mesh(server, subjects, serves={"Hanging": Hanging}) as mesh:
            await mesh.client.start_agent("m", kind="Hanging")
            asked = asyncio.create_task(mesh.client.ask("m", "hang", timeout=PATIENCE_S))
            await asyncio.wait_for(began.wait(), PATIENCE_S)
            assert await mesh.client.interrupt("m")
            with pytest.raises(Interrupted):
                await asked
            assert ended.is_set()
            assert (await mesh.client.ask("m", "and now?", timeout=PATIENCE_S)).text == "free again"

    run(main(), 110)
    asked, wanted, told, now = fake.calls[-1].messages
    assert [m["role"] for m in (asked, wanted, told, now)] == ["user", "assistant", "user", "user"], (
        "what it did is shown (case 380)"
    )
    assert told["content"][0]["content"] == "interrupted; it may have been done"


def test_an_option_that_is_unknown_fails_the_start(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Model": Model}) as mesh:
            with pytest.raises(BackendStartFailed, match="modell"):
                await mesh.client.start_agent("m", kind="Model", options={"modell": "x"}, timeout=PATIENCE_S)
                await mesh.client.ask("m", "hello", timeout=PATIENCE_S)

    run(main(), 110)


@pytest.mark.parametrize("how", ["stop", "sleep", "drain"])
def test_an_mcp_server_ends_with_what_used_it(
    *, server: Server, subjects: Subjects, fake: FakeMessages, tmp_path: Path, how: str
) -> None:
    notes = tmp_path / "notes"

    class Shopper(Model):
        tools: ClassVar[tuple[Any, ...]] = (McpStdio(name="shop", command=sys.executable, args=(str(MCP_SERVER), str(notes))),)

    async def main() -> None:
        settings = {"rest_s": 0.1, "passivate_s": 0.1} if how == "sleep" else {}
        async with local_mesh(server, subjects, serves={"Shopper": Shopper}, **settings) as mesh:
            await mesh.client.start_agent("m", kind="Shopper")
            fake.play([Answer(tools=(Tool("shop__add", {"a": 2, "b": 2}, "c1"),)), "four"])
            assert (await mesh.client.ask("m", "two and two?", timeout=PATIENCE_S)).text == "four"
            assert fake.calls[-1].results[0]["content"] == "4"
            (pid,) = pids(notes)
            if how == "stop":
                await mesh.client.stop("m")
            elif how == "drain":
                await mesh.nodes["n1"].close()
            await eventually(lambda: not alive(pid), PATIENCE_S, "the end of the MCP server")
            if how == "sleep":
                fake.play(["awake"])
                assert (await mesh.client.ask("m", "and now?", timeout=PATIENCE_S)).text == "awake"

    run(main(), 110)
