"""Tools of MCP servers: real servers of the official SDK, as child processes and behind HTTP."""

from __future__ import annotations

import json
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from agentmesh.backend import Turn
from agentmesh.errors import BackendError
from agentmesh.identity import UNVERIFIED, Chain, Party
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import McpHttp, McpStdio
from agentmesh.trace.context import TraceContext
from agentmesh_node.telemetry.inner_calls import InnerCalls
from agentmesh_node.telemetry.tracing import Here, Tracing, execute_tool
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.loop import ToolLoop
from agentmesh_node.tools.mcp import server
from fakes.odd_mcp_server import OddServer, tool
from node.tools.mcp.serving import TURN, alive, box, call, count, http, pids, serving, stdio
from node.tools.test_loop import Lines, says, wants
from support import eventually, run

pytestmark = pytest.mark.processes
SHOP, BOSS = Party(kind="user", name="shop", account="CALLERS"), Party(kind="agent", name="boss")


def agents(*names: str) -> list[dict[str, str]]:
    return [{"kind": "agent", "name": name} for name in names]


def test_tools_of_a_child_process_are_listed_and_run_in_one_session(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        specs = {spec.name: spec for spec in await toolbox.specs()}
        assert specs["shop__add"].description == "Add two numbers."
        assert specs["shop__add"].schema["properties"]["a"]["type"] == "integer"
        assert await call(toolbox, "add", a=1, b=2) == Result("c1", "shop__add", True, "3")
        assert await call(toolbox, "pay", amount=3) == Result("c1", "shop__pay", True, "paid 3")
        (pid,) = pids(notes)
        await toolbox.close()
        await eventually(lambda: not alive(pid), what="the end of the server")
        assert (await call(toolbox, "add", a=2, b=2)).text == "4", "a toolbox that was closed can be used again"
        await toolbox.close()
        assert len(pids(notes)) == 2

    run(check(), 60)


def test_effects_come_from_the_declaration_else_from_hints_else_once(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes, effects={"pay": "idempotent", "look": "once"}, only=("add", "put", "pay", "look", "fail")))
        names = [spec.name for spec in await toolbox.specs()]
        await toolbox.close()
        assert {name.removeprefix("shop__"): toolbox.effect(name) for name in names} == {
            "add": "pure", "put": "idempotent", "pay": "idempotent", "look": "once", "fail": "once",
        }  # fmt: skip

    run(check(), 60)


@pytest.mark.case(682)
@pytest.mark.parametrize("way", ["child", "http"])
@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ((SHOP, BOSS), [{"kind": "user", "name": "shop", "account": "CALLERS"}, *agents("boss", "a")]),
        ((UNVERIFIED, BOSS), [{"kind": "unverified"}, *agents("a")]),
        ((), [{"kind": "unverified"}, *agents("a")]),
    ],
)
def test_a_server_is_told_on_whose_behalf_it_is_called(notes: Path, way: str, chain: Chain, told: list[Any]) -> None:
    async def check(declared: McpStdio | McpHttp) -> None:
        toolbox = box(declared)
        await toolbox.specs()
        turn = structs.replace(TURN, chain=chain)
        assert json.loads((await toolbox.run(Call("c1", "shop__whose", {}), turn)).text) == told
        await toolbox.close()

    if way == "child":
        run(check(stdio(notes)), 60)
        return
    from fakes.mcp_server import made

    with serving(made(notes).streamable_http_app()) as url:
        run(check(http(url)), 60)


