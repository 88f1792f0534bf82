"""What passes between the SDK and a server, made fit on its way: each failed request says by its code whether it may have run.

The SDK gives one error for a session that the server does not know, for a tool that has failed and for a gateway's page, and lets
one broken request end a session with all its calls. So every request over HTTP goes through `WatchedClient`, which answers
the SDK in JSON-RPC whatever came back, and every message of a server through `MendedStream`.

Importing this module imports the SDK (1.3 s): do it in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2
from mcp.client._transport import ReadStream
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, INTERNAL_ERROR, PARSE_ERROR, REQUEST_TIMEOUT, JSONRPCError, JSONRPCResponse

from agentmesh_node.tools.mcp.answers import readable
from agentmesh_node.tools.mcp.failures import LOST, NOT_MADE, SESSION_UNKNOWN, UNREADABLE

LONGEST_MESSAGE = 16 << 20
"""Most bytes of one message of a server."""
SESSION = "mcp-session-id"
NOT_PROCESSED = frozenset({400, 401, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 417, 421, 422, 426, 428, 429, 431})
"""Statuses that say that a request was not carried out. After any other failure nobody knows."""
CLOSED = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT})
"""Codes by which the SDK says that a connection ended. Servers use them too, for whatever they like."""
HOP = frozenset({"content-length", "content-encoding", "transfer-encoding"})
"""Headers that are not true of a body that was read."""


class WatchedClient(httpx2.AsyncClient):
    """A client with every answer to a request of the SDK in JSON-RPC: failures never end the session, and say what they mean."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **how: Any) -> httpx2.Response:
        if request.method == "GET":
            # The server's stream of notifications may be silent for hours.
            request.extensions = {**request.extensions, "timeout": {**request.extensions.get("timeout", {}), "read": None}}
        if request.method != "POST":
            return await super().send(request, stream=stream, **how)
        try:
            response = await super().send(request, stream=True, **how)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol):
            return _failed(request, NOT_MADE, "it cannot be reached")
        except httpx2.TransportError as error:
            return _failed(request, LOST, type(error).__name__)
        kind = response.headers.get("content-type", "").lower()
        if response.is_redirect or (response.status_code < 400 and kind.startswith("text/event-stream")):
            return response
        try:
            body = await _read(response)
        except (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError) as error:
            return _failed(request, LOST, type(error).__name__)
        finally:
            await response.aclose()
        if body is None:
            return _failed(request, UNREADABLE, f"its answer is longer than {LONGEST_MESSAGE >> 20} MiB")
        if response.status_code >= 400:
            return _refused(request, response.status_code, body)
        return _answered(request, response, body)


def _answered(request: httpx2.Request, response: httpx2.Response, body: bytes) -> httpx2.Response:
    """The same answer, with a body that has been read; an error in its place if it answers nothing."""
    if _object(request.content).get("id") is not None:
        said = _object(body)
        if response.status_code == 202:
            return _failed(request, LOST, "it took the request, and gave no answer")
        if not ({"result", "error"} & said.keys()):
            return _failed(request, UNREADABLE, "what it answered is not of the protocol")
        if isinstance(error := said.get("error"), dict) and error.get("code") in CLOSED:
            return _failed(request, INTERNAL_ERROR, str(error.get("message")), error.get("data"))
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in HOP]
    return httpx2.Response(response.status_code, headers=headers, content=body, request=request, extensions=response.extensions)


async def _read(response: httpx2.Response) -> bytes | None:
    """The body; None if it is too long."""
    parts, length = [], 0
    async for part in response.aiter_bytes():
        length += len(part)
        if length > LONGEST_MESSAGE:
            return None
        parts.append(part)
    return b"".join(parts)


def _refused(request: httpx2.Request, status: int, body: bytes) -> httpx2.Response:
    """The answer for a status that is an error's: the server's own error, if the body is one."""
    said = _object(body)
    error: dict[str, Any] = found if isinstance(found := said.get("error"), dict) else {}
    own = isinstance(error.get("code"), int) and isinstance(error.get("message"), str)
    if status == 404 and SESSION in request.headers:
        # By the protocol this status alone says it. An answer to this very request that speaks of something else is an answer.
        asked = _object(request.content).get("id")
        if not (own and asked is not None and said.get("id") == asked and "session" not in error["message"].lower()):
            return _failed(request, SESSION_UNKNOWN, "the server does not know this session")
    if own:
        code = INTERNAL_ERROR if error["code"] in CLOSED else error["code"]
        return _failed(request, code, error["message"], error.get("data"))
    return _failed(request, NOT_MADE if status in NOT_PROCESSED else LOST, f"HTTP status {status}")


def _failed(request: httpx2.Request, code: int, message: str, data: Any = None) -> httpx2.Response:
    """An error in JSON-RPC, as the answer to `request`. What is no request of JSON-RPC gets none."""
    asked = _object(request.content).get("id")
    if asked is None:
        return httpx2.Response(202, request=request)
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    body = json.dumps({"jsonrpc": "2.0", "id": asked, "error": error}).encode()
    return httpx2.Response(200, headers={"content-type": "application/json"}, content=body, request=request)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class MendedStream:
    """A stream of a server's messages, with tools' answers in a form that the SDK takes (`answers.readable`)."""

    def __init__(
        self, inner: ReadStream[SessionMessage | Exception], *, direct: bool, ended: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            direct: every message is the server's own, so none of its errors is the SDK's word for a connection that has ended.
            ended: is called when no more messages come.
        """
        self._inner = inner
        self._direct = direct
        self._ended = ended

    @property
    def last_context(self) -> Any:
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        return self._mended(await self._inner.receive())

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return self._mended(await self._inner.__anext__())
        except BaseException:
            self._ended()
            raise

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, trace)

    def _mended(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, JSONRPCResponse):
            message.result = readable(message.result)
        elif isinstance(message, JSONRPCError):
            self._judge(message.error)
        return item

    def _judge(self, error: Any) -> None:
        """Tell the server's own errors from those that the SDK's transport of streams has put in their place."""
        if error.code in CLOSED and (self._direct or not error.message.startswith("SSE stream ")):
            error.code = INTERNAL_ERROR
        elif error.code == PARSE_ERROR and not self._direct and error.message.startswith("Failed to parse "):
            error.code, error.message = UNREADABLE, "what it answered is not of the protocol"
