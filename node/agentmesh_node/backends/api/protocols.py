"""Which protocols a server of models speaks, and which models it has: found by asking it.

Each protocol is asked by an empty request, which costs nothing: a server that speaks it complains in JSON of what is missing, one
that does not has no such path. Everything is bounded: a few requests, seconds, bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from agentmesh.edge.address import without_credentials
from agentmesh.errors import BackendError
from agentmesh_node.backends.reasons import message_in, plainly

type Protocol = Literal["messages", "chat", "responses"]

NAMES: dict[Protocol, str] = {"messages": "the Messages API", "chat": "Chat Completions", "responses": "Responses"}
PATHS: dict[Protocol, str] = {"messages": "/v1/messages", "chat": "/chat/completions", "responses": "/responses"}
"""Behind the address that its SDK takes."""
LIMIT_S = 10.0
"""Longest that all questions together take."""
GREETING_S = 2.0
"""How long a server that does not speak HTTP may take to say what it speaks."""
MOST_BYTES = 1 << 20
"""Most that is read of an answer; a longer one is none of these protocols'."""
_ABSENT = frozenset({404, 405, 501})
_CONTEXT = ("max_model_len", "context_length", "max_context_length", "max_input_tokens", "context_window", "n_ctx")
"""How servers call the size of a model's context, in their lists of models."""
_GREETINGS = {
    b"INFO {": "NATS",
    b"SSH-": "SSH",
    b"-ERR": "Redis",
    b"220 ": "a mail or FTP server",
    b"\x15\x03": "TLS: write https://",
}
_OFTEN_SAID = 300
"""Most characters of a server's own words that are repeated."""


class Listed(msgspec.Struct, frozen=True):
    """A model that a server lists."""

    name: str
    context: int | None = None
    """Its tokens, where the server says so."""


class Spoken(msgspec.Struct, frozen=True):
    """What a server speaks."""

    addresses: dict[Protocol, str]
    """The address that an SDK of each protocol takes."""
    models: tuple[Listed, ...] = ()

    def names(self) -> str:
        """The protocols, for people."""
        return " and ".join(NAMES[one] for one in self.addresses)


class _Reply(msgspec.Struct, frozen=True):
    """An answer of the server."""

    status: int
    value: Any = None
    """Its JSON; None where it is none."""
    said: str = ""
    """How it begins, for people."""

    @property
    def of_a_model_server(self) -> bool:
        """Whether it complains of an empty request as a server that speaks the protocol does."""
        if self.status in _ABSENT or not isinstance(self.value, dict):
            return False
        known = self.value.keys() & {"error", "detail", "type", "object", "choices", "message"}
        return bool(known) if self.status < 500 else bool(message_in(self.value))


