"""Sessions as they end, change and are begun anew: what a call that failed is worth, by what the server said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.loop import ToolLoop
from agentmesh_node.tools.mcp.session import McpSession
from fakes.odd_mcp_server import OddServer, error, tool
from node.tools.mcp.serving import TURN, box, call, count, http, odd, pids, serving, stdio
from node.tools.test_loop import Lines, read, says, wants
from support import eventually, run

pytestmark = pytest.mark.processes

JSON = "application/json"
SSE = "text/event-stream"


def names_of(specs: Any) -> list[str]:
    return [spec.name.removeprefix("shop__") for spec in specs]


# --- a session that the server does not know ----------------------------------------------------------------------------
@pytest.mark.case(420)
@pytest.mark.parametrize(
    "unknown",
    [
        lambda id: (404, JSON, error(None, -32600, "Session not found")),
        lambda id: (404, JSON, error(None, -32001, "Session not found")),
        lambda id: (404, JSON, error(id, -32001, "Session not found")),
        lambda id: (404, JSON, error("server-error", -32000, "gone")),
        lambda id: (404, JSON, ""),
        lambda id: (404, "text/html", "<h1>Not Found</h1>"),
        lambda id: (404, "", ""),
    ],
    ids=["sdk", "typescript", "own id", "other id", "no body", "page", "nothing"],
)
def test_a_session_that_the_server_has_lost_is_begun_anew_and_the_call_made_again(unknown: Callable[[Any], Any]) -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.unknown = unknown
        server.lose_sessions()
        assert await call(toolbox, "pay", amount=5) == Result("c1", "shop__pay", True, "done")
        assert server.calls == [("pay", {"amount": 5})], "it fires once, and was made once"
        assert server.opened == 2
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


@pytest.mark.case(420)
@pytest.mark.parametrize(
    ("reply", "found", "made"),
    [
        (lambda id, *_: (404, JSON, error(id, -32602, "no such account")), "raised", 1),
        (lambda id, *_: (200, JSON, error(id, -32001, "Session not found")), "raised", 1),
        (lambda id, *_: (400, JSON, error(id, -32602, "bad amount")), "raised", 1),
        (lambda id, *_: (400, "text/plain", "bad"), "tools_unavailable", 1),
        (lambda id, *_: (401, "text/plain", "who are you"), "tools_unavailable", 1),
        (lambda id, *_: (500, "text/plain", "oops"), "unknown_outcome", 1),
        (lambda id, *_: (502, "text/html", "<h1>Bad Gateway</h1>"), "unknown_outcome", 1),
        (lambda id, *_: (200, JSON, "{not json"), "bad_result", 1),
        (lambda id, *_: (200, "text/html", "<h1>Welcome</h1>"), "bad_result", 1),
        (lambda id, *_: (200, "", ""), "bad_result", 1),
        (lambda id, *_: (202, JSON, ""), "unknown_outcome", 1),
        (lambda id, *_: (200, SSE, "data: {not json\n\n"), "bad_result", 1),
        (lambda id, *_: (200, SSE, ": and nothing more\n\n"), "unknown_outcome", 1),
        (lambda id, *_: (200, SSE, f"data: {error(id, -32000, 'no money')}\n\n"), "raised", 1),
        (lambda id, *_: (200, SSE, f"data: {error(id, -32001, 'too late')}\n\n"), "raised", 1),
        (lambda id, *_: {"paid": 5}, "bad_result", 1),
        (lambda id, *_: {"content": [{"type": "text", "text": "no money"}], "isError": True}, "raised", 1),
    ],
    ids=[
        "404 of its own",
        "-32001",
        "400",
        "400 page",
        "401",
        "500",
        "502",
        "no json",
        "page",
        "nothing",
        "202",
        "stream of no json",
        "empty stream",
        "stream of -32000",
        "stream of -32001",
        "no result",
        "isError",
    ],
)
def test_any_other_error_of_a_once_call_is_an_end_and_no_call_is_made_again(reply: Any, found: str, made: int) -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.on_call = reply
        result = await call(toolbox, "pay", amount=5)
        assert (result.ok, result.error) == (False, found), result.text
        assert len(server.calls) == made
        assert server.opened == 1, "one call's error ends no session"
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


def test_a_server_that_knows_none_of_its_sessions_is_not_asked_for_ever() -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.on_call = lambda id, *_: (404, "", "")
        result = await call(toolbox, "pay")
        assert (result.ok, result.error) == (False, "tools_unavailable")
        assert "this call was not made: the MCP server shop cannot be used: the server does not know this session" in result.text
        assert len(server.calls) == 3
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


@pytest.mark.case(420)
def test_a_session_that_is_begun_anew_ends_no_call_that_is_being_made() -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.held = "cook"
        cooking = asyncio.create_task(call(toolbox, "cook"))
        await eventually(lambda: server.calls == [("cook", {})], what="the first call")
        server.lose_sessions()
        assert (await call(toolbox, "pay", amount=5)).ok
        assert server.opened == 2
        server.held = ""
        assert await cooking == Result("c1", "shop__cook", True, "done")
        await toolbox.close()

    server = OddServer(tool("pay"), tool("cook"))
    with serving(server) as url:
        run(check(url, server), 60)


def test_servers_are_reached_by_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        toolbox = box(http("http://shop.invalid/mcp"))
        assert names_of(await toolbox.specs()) == ["pay"]
        assert (await call(toolbox, "pay")).ok
        await toolbox.close()

    with serving(OddServer(tool("pay"))) as url:
        monkeypatch.setenv("HTTP_PROXY", url.removesuffix("/mcp"))
        run(check(), 60)


@pytest.mark.case(420)
def test_the_sdk_s_own_server_that_lost_a_session_is_told_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()

    async def check(url: str, seen: set[bytes]) -> None:
        import httpx2

        toolbox = box(http(url))
        await toolbox.specs()
        async with httpx2.AsyncClient() as client:
            for session in list(seen):
                ended = await client.delete(url, headers={"mcp-session-id": session.decode()})
                assert ended.status_code == 200
        assert (await call(toolbox, "pay", amount=3)).text == "paid 3"
        assert count(notes, "pay 3") == 1
        await toolbox.close()

    application, seen = of_2025(notes)
    with serving(application) as url:
        run(check(url, seen), 60)


def of_2025(notes: Path) -> tuple[Any, set[bytes]]:
    """The SDK's server for clients that know no newer protocol, which has sessions; and the ids of these."""
    from fakes import mcp_server

    application = mcp_server.made(notes).streamable_http_app()
    seen: set[bytes] = set()

    async def older(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        seen.update(value for name, value in scope["headers"] if name == b"mcp-session-id")
        message = await receive()
        if b"server/discover" in message.get("body", b""):
            body = error(json.loads(message["body"])["id"], -32601, "no such method").encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", JSON.encode())]})
            await send({"type": "http.response.body", "body": body})
            return
        given = [message]

        async def again() -> Any:
            return given.pop() if given else await receive()

        await application(scope, again, send)

    return older, seen


# --- a server that is gone ------------------------------------------------------------------------------------------------
async def look_around() -> str:
    return "seen"


@pytest.mark.case(424)
def test_a_call_to_a_server_that_is_gone_fails_was_not_made_and_names_what_there_is() -> None:
    async def check(served: Any) -> None:
        with served as url:
            toolbox = box(look_around, http(url))
            await toolbox.specs()
        result = await call(toolbox, "pay", amount=5)
        assert (result.ok, result.error) == (False, "tools_unavailable")
        assert result.text == (
            "this call was not made: the MCP server shop cannot be used: it cannot be reached; there are: look_around"
        )
        assert names_of(await toolbox.specs()) == ["look_around", "pay"], "it may come back"
        await toolbox.close()

    run(check(serving(OddServer(tool("pay")))), 60)


@pytest.mark.case(424)
def test_a_turn_goes_on_when_a_server_is_gone() -> None:
    async def check(served: Any) -> None:
        with served as url:
            toolbox = box(http(url))
            await toolbox.specs()
        model = Lines(wants(("1", "shop__pay")), says("they are closed"))
        events = await read(ToolLoop(model, toolbox))
        assert [event.kind for event in events[-4:]] == ["tool_result", "text", "usage", "result"]
        assert events[-4].data["ok"] is False
        await toolbox.close()

    run(check(serving(OddServer(tool("pay")))), 60)


@pytest.mark.case(424)
@pytest.mark.parametrize("says_so", [lambda id, *_: (200, JSON, error(id, -32602, "Unknown tool: pay")), None])
def test_a_call_of_a_tool_that_the_server_has_no_longer_fails_with_the_new_list(says_so: Any) -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.tools = [tool("charge"), tool("refund")]
        gone = {"content": [{"type": "text", "text": "Unknown tool: pay"}], "isError": True}
        server.on_call = says_so or (lambda id, *_: gone)
        result = await call(toolbox, "pay", amount=5)
        assert (result.ok, result.error) == (False, "unknown_tool")
        assert result.text == ("the MCP server shop has no tool shop__pay any more; there are: shop__charge, shop__refund")
        assert names_of(await toolbox.specs()) == ["charge", "refund"]
        again = await call(toolbox, "pay", amount=5)
        assert (again.error, len(server.calls)) == ("unknown_tool", 1)
        assert toolbox.effect("shop__pay") == "once", "a call of it that was in flight may have run"
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


def test_a_session_that_is_begun_anew_brings_the_tools_that_there_are_now() -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.lose_sessions()
        server.tools = [tool("charge")]
        assert (await call(toolbox, "pay")).error == "unknown_tool"
        assert server.calls == []
        assert names_of(await toolbox.specs()) == ["charge"]
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


# --- lists that change ------------------------------------------------------------------------------------------------
async def rebuilt(toolbox: Toolbox) -> None:
    """The server replaces `add` by `sum`, and the next model call sees it."""
    assert "add" in names_of(await toolbox.specs())
    assert (await call(toolbox, "rebuild")).ok

    async def followed() -> bool:
        return "sum" in names_of(await toolbox.specs())

    await eventually(followed, what="the new list")  # the notification is on its way
    assert "add" not in names_of(await toolbox.specs())
    assert (await toolbox.run(Call("c2", "shop__sum", {"a": 1, "b": 2}), TURN)).text == "3"
    await toolbox.close()


@pytest.mark.case(423)
def test_a_list_that_a_child_has_changed_is_followed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    run(rebuilt(box(stdio(notes))), 60)
    assert len(pids(notes)) == 1


@pytest.mark.case(423)
@pytest.mark.parametrize("older", [False, True], ids=["2026", "2025"])
def test_a_list_that_a_server_behind_http_has_changed_is_followed(tmp_path: Path, older: bool) -> None:
    from fakes import mcp_server

    notes = tmp_path / "notes"
    notes.touch()
    application = of_2025(notes)[0] if older else mcp_server.made(notes).streamable_http_app()
    with serving(application) as url:
        run(rebuilt(box(http(url))), 60)


@pytest.mark.case(423)
def test_the_next_model_call_of_a_turn_has_the_new_list(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    seen: list[list[str]] = []

    class Looking(Lines):
        async def answer(self, history: Any, tools: Any) -> Any:
            while len(history) > 1 and "sum" not in names_of(tools):
                tools = await toolbox.specs()  # the notification is on its way
            seen.append(names_of(tools))
            async for part in super().answer(history, tools):
                yield part

    toolbox = box(stdio(notes))

    async def check() -> None:
        await read(ToolLoop(Looking(wants(("1", "shop__rebuild")), says("rebuilt")), toolbox))
        await toolbox.close()

    run(check(), 60)
    assert ["add" in names for names in seen] == [True, False]


@pytest.mark.case(423)
def test_a_new_list_that_cannot_be_read_ends_no_turn() -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url, max_tools=2))
        await toolbox.specs()
        session = toolbox._servers[0]._session
        assert isinstance(session, McpSession)
        server.tools = [tool(f"t{n}") for n in range(3)]
        session.stale = True
        assert names_of(await toolbox.specs()) == ["pay"]
        server.tools = server.tools[:2]
        assert names_of(await toolbox.specs()) == ["t0", "t1"], "it is asked for again"
        await toolbox.close()

    server = OddServer(tool("pay"))
    with serving(server) as url:
        run(check(url, server), 60)


