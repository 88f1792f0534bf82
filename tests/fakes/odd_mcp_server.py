"""An MCP server without the SDK, which answers as its test says: what other people's servers do and the SDK's own does not.

It speaks the protocol of 2025 over HTTP, with sessions, as an ASGI application. Or it is a child process:
`python odd_mcp_server.py NAME` runs the one of `CHILDREN` over standard input and output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

type Json = dict[str, Any]
type Reply = Json | tuple[int, str, str]
"""A result; or a status, a content type and a body as they are sent."""

SESSION = b"mcp-session-id"


def tool(name: str, **more: Any) -> Json:
    return {"name": name, "description": f"The tool {name}.", "inputSchema": {"type": "object"}, **more}


def error(id: Any, code: int, message: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})


class OddServer:
    """The server. Its attributes may be changed at any time."""

    def __init__(self, *tools: Json) -> None:
        self.tools = list(tools)
        self.sessions: set[str] = set()
        self.opened = 0
        self.listed = 0
        self.calls: list[tuple[str, Json]] = []
        self.pages: Callable[[str | None], Json] = lambda cursor: {"tools": self.tools}
        """The result of `tools/list` at a cursor."""
        self.on_call: Callable[[Any, str, Json], Reply] = lambda id, name, params: {"content": [{"type": "text", "text": "done"}]}
        """The reply to a call, by its id, the tool's name and the parameters."""
        self.unknown: Callable[[Any], Reply] = lambda id: (404, "application/json", error(None, -32600, "Session not found"))
        """The reply to a request of the given id in a session that the server does not know."""
        self.reachable = True
        """Whether it answers, and not a gateway in front of it."""
        self.held = ""
        """The tool whose calls are not answered now."""
        self.asked = 0

    def lose_sessions(self) -> None:
        self.sessions.clear()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("it has no lifespan")
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = dict(scope["headers"])
        self.asked += 1
        if not self.reachable:
            await self._send(send, 503, "text/html", "<h1>Service Unavailable</h1>")
            return
        if scope["method"] != "POST":
            await self._send(send, 200 if scope["method"] == "DELETE" else 405, "text/plain", "")
            return
        asked = json.loads(body)
        if "id" not in asked:
            await self._send(send, 202, "text/plain", "")
            return
        session = headers.get(SESSION, b"").decode()
        if asked["method"] == "initialize":
            self.opened += 1
            session = f"s{self.opened}"
            self.sessions.add(session)
        elif session and session not in self.sessions:
            await self._answer(send, asked["id"], self.unknown(asked["id"]))
            return
        reply = self.reply(asked)
        while self.held == asked.get("params", {}).get("name"):  # noqa: ASYNC110 - the test is in another thread
            await asyncio.sleep(0.01)
        await self._answer(send, asked["id"], reply, session)

    def reply(self, asked: Json) -> Reply:
        params = asked.get("params") or {}
        match asked["method"]:
            case "initialize":
                info = {"name": "odd", "version": "1"}
                return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            case "tools/list":
                self.listed += 1
                return self.pages(params.get("cursor"))
            case "tools/call":
                self.calls.append((params["name"], params.get("arguments") or {}))
                return self.on_call(asked["id"], params["name"], params)
        return 200, "application/json", error(asked["id"], -32601, "no such method")

    async def _answer(self, send: Any, id: Any, reply: Reply, session: str = "") -> None:
        if isinstance(reply, dict):
            reply = 200, "application/json", json.dumps({"jsonrpc": "2.0", "id": id, "result": reply})
        await self._send(send, *reply, session=session)

    async def _send(self, send: Any, status: int, kind: str, body: str, session: str = "") -> None:
        headers = [(b"content-type", kind.encode()), *([(SESSION, session.encode())] if session else ())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


def endless() -> OddServer:
    """A list that never ends, with a new cursor for each page."""
    server = OddServer()
    server.pages = lambda cursor: {"tools": [tool(f"t{cursor}")], "nextCursor": str(int(cursor or "0") + 1)}
    return server


def rude() -> OddServer:
    """Its errors have the codes that the SDK gives to connections that ended and to requests that timed out."""
    server = OddServer(tool("pay"))

    def refuse(id: Any, name: str, params: Json) -> Reply:
        return 200, "", error(id, params["arguments"]["code"], "no money")

    server.on_call = refuse
    return server


def talkative() -> OddServer:
    """A line without end."""
    server = OddServer(tool("pay"))

    def talk(id: Any, name: str, params: Json) -> Reply:
        while True:
            sys.stdout.write("x" * (1 << 20))
            sys.stdout.flush()

    server.on_call = talk
    return server


CHILDREN = {"endless": endless, "rude": rude, "talkative": talkative}


def main(server: OddServer) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue
        reply = server.reply(asked)
        if isinstance(reply, tuple):
            sys.stdout.write(f"{reply[2]}\n")
        else:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": reply}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(CHILDREN[sys.argv[1]]())
