"""A model server on loopback that speaks the Responses API with server-sent events, as far as Codex needs it.

In process it is a context manager whose `script` says what each request gets; `python -m fakes.responses` runs it alone and
prints its address. It keeps every request, so that a test can count calls and look at what the model was shown.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from fakes.http_server import CrowdServer

type Json = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """An assistant message, streamed in `pieces` deltas with `gap_s` seconds before each."""

    text: str
    pieces: int = 2
    gap_s: float = 0.0


@dataclass(frozen=True)
class Thought:
    """A reasoning item with a summary."""

    text: str


@dataclass(frozen=True)
class Call:
    """A function call; `arguments` are sent as JSON, or as they are when they are text (which may be malformed)."""

    name: str
    arguments: Json | str
    id: str = ""
    kind: Literal["function_call", "custom_tool_call"] = "function_call"


def shell(command: str, *, wait_ms: int = 10_000, id: str = "") -> Call:
    """Run a shell command by Codex's own tool, which waits for it at most `wait_ms` milliseconds."""
    return Call("exec_command", {"cmd": command, "yield_time_ms": wait_ms}, id)


type Item = Text | Thought | Call


@dataclass(frozen=True)
class Reply:
    """What one request gets: a stream of `items`, or an HTTP error.

    `end` says how the stream ends: `completed`, as it should; `failed`, with the error `failure`; `incomplete`, at the limit of
    its tokens; `cut`, the connection breaks behind the items; `open`, nothing more comes until the client leaves; `garbage`,
    bytes that are no event.
    """

    items: tuple[Item, ...] = ()
    end: Literal["completed", "failed", "incomplete", "cut", "open", "garbage"] = "completed"
    usage: tuple[int, int, int] = (11, 3, 2)
    """Input tokens (cached ones included), output tokens, cached input tokens."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    failure: Json = field(default_factory=lambda: {"code": "server_error", "message": "it broke"})

    @staticmethod
    def limited(retry_after_s: float) -> Reply:
        """429, to be tried again after so many seconds."""
        error = {"type": "rate_limit_exceeded", "code": "rate_limit_exceeded", "message": "Rate limit reached"}
        return Reply(status=429, headers={"retry-after": f"{retry_after_s:g}"}, failure=error)


def say(text: str, **how: Any) -> Reply:
    """One message."""
    return Reply((Text(text),), **how)


type Script = Sequence[Reply] | Callable[[Json], Reply]
"""Replies in order, the last one for ever; or a function of the request's body."""


@dataclass(frozen=True)
class Seen:
    """One request for a response."""

    body: Json
    headers: dict[str, str]

    @property
    def inputs(self) -> list[Json]:
        """The conversation that the model was shown."""
        return list(self.body.get("input", ()))

    def texts(self, role: str) -> list[str]:
        """What `role` (`user`, `assistant`, `developer`) says in it, without what Codex tells of the surroundings."""
        said = (item for item in self.inputs if item.get("type", "message") == "message" and item.get("role") == role)
        texts = (str(part.get("text", "")) for item in said for part in item.get("content", ()))
        return [text for text in texts if not text.startswith("<environment_context>")]

    def outputs(self) -> list[str]:
        """The results of tool calls in it, as text."""
        return [_plain(item.get("output")) for item in self.inputs if str(item.get("type", "")).endswith("_call_output")]


class ResponsesServer:
    """Use as a context manager. Every request for a response is kept in `requests`."""

    def __init__(self, script: Script = (), *, port: int = 0) -> None:
        self.script: Script = script or (say("hello"),)
        self._lock = threading.Condition()
        self._requests: list[Seen] = []
        self._ids = itertools.count(1)
        self.closing = threading.Event()
        self._server = CrowdServer(("127.0.0.1", port), _handler(self))
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The provider's base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def requests(self) -> list[Seen]:
        with self._lock:
            return list(self._requests)

    @property
    def calls(self) -> int:
        """How many responses were asked for."""
        with self._lock:
            return len(self._requests)

    def wait_for_calls(self, count: int, timeout: float = 30.0) -> None:
        """Return once `count` responses were asked for."""
        with self._lock:
            if not self._lock.wait_for(lambda: len(self._requests) >= count, timeout):
                raise AssertionError(f"{len(self._requests)} calls within {timeout} s, not {count}")

    def take(self, seen: Seen) -> Reply:
        """Keep a request; returns what it gets."""
        with self._lock:
            place = len(self._requests)
            self._requests.append(seen)
            self._lock.notify_all()
        script = self.script
        return script(seen.body) if callable(script) else script[min(place, len(script) - 1)]

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._ids)}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def events(reply: Reply, new_id: Callable[[str], str]) -> Iterator[tuple[float, Json]]:
    """The events of `reply`, each with the seconds that it waits."""
    response = {"id": new_id("resp"), "object": "response", "model": "fake-model", "status": "in_progress"}
    yield 0.0, {"type": "response.created", "response": response}
    for place, item in enumerate(reply.items):
        yield from _item_events(item, place, new_id)
    if reply.end == "failed":
        yield 0.0, {"type": "response.failed", "response": {**response, "status": "failed", "error": reply.failure}}
    if reply.end == "incomplete":
        details = {"reason": "max_output_tokens"}
        yield (
            0.0,
            {"type": "response.incomplete", "response": {**response, "status": "incomplete", "incomplete_details": details}},
        )
    if reply.end == "completed":
        read, written, cached = reply.usage
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }
        yield 0.0, {"type": "response.completed", "response": {**response, "status": "completed", "usage": usage}}