def roots(address: str) -> tuple[str, str]:
    """What comes before `/v1/messages`, and what comes before `/chat/completions`, for an address of either kind or of a request.

    Raises:
        BackendError: `bad_address`: it is no address.
    """
    text = address.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _refused(
            "bad_address", f"{shown(address)!r} is no address of a server of models: write http://HOST:PORT, or https://HOST/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:  # addresses are shown: in lists, messages and the node's labels
        text = "the address of a server of models is HOST, PORT and PATH alone, since it is shown: a secret goes into the key"
        raise _refused("bad_address", text)
    for path in ("/messages", "/chat/completions", "/responses", "/models", "/completions"):
        text = text.removesuffix(path)
    last = text.rpartition("/")[2]
    versioned = text if (last.startswith("v") and last[1:2].isdigit()) or last == "openai" else f"{text}/v1"
    return text.removesuffix("/v1"), versioned


def shown(address: str) -> str:
    """An address for people: without user, password and what else may be a secret in it."""
    return without_credentials(address.partition("?")[0].partition("#")[0])


async def ask(address: str, key: str | None, *, limit_s: float = LIMIT_S) -> Spoken:
    """What the server at `address` speaks.

    Args:
        key: sent with each question; None sends none.

    Raises:
        BackendError: `bad_address`, `connection`, `timed_out`, `unauthenticated`, `not_installed`, or `not_found`: it speaks
            none of the three.
    """
    before, versioned = roots(address)
    bases: dict[Protocol, str] = {"messages": before, "chat": versioned, "responses": versioned}
    try:
        async with asyncio.timeout(limit_s), _http(key) as client:
            replies = {one: await _asked(client, "POST", bases[one] + PATHS[one]) for one in bases}
            if all(reply.status in (401, 403) for reply in replies.values()):
                raise _refused("unauthenticated", f"{address} wants a key: {_words(replies['chat'])}")
            found = {one: bases[one] for one, reply in replies.items() if reply.of_a_model_server}
            if not found:
                raise _refused("not_found", f"{address} answers, but as no server of models does: {_words(replies['chat'])}")
            models = _listed((await _asked(client, "GET", f"{versioned}/models")).value)
    except TimeoutError:
        raise _refused("timed_out", f"{address} has not answered in {limit_s:g} s") from None
    return Spoken(found, models)


@asynccontextmanager
async def _http(key: str | None) -> AsyncIterator[Any]:
    try:
        httpx2 = await asyncio.to_thread(__import__, "httpx2")
    except ImportError:
        text = "to ask a server of models an SDK must be there: pip install 'agentmesh[openai]', or 'agentmesh[anthropic]'"
        raise _refused("not_installed", text) from None
    headers = {"anthropic-version": "2023-06-01"}
    if key:
        if not (key.isascii() and key.isprintable()):
            raise _refused(
                "unauthenticated", "the key has characters that no header can have; look for a line break or an accent"
            )
        headers |= {"authorization": f"Bearer {key}", "x-api-key": key}
    async with httpx2.AsyncClient(headers=headers, timeout=LIMIT_S) as client:
        yield client


async def _asked(client: Any, method: str, url: str) -> _Reply:
    """One question.

    Raises:
        BackendError: `connection`, `timed_out`.
    """
    import httpx2  # noqa: PLC0415 - loaded already

    body = b""
    given: dict[str, Any] = {"json": {}} if method == "POST" else {}
    try:
        async with client.stream(method, url, **given) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MOST_BYTES:
                    break
    except httpx2.TimeoutException:
        raise _refused("timed_out", f"{url} does not answer") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise _refused("connection", await _no_http(url, error)) from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    return _Reply(response.status_code, value, (message_in(value) or "") if value else _beginning(body))


async def _no_http(url: str, error: Exception) -> str:
    """Why nothing can be asked at `url`: nobody is there, or what is there speaks something else."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    except (OSError, TimeoutError, ValueError):
        return f"{url} cannot be reached: {type(error).__name__}"
    try:
        async with asyncio.timeout(GREETING_S):
            writer.write(b"\r\n\r\n")
            greeting = await reader.read(64)
    except TimeoutError:
        return f"{url}: what listens there takes connections and says nothing, to HTTP ({type(error).__name__}) or anything else"
    except OSError:
        return f"{url} cannot be reached: {type(error).__name__}"
    finally:
        writer.close()
    for beginning, name in _GREETINGS.items():
        if greeting.startswith(beginning):
            return f"{url}: what listens there speaks {name}, not HTTP"
    return f"{url}: what listens there does not speak HTTP as asked ({type(error).__name__}); try {_other_scheme(parts.scheme)}"


def _other_scheme(scheme: str) -> str:
    return "http://" if scheme == "https" else "https://"


def _beginning(body: bytes) -> str:
    text = " ".join(body[:2000].decode("utf-8", "replace").split())
    return "a web page" if text[:1] == "<" else text


def _words(reply: _Reply) -> str:
    said = plainly(reply.said)[:_OFTEN_SAID]
    return f"status {reply.status}" + (f", {said}" if said else "")


def _listed(value: Any) -> tuple[Listed, ...]:
    """The models in a list of them, whatever else stands in it."""
    rows = value.get("data") if isinstance(value, dict) else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(name := row.get("id"), str):
            meta = row.get("meta")
            said = {**(meta if isinstance(meta, dict) else {}), **row}
            sizes = [size for word in _CONTEXT if type(size := said.get(word)) is int and size > 0]
            found.append(Listed(name, sizes[0] if sizes else None))
    return tuple(found)


def _refused(reason: str, message: str) -> BackendError:
    return BackendError(message, details={"reason": reason, "retryable": reason in ("connection", "timed_out")})
