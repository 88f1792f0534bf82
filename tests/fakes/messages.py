"""A model server on loopback, Messages API and Chat Completions: real HTTP and SSE, scripted answers, and a count of what was
asked.

    with FakeMessages(lambda call: "hello") as fake:
        AsyncAnthropic(base_url=fake.url, api_key="x", ...)
        fake.calls                       # what came, in order

A script is a function of the `Call` (it runs in the request's thread and may block, to hold an answer back), or a list of
items, used in order; the last one stays. An item is text, `Answer(...)` (text, thinking, tool calls, slow tokens, a stream
that breaks), or `Refusal(...)` (429, 529, any status).

`python -m fakes.messages [--port N] [--script module:attribute | --json '[...]']` (with tests/ as the working directory) prints
its URL and serves until it is ended; `GET /_fake/calls` gives what it was asked, `POST /_fake/script` a new list of items.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self

import msgspec

from fakes import chat
from fakes.answers import KINDS, MODEL, Answer, Item, Refusal, Tool, error_body, events_of, items, message_of, model_body
from fakes.http_server import CrowdServer

__all__ = ["Answer", "Call", "FakeMessages", "Item", "Refusal", "Script", "Tool", "text_of"]

type Script = Callable[[Call], Item] | Sequence[Item]


class Call(msgspec.Struct, frozen=True):
    """One request for an answer."""

    number: int
    """Place among the calls of this server, from 0."""
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body.get("messages", [])
        return found

    @property
    def is_chat(self) -> bool:
        """Whether it is of Chat Completions."""
        return self.path.endswith("/chat/completions")

    @property
    def prompt(self) -> str:
        """The text of the newest user message that has any."""
        users = (text_of(m) for m in reversed(self.messages) if m.get("role") == "user")
        return next((text for text in users if text), "")

    @property
    def results(self) -> list[dict[str, Any]]:
        """The tool results in the last message; of Chat Completions, in the last messages."""
        if self.is_chat:
            return list(itertools.takewhile(lambda message: message.get("role") == "tool", reversed(self.messages)))[::-1]
        content = self.messages[-1].get("content") if self.messages else None
        return [b for b in content if b.get("type") == "tool_result"] if isinstance(content, list) else []

    @property
    def answers(self) -> int:
        """How many of the model's answers the history holds: which step of the conversation this is."""
        return sum(1 for message in self.messages if message.get("role") == "assistant")

    @property
    def conversation(self) -> str:
        """The session that a coding client names, else the text of the first user message."""
        named = self.headers.get("x-claude-code-session-id")
        return named or (text_of(self.messages[0]) if self.messages else "")


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, its blocks joined."""
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if block.get("type") == "text")


class FakeMessages:
    """The server. Use as a context manager; it runs on threads of its own."""

    def __init__(self, script: Script = (), *, port: int = 0) -> None:
        """
        Args:
            script: a function of the call, or a list of items; without one the answer is the prompt.
            port: 0 is a free one.
        """
        self._lock = threading.Condition()
        self._script: Script = script
        self._place = 0
        self._ids = itertools.count(1)
        self._calls: list[Call] = []
        self._paths: Counter[str] = Counter()
        self.closing = threading.Event()
        """Set when the server closes: a script that blocks should wait for this as well."""
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    # --- what a test reads --------------------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        """Value for ANTHROPIC_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def calls(self) -> list[Call]:
        """The requests for an answer so far, refused ones included."""
        with self._lock:
            return list(self._calls)

    @property
    def paths(self) -> Counter[str]:
        """How many requests of each kind came: `POST /v1/messages`, `HEAD /`, ... (without query)."""
        with self._lock:
            return Counter(self._paths)

    @property
    def conversations(self) -> Counter[str]:
        """How many answers each conversation asked for."""
        return Counter(call.conversation for call in self.calls)

    def wait_for(self, count: int, timeout: float = 30.0) -> list[Call]:
        """The calls, once there are `count`."""
        with self._lock:
            if not self._lock.wait_for(lambda: len(self._calls) >= count, timeout):
                raise AssertionError(f"{len(self._calls)} calls within {timeout} s, not {count}")
            return list(self._calls)

    def play(self, script: Script) -> None:
        """Go on with another script, from its head."""
        with self._lock:
            self._script, self._place = script, 0

    # --- what a request does ------------------------------------------------------------------------------------------
    def saw(self, method: str, path: str) -> None:
        with self._lock:
            self._paths[f"{method} {path}"] += 1

    def next(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Item:
        """Note a call, and find its answer."""
        with self._lock:
            call = Call(len(self._calls), path, headers, body)
            self._calls.append(call)
            self._lock.notify_all()
            script = self._script
            if not callable(script):
                if not script:
                    return call.prompt or "ok"
                place = min(self._place, len(script) - 1)
                self._place += 1
                return script[place]
        return script(call)

    def tool_id(self) -> str:
        with self._lock:
            return f"toolu_{next(self._ids):06d}"

    # --- life ---------------------------------------------------------------------------------------------------------
    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """End all connections and the server."""
        self.closing.set()
        self._server.shutdown()
        self._server.cut_all()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Server(CrowdServer):
    """Knows its open connections, so that closing it ends them."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        with self._lock:
            for each in self._open:
                _cut(each)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-answer is part of what is tested."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(fake: FakeMessages) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_of = fake

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: FakeMessages

    def log_message(self, format: str, *args: Any) -> None:
        """Tests keep quiet."""

    def do_HEAD(self) -> None:
        self.server_of.saw("HEAD", self._path())
        self._send(200, b"")

    def do_GET(self) -> None:
        path = self._path()
        self.server_of.saw("GET", path)
        if path == "/_fake/calls":
            calls = [{**msgspec.to_builtins(c), "conversation": c.conversation} for c in self.server_of.calls]
            self._json(200, {"calls": calls, "paths": self.server_of.paths})
        elif path.startswith("/v1/models/"):
            self._json(200, model_body(path.rpartition("/")[2]))
        elif path == "/v1/models":
            self._json(200, {"data": [model_body(MODEL)], "has_more": False, "first_id": MODEL, "last_id": MODEL})
        else:
            self._json(200, {})

    def do_POST(self) -> None:
        path = self._path()
        raw = self._body()
        self.server_of.saw("POST", path)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            self._refuse(Refusal(status=400, message="the body is no JSON"))
            return
        if path == "/v1/messages/count_tokens":
            self._json(200, {"input_tokens": max(1, len(raw) // 4)})
        elif path in ("/v1/messages", "/v1/chat/completions"):
            if body:
                self._answer(path, body)
            else:  # it is asked whether it speaks this protocol
                self._json(400, {"error": {"type": "invalid_request_error", "message": "messages: Field required"}})
        elif path == "/_fake/script":
            self.server_of.play(items(body))
            self._json(200, {})
        else:  # telemetry and the like of coding clients
            self._json(200, {})

    def _answer(self, path: str, body: dict[str, Any]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            item = self.server_of.next(path, headers, body)
        except Exception as error:  # noqa: BLE001 - a script that fails must fail its test, not hang it
            self._refuse(Refusal(status=400, message=f"the script raised {type(error).__name__}: {error}"))
            return
        if isinstance(item, Refusal):
            self._refuse(item)
            return
        answer = Answer(text=item) if isinstance(item, str) else item
        if path.endswith("/chat/completions"):
            self._complete(answer, body)
            return
        message = message_of(answer, body.get("model", MODEL), self.server_of.tool_id)
        if body.get("stream"):
            self._stream(answer, message)
        else:
            time.sleep(answer.delay_s)
            self._json(200, message)

    def _complete(self, answer: Answer, body: dict[str, Any]) -> None:
        """Answer in the form of Chat Completions."""
        completion = chat.completion_of(answer, body.get("model", MODEL), self.server_of.tool_id)
        if not body.get("stream"):
            time.sleep(answer.delay_s)
            self._json(200, completion)
            return
        self._open_stream(completion["id"])
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        for index, data in enumerate(chat.chunks_of(completion, answer.chunk, usage=usage)):
            if answer.break_after is not None and index >= answer.break_after:
                self._break(answer.how)
                return
            if answer.delay_s and self.server_of.closing.wait(answer.delay_s):
                return
            self._chunk(f"data: {data}\n\n")
        self._chunk("")

    def _open_stream(self, id: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", f"req_{id}")
        self.end_headers()

    def _stream(self, answer: Answer, message: dict[str, Any]) -> None:
        self._open_stream(message["id"])
        for index, (name, data) in enumerate(events_of(message, answer.chunk)):
            if answer.break_after is not None and index >= answer.break_after:
                self._break(answer.how)
                return
            if name == "content_block_delta" and answer.delay_s and self.server_of.closing.wait(answer.delay_s):
                return
            self._chunk(f"event: {name}\ndata: {json.dumps(data)}\n\n")
        self._chunk("")

    def _break(self, how: str) -> None:
        if how == "cut":
            self.close_connection = True
            _cut(self.connection)
            return
        if how == "error":
            self._chunk(f"event: error\ndata: {json.dumps(error_body('overloaded_error', 'Overloaded'))}\n\n")
        if how == "garbage":
            self._chunk("event: content_block_delta\ndata: {not json\n\n")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, refusal: Refusal) -> None:
        headers = dict(refusal.headers)
        if refusal.retry_after_s is not None:
            headers["retry-after"] = f"{refusal.retry_after_s:g}"
        kind = refusal.kind or KINDS.get(refusal.status, "api_error")
        is_chat = self._path().endswith("/chat/completions")
        body = chat.chat_error(refusal.status, kind, refusal.message) if is_chat else error_body(kind, refusal.message)
        self._send(refusal.status, json.dumps(body).encode(), headers)

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return b"".join(iter(self._read_chunk, b""))
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _read_chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline().partition(b";")[0], 16))
        self.rfile.readline()
        return data

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve as a process."""
    parser = argparse.ArgumentParser(prog="python -m fakes.messages", description="A fake Messages API server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", help="module:attribute, a function of the call or a list of items")
    parser.add_argument("--json", help="a list of items as JSON")
    given = parser.parse_args()
    script: Script = items(json.loads(given.json)) if given.json else ()
    if given.script:
        module, _, attribute = given.script.partition(":")
        script = getattr(importlib.import_module(module), attribute)
    with FakeMessages(script, port=given.port) as fake:
        print(fake.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
