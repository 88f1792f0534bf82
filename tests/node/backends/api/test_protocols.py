"""What a server of models speaks is found by asking it, within bounds (case 743)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.api import protocols
from agentmesh_node.backends.api.protocols import Listed, ask, roots
from fakes.model_paths import CHAT, COMPLAINT, MESSAGES, MODELS, RESPONSES, Given, ModelPaths, listing
from support import Server, free_ports, run

pytestmark = pytest.mark.case(743)
SPOKEN = Given(400, COMPLAINT)


def refused(address: str, *, limit_s: float = 10.0) -> BackendError:
    with pytest.raises(BackendError) as error:
        run(ask(address, None, limit_s=limit_s))
    return error.value


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://h:1", ("http://h:1", "http://h:1/v1")),
        ("http://h:1/", ("http://h:1", "http://h:1/v1")),
        ("https://h/v1", ("https://h", "https://h/v1")),
        ("https://h/api/v1/chat/completions", ("https://h/api", "https://h/api/v1")),
        ("https://h/v1/messages", ("https://h", "https://h/v1")),
        ("https://h/v1beta/openai/", ("https://h/v1beta/openai", "https://h/v1beta/openai")),
    ],
)
def test_an_address_may_be_the_servers_its_version_or_a_request(address: str, expected: tuple[str, str]) -> None:
    assert roots(address) == expected


@pytest.mark.parametrize("address", ["", "localhost:1", "ftp://h", "http://", "http://h:x", "http://[::1", "nats://h:4222"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BackendError, match=r"no address of a server of models: write http"):
        roots(address)


@pytest.mark.parametrize("address", ["http://me:hidden@h", "https://h/v1?key=hidden", "https://hidden@h/v1"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(BackendError, match="a secret goes into the key") as error:
        roots(address)
    assert error.value.details["reason"] == "bad_address"
    assert "hidden" not in error.value.message


@pytest.mark.parametrize("key", ["hidd\u00e9n-key", "hidden\nkey", "hidden\r"])
def test_a_key_that_no_header_can_have_is_told_as_such_and_not_repeated(key: str) -> None:
    with pytest.raises(BackendError, match="characters that no header can have") as error:
        run(ask("http://127.0.0.1:9", key))
    assert error.value.details["reason"] == "unauthenticated"
    assert "hidd" not in error.value.message


def test_each_protocol_is_found_by_its_complaint_and_the_models_by_their_list() -> None:
    paths = {CHAT: SPOKEN, MESSAGES: Given(500, COMPLAINT), MODELS: listing("a", "b", max_model_len=4096)}
    with ModelPaths(paths) as server:
        found = run(ask(f"{server.url}/v1", "secret-key"))
        assert found.addresses == {"messages": server.url, "chat": f"{server.url}/v1"}
        assert found.models == (Listed("a", 4096), Listed("b", 4096))
        assert found.names() == "the Messages API and Chat Completions"
        assert {headers["authorization"] for _, headers in server.asked} == {"Bearer secret-key"}
        assert len(server.asked) == 4, "one question for each, and the list"


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        (Given(404, "<html>not here</html>"), "status 404, a web page"),
        (Given(200, "<html>welcome</html>"), "status 200, a web page"),
        (Given(200, {"ok": True}), "status 200"),
        (Given(502, "bad gateway"), "status 502, bad gateway"),
        (Given(200, "[" * 100_000), "status 200"),
    ],
)
def test_a_server_that_speaks_none_of_them_is_described(otherwise: Given, said: str) -> None:
    with ModelPaths({}, otherwise=otherwise) as server:
        error = refused(server.url)
    assert error.details["reason"] == "not_found"
    assert f"{server.url} answers, but as no server of models does: {said}" in error.message
    assert len(error.message) < 600


def test_a_server_that_wants_a_key_says_so() -> None:
    with ModelPaths({}, otherwise=Given(401, {"error": {"message": "no key"}})) as server:
        error = refused(server.url)
    assert error.details["reason"] == "unauthenticated"
    assert "wants a key: status 401, no key" in error.message


def test_another_protocol_than_http_is_named(server: Server) -> None:
    error = refused(server.url.replace("nats://", "http://"))
    assert error.details["reason"] == "connection"
    assert "what listens there speaks NATS, not HTTP" in error.message


def test_a_port_that_nobody_listens_on_cannot_be_reached() -> None:
    error = refused(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "cannot be reached: ConnectError" in error.message


def test_a_server_that_hangs_up_and_then_says_nothing_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "GREETING_S", 0.2)
    over, hung_up = asyncio.Event(), False

    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung_up
        if hung_up:
            await over.wait()
        hung_up = True
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(listener, "127.0.0.1", 0)
        try:
            with pytest.raises(BackendError, match="takes connections and says nothing") as told:
                await ask(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", None)
            assert told.value.details["reason"] == "connection"
        finally:
            over.set()
            listening.close()

    run(main())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://me:secret@gateway:8080/v1", "https://gateway:8080/v1"),
        ("http://gateway/v1?key=secret", "http://gateway/v1"),
        ("http://gateway/v1#secret", "http://gateway/v1"),
        ("me:secret@gateway", "gateway"),
        ("http://gateway/v1", "http://gateway/v1"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_secret(address: str, said: str) -> None:
    assert protocols.shown(address) == said
    with contextlib.suppress(BackendError):
        roots(address)
        return
    with pytest.raises(BackendError) as refused:
        roots(address)
    assert "secret" not in refused.value.message.replace("a secret goes into the key", "")


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_allowed() -> None:
    async def silent(work: Callable[[str], Awaitable[None]]) -> None:
        over = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await over.wait()
            writer.close()

        listening = await asyncio.start_server(wait, "127.0.0.1", 0)
        try:
            await work(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        finally:
            over.set()
            listening.close()

    async def check(address: str) -> None:
        with pytest.raises(BackendError, match=r"has not answered in 0\.2 s"):
            await ask(address, None, limit_s=0.2)

    run(silent(check))


def test_an_answer_without_end_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "MOST_BYTES", 1000)
    with ModelPaths({RESPONSES: SPOKEN}, otherwise=Given(200, "x" * 5_000_000)) as server:
        assert run(ask(server.url, None)).addresses == {"responses": f"{server.url}/v1"}