def _item_events(item: Item, place: int, new_id: Callable[[str], str]) -> Iterator[tuple[float, Json]]:
    where = {"output_index": place}
    match item:
        case Text():
            message = {"type": "message", "role": "assistant", "id": new_id("msg")}
            yield 0.0, {"type": "response.output_item.added", **where, "item": {**message, "content": []}}
            for piece in _pieces(item.text, item.pieces):
                delta = {"item_id": message["id"], "content_index": 0, "delta": piece}
                yield item.gap_s, {"type": "response.output_text.delta", **where, **delta}
            whole = {**message, "content": [{"type": "output_text", "text": item.text, "annotations": []}]}
        case Thought():
            thought = {"type": "reasoning", "id": new_id("rs"), "summary": []}
            yield 0.0, {"type": "response.output_item.added", **where, "item": thought}
            delta = {"item_id": thought["id"], "summary_index": 0, "delta": item.text}
            yield 0.0, {"type": "response.reasoning_summary_part.added", **where, "item_id": thought["id"], "summary_index": 0}
            yield 0.0, {"type": "response.reasoning_summary_text.delta", **where, **delta}
            whole = {**thought, "summary": [{"type": "summary_text", "text": item.text}]}
        case Call():
            arguments = item.arguments if isinstance(item.arguments, str) else json.dumps(item.arguments)
            given = {"input": arguments} if item.kind == "custom_tool_call" else {"arguments": arguments}
            whole = {"type": item.kind, "id": new_id("fc"), "call_id": item.id or new_id("call"), "name": item.name, **given}
            yield 0.0, {"type": "response.output_item.added", **where, "item": whole}
    yield 0.0, {"type": "response.output_item.done", **where, "item": whole}


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, count)))
    return [text[start : start + size] for start in range(0, len(text), size)]


def _plain(output: Any) -> str:
    if isinstance(output, list):
        return "".join(str(part.get("text", "")) for part in output if isinstance(part, dict))
    return str(output)


def _handler(server: ResponsesServer) -> type[_Handler]:
    return type("Handler", (_Handler,), {"fake": server})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: ClassVar[ResponsesServer]

    def do_GET(self) -> None:
        # The list of models; nothing else is asked for by GET.
        self._answer(200, {"object": "list", "data": [], "models": []}, {})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.path.partition("?")[0].endswith("/responses"):
            self._answer(404, {"error": {"message": f"nothing is served at {self.path}"}}, {})
            return
        reply = self.fake.take(Seen(json.loads(raw), {name.lower(): value for name, value in self.headers.items()}))
        if reply.status != 200:
            self._answer(reply.status, {"error": reply.failure}, reply.headers)
            return
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may leave at any time
            self._stream(reply)

    def _stream(self, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for wait, event in events(reply, self.fake.new_id):
            if wait:
                time.sleep(wait)
            self._chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        if reply.end == "garbage":
            self._chunk(b"\x00\xff this is no event {\n\ndata: {broken\n\n")
        if reply.end == "open":
            # Bounded by the server's end; a client that left is noticed by the next write.
            while not self.fake.closing.wait(0.05):
                self._chunk(b": still here\n\n")
        if reply.end not in ("cut", "open"):
            self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, body: Json, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what they need to say."""


def main() -> None:
    """Serve until interrupted: each request is answered by the last thing that the user said."""
    parser = argparse.ArgumentParser(description="A model server that speaks the Responses API.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--say", help="answer this; else what the user said last")
    given = parser.parse_args()

    def script(body: Json) -> Reply:
        said = Seen(body, {}).texts("user")
        return say(given.say or (said[-1] if said else "hello"))

    with ResponsesServer(script, port=given.port) as server:
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