# --- children that are odd ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [-32000, -32001])
def test_an_error_of_a_child_is_its_own_word_whatever_its_code(code: int) -> None:
    async def check() -> None:
        toolbox = box(odd("rude"))
        await toolbox.specs()
        found = await call(toolbox, "pay", code=code)
        assert (found.error, found.text) == ("raised", "no money")
        await toolbox.close()

    run(check(), 60)


@pytest.mark.case(421)
def test_structured_content_without_content_reaches_the_model() -> None:
    async def check(url: str, server: OddServer) -> None:
        toolbox = box(http(url))
        await toolbox.specs()
        server.on_call = lambda *_: {"structuredContent": {"paid": 5}}
        assert (await call(toolbox, "pay")).text == '{"paid":5}'
        server.on_call = lambda *_: {"structuredContent": {"paid": "much"}, "content": None}
        assert (await call(toolbox, "pay")).text == '{"paid":"much"}', "its schema says that this is a number"
        await toolbox.close()

    server = OddServer(tool("pay", outputSchema={"type": "object", "properties": {"paid": {"type": "integer"}}}))
    with serving(server) as url:
        run(check(url, server), 60)


@pytest.mark.case(428)
def test_a_list_without_end_ends_the_turn_at_its_bound_with_what_happened() -> None:
    async def check() -> None:
        toolbox = box(odd("endless"))
        events = await read(ToolLoop(Lines(says("never")), toolbox))
        (event,) = events
        assert event.data["reason"] == "tools_unavailable"
        assert event.data["retryable"] is False
        assert event.data["message"] == (
            "the MCP server shop cannot be used: the list of its tools has more than 100 pages; set max_pages in its declaration"
        )
        await toolbox.close()

    run(check(), 60)
