"""What passes between the SDK and a server, made fit on its way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCResponse

from agentmesh_node.tools.mcp import wire
from agentmesh_node.tools.mcp.failures import LOST, NOT_MADE, SESSION_UNKNOWN, UNREADABLE
from agentmesh_node.tools.mcp.wire import MendedStream, WatchedClient

ASKED = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}


class Given(httpx2.AsyncBaseTransport):
    def __init__(self, reply: Callable[[httpx2.Request], httpx2.Response]) -> None:
        self.reply = reply

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.reply(request)


def sent(reply: Callable[[httpx2.Request], httpx2.Response], asked: Any = ASKED, **headers: str) -> httpx2.Response:
    async def check() -> httpx2.Response:
        async with WatchedClient(transport=Given(reply)) as client:
            response = await client.send(client.build_request("POST", "http://x/mcp", json=asked, headers=headers), stream=True)
            await response.aread()
            return response

    return asyncio.run(check())


def code(response: httpx2.Response) -> int:
    assert response.status_code == 200
    assert response.json()["id"] == 7
    found = response.json()["error"]["code"]
    assert isinstance(found, int)
    return found


def raising(error: type[Exception]) -> Callable[[httpx2.Request], httpx2.Response]:
    def reply(request: httpx2.Request) -> httpx2.Response:
        raise error("x")

    return reply


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (httpx2.ConnectError, NOT_MADE),
        (httpx2.ConnectTimeout, NOT_MADE),
        (httpx2.ReadError, LOST),
        (httpx2.ReadTimeout, LOST),
        (httpx2.RemoteProtocolError, LOST),
        (httpx2.WriteError, LOST),
    ],
)
def test_a_broken_connection_is_the_end_of_one_request(error: type[Exception], found: int) -> None:
    assert code(sent(raising(error))) == found


@pytest.mark.parametrize(("status", "found"), [(400, NOT_MADE), (401, NOT_MADE), (429, NOT_MADE), (500, LOST), (504, LOST)])
def test_a_status_says_whether_the_request_was_carried_out(status: int, found: int) -> None:
    assert code(sent(lambda _: httpx2.Response(status, text="<html>"))) == found


def test_a_404_is_about_the_session_only_if_there_is_one() -> None:
    assert code(sent(lambda _: httpx2.Response(404), **{"mcp-session-id": "s"})) == SESSION_UNKNOWN
    assert code(sent(lambda _: httpx2.Response(404))) == NOT_MADE


def test_what_is_answered_passes_unchanged_but_for_codes_of_the_sdk_s_own() -> None:
    answer = {"jsonrpc": "2.0", "id": 7, "result": {"tools": []}}
    passed = sent(lambda _: httpx2.Response(200, json=answer, headers={"mcp-session-id": "s"}))
    assert passed.json() == answer
    assert passed.headers["mcp-session-id"] == "s"
    stream = sent(lambda _: httpx2.Response(200, text="data: x", headers={"content-type": "text/event-stream"}))
    assert stream.text == "data: x"
    refused = {"jsonrpc": "2.0", "id": 7, "error": {"code": -32022, "message": "v", "data": {"supported": ["x"]}}}
    assert sent(lambda _: httpx2.Response(400, json=refused)).json() == refused
    closed = {"jsonrpc": "2.0", "id": 7, "error": {"code": -32000, "message": "no money"}}
    for reply in (lambda _: httpx2.Response(200, json=closed), lambda _: httpx2.Response(400, json=closed)):
        assert sent(reply).json()["error"] == {"code": -32603, "message": "no money"}


def test_an_answer_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LONGEST_MESSAGE", 100)
    assert code(sent(lambda _: httpx2.Response(200, json={"x": "y" * 200}))) == UNREADABLE


def test_a_notification_that_is_refused_is_no_failure() -> None:
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert sent(lambda _: httpx2.Response(404), told).status_code == 202
    assert sent(raising(httpx2.ReadError), told).status_code == 202


def test_messages_of_a_server_are_mended_and_their_end_is_noted() -> None:
    async def check() -> None:
        into, out = anyio.create_memory_object_stream[SessionMessage | Exception](9)
        ended: list[bool] = []
        stream = MendedStream(out, direct=True, ended=lambda: ended.append(True))
        error = JSONRPCError.model_validate({"jsonrpc": "2.0", "id": 2, "error": {"code": -32000, "message": "no money"}})
        for message in (
            JSONRPCResponse(jsonrpc="2.0", id=1, result={"structuredContent": {"a": 1}}),
            error,
            JSONRPCNotification(jsonrpc="2.0", method="notifications/tools/list_changed"),
        ):
            into.send_nowait(SessionMessage(message))
        into.send_nowait(failure := ValueError("x"))
        into.close()
        async with stream:
            seen = [item async for item in stream]
        first, second, third, fourth = seen
        assert isinstance(first, SessionMessage)
        assert isinstance(first.message, JSONRPCResponse)
        assert json.dumps(first.message.result) == json.dumps(
            {"content": [{"type": "text", "text": '{"a":1}'}], "isError": False}
        )
        assert isinstance(second, SessionMessage)
        assert isinstance(second.message, JSONRPCError)
        assert second.message.error.code == -32603
        assert isinstance(third, SessionMessage)
        assert fourth is failure
        assert ended == [True]

    asyncio.run(check())