@pytest.mark.case(552)
def test_a_call_names_the_run_that_makes_it_in_whatever_task_the_session_lives(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await toolbox.specs()  # the session is opened outside of any attempt
        context = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
        entered = Tracing().enter(context, {}, Here("a", "A", InnerCalls(context, lambda: 1.0)))
        with execute_tool("shop__above", "c1", target=None) as ran:
            assert (await call(toolbox, "above")).text == f"00-{context.trace_id}-{ran.id}-01"
        Tracing().leave(entered)
        assert (await call(toolbox, "above")).text == "None"
        await toolbox.close()

    run(check(), 60)


def test_what_a_server_says_reaches_the_model(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await toolbox.specs()
        failed = await call(toolbox, "fail")
        assert not failed.ok
        assert "the shelf is empty" in failed.text
        assert not (await call(toolbox, "add", a="one")).ok
        assert (await toolbox.run(Call("c1", "shop__add", "1+1"), TURN)).error == "bad_input"
        assert (await call(toolbox, "picture")).text == "a cat\n[image: image/png, left out]"
        assert (await call(toolbox, "put")).text == "turn-7/c1", "an idempotent tool gets the call's key"
        assert (await call(toolbox, "nothing")).error == "unknown_tool"
        await toolbox.close()

    run(check(), 60)


def test_a_server_that_has_died_is_started_again(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await call_until_ready(toolbox)
        os.kill(pids(notes)[0], signal.SIGKILL)
        assert (await call(toolbox, "add", a=1, b=2)).text == "3", "the call may run again, so it does"
        assert len(pids(notes)) == 2
        await toolbox.close()

    run(check(), 60)


async def call_until_ready(toolbox: Toolbox) -> None:
    await toolbox.specs()
    assert (await call(toolbox, "add", a=1, b=1)).ok


def test_a_call_that_may_run_again_is_made_again_when_the_server_dies_of_it(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await toolbox.specs()
        assert (await call(toolbox, "look", fatal=True)).text == "seen"
        assert count(notes, "look") == 2
        await toolbox.close()

    run(check(), 60)


def test_a_once_call_is_not_made_again_when_the_server_dies_of_it(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes))
        await toolbox.specs()
        found = await call(toolbox, "pay", amount=0)
        assert (found.ok, found.error) == (False, "unknown_outcome")
        assert count(notes, "pay 0") == 1
        assert (await call(toolbox, "pay", amount=2)).text == "paid 2", "the next call starts the server again"
        await toolbox.close()

    run(check(), 60)


def test_a_call_that_hangs_is_cut_off_and_the_session_goes_on(notes: Path) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes, timeout_s=0.3))
        await toolbox.specs()
        assert (await call(toolbox, "hang")).error == "timeout"
        assert (await call(toolbox, "add", a=1, b=2)).ok
        assert len(pids(notes)) == 1
        await toolbox.close()

    run(check(), 60)


def test_a_child_gets_what_is_named_of_the_environment_and_no_more(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-not-for-children")
    monkeypatch.setenv("SHOP_TOKEN", "handed-on")

    async def check() -> None:
        toolbox = box(stdio(notes, env={"COLOUR": "red"}, env_from=("SHOP_TOKEN",)))
        await toolbox.specs()
        seen = (await call(toolbox, "environment")).text
        assert "COLOUR=red" in seen
        assert "SHOP_TOKEN=handed-on" in seen
        assert "sk-not-for-children" not in seen
        await toolbox.close()

    run(check(), 60)


@pytest.mark.case(422)
def test_a_server_s_tool_under_the_name_of_another_gets_one_of_its_own(notes: Path) -> None:
    async def shop__add(a: int) -> int:
        return -a

    async def check() -> None:
        toolbox = box(shop__add, stdio(notes, only=("add",)))
        own, other = await toolbox.specs()
        assert own.name == "shop__add"
        assert other.name.startswith("shop__add_")
        assert other.description == "(The server calls this tool 'add'.) Add two numbers."
        assert (await call(toolbox, "add", a=1)).text == "-1"
        assert (await toolbox.run(Call("c2", other.name, {"a": 1, "b": 2}), TURN)).text == "3"
        await toolbox.close()

    run(check(), 60)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"command": "no-such-server"}, "'no-such-server' cannot be run: No such file"),
        ({"command": "/"}, "'/' cannot be run: Permission denied"),
        ({"args": ("-c", "raise SystemExit(1)")}, "it ended before it answered"),
        ({"env_from": ("NO_SUCH_VARIABLE",)}, "NO_SUCH_VARIABLE"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_in_a_typed_error(notes: Path, broken: dict[str, Any], said: str) -> None:
    async def check() -> None:
        toolbox = box(stdio(notes, **broken))
        with pytest.raises(BackendError, match=said) as caught:
            await toolbox.specs()
        assert caught.value.details["reason"] == "tools_unavailable"
        assert "shop" in caught.value.message
        await toolbox.close()

    run(check(), 60)


# --- HTTP -------------------------------------------------------------------------------------------------------------
def watched(notes: Path, seen: list[dict[str, str]]) -> Any:
    """The server as an application; `seen` gets the headers of each request."""
    from fakes import mcp_server  # and with it the whole SDK

    application = mcp_server.made(notes).streamable_http_app(stateless_http=True)

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await application(scope, receive, send)

    return watching


def test_tools_behind_http_run_with_headers_from_the_environment(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_AUTH", "Bearer secret-token")
    seen: list[dict[str, str]] = []

    async def check(url: str) -> None:
        toolbox = box(McpHttp(name="shop", url=url, headers_from_env={"Authorization": "SHOP_AUTH"}))
        names = [spec.name for spec in await toolbox.specs()]
        assert "shop__add" in names
        assert (await call(toolbox, "add", a=1, b=2)).text == "3"
        await toolbox.close()

    with serving(watched(notes, seen)) as url:
        run(check(url), 60)
    assert seen
    assert {headers.get("authorization") for headers in seen} == {"Bearer secret-token"}


def test_an_address_that_nobody_serves_is_a_typed_error_without_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        toolbox = box(McpHttp(name="shop", url="http://user:pass-word@127.0.0.1:9/mcp"))
        with pytest.raises(BackendError) as caught:
            await toolbox.specs()
        assert caught.value.details == {"reason": "tools_unavailable", "retryable": True}
        assert "pass-word" not in str(caught.value)
        await toolbox.close()

    run(check(), 60)


# --- servers that may be absent -----------------------------------------------------------------------------------------
@pytest.mark.case(427)
def test_the_absence_of_an_optional_server_is_told_once_and_the_turn_goes_on(notes: Path) -> None:
    absent = stdio(notes, name="lost", command="no-such-server", optional=True)
    toolbox = box(absent, stdio(notes, only=("add",)))
    model = Lines(wants(("1", "shop__nothing")), says("done"))

    told: list[tuple[str, str]] = []
    turn = Turn("a", "1", 1, steps=UnjournaledSteps(key="t"), report_absence=lambda server, reason: told.append((server, reason)))

    async def check() -> None:
        async with aclosing(ToolLoop(model, toolbox).run([], "go", turn)) as events:  # type: ignore[type-var]
            assert [event async for event in events][-1].kind == "result"
        await toolbox.close()

    run(check(), 60)
    said = "the MCP server lost cannot be used: its command 'no-such-server' cannot be run: No such file or directory"
    assert model.seen[0][0] == ["user", "go", f"(Some of your tools are not there now: {said}. Go on without them.)"]
    assert "not there" not in str(model.seen[1][1:])
    assert told == [("lost", said)]


@pytest.mark.case(427)
def test_an_optional_server_that_comes_back_has_its_tools_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AGAIN_S", 0.0)
    odd = OddServer(tool("pay"))

    async def check(url: str) -> None:
        toolbox = box(McpHttp(name="shop", url=url, optional=True))
        odd.reachable = False
        assert await toolbox.specs() == ()
        assert toolbox.notice(TURN) == (
            "Some of your tools are not there now: the MCP server shop cannot be used: HTTP status 503. Go on without them."
        )
        assert (await call(toolbox, "pay")).error == "unknown_tool"
        odd.reachable = True
        assert [spec.name for spec in await toolbox.specs()] == ["shop__pay"]
        assert toolbox.notice(TURN) is None
        await toolbox.close()

    with serving(odd) as url:
        run(check(url), 60)


def test_an_optional_server_that_is_absent_is_not_asked_before_each_model_call() -> None:
    odd = OddServer(tool("pay"))
    odd.reachable = False

    async def check(url: str) -> None:
        toolbox = box(McpHttp(name="shop", url=url, optional=True))
        await toolbox.specs()
        asked = odd.asked
        assert asked > 0
        await toolbox.specs()
        assert odd.asked == asked
        await toolbox.close()

    with serving(odd) as url:
        run(check(url), 60)
