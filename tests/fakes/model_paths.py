"""A server of models with some of the usual paths, each with one fixed answer; it keeps the headers of what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, NamedTuple, Self

from fakes.http_server import CrowdServer

CHAT, MESSAGES, RESPONSES, MODELS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/models"
COMPLAINT = {"error": {"message": "'messages' is required", "type": "invalid_request_error"}}
ABSENT = {"error": {"message": "File Not Found", "type": "not_found_error"}}


class Given(NamedTuple):
    """An answer."""

    status: int
    body: Any
    """Text, or a JSON value."""


def listing(*names: str, **more: Any) -> Given:
    """A list of models; `more` stands with each."""
    return Given(200, {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]})


class ModelPaths:
    """Serves on loopback while it is entered."""

    def __init__(self, paths: Mapping[str, Given], *, otherwise: Given = Given(404, ABSENT)) -> None:  # noqa: B008 - a constant
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request, names in lower case."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.do_GET()

            def do_GET(self) -> None:
                outer.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                given = paths.get(self.path, otherwise)
                body = given.body.encode() if isinstance(given.body, str) else json.dumps(given.body).encode()
                self.send_response(given.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = CrowdServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
