"""What the server refuses fails at once, by its name as it is, and over TLS in the same way."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.edge import connection, mesh_domain, refusals
from agentmesh.edge.connection import connect
from agentmesh.edge.publish import store
from agentmesh.edge.refusals import Violation, violation
from agentmesh.edge.transport import Message, RequestTimeout
from agentmesh.errors import NotPermitted, TlsFailed
from certificates import Authority
from support import Server, connected, eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(301)]

LIMITED = """authorization { users: [
  { user: "Limited", password: "p", permissions: {
      publish: { deny: ["No.>", "$JS.API.>"] }, subscribe: { deny: ["No.>", "Queue.x grp"] } } }
  { user: "deaf", password: "p", permissions: { subscribe: { deny: ["_INBOX.>"] } } }
  { user: "free", password: "p" }
] }"""


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    with Server(config=LIMITED) as server:
        yield server


def as_user(server: Server, user: str, password: str = "p") -> str:
    return server.url.replace("nats://", f"nats://{user}:{password}@")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-ERR 'Permissions Violation for Publish to \"No.Way\"'", Violation("publish", "No.Way")),
        ("-ERR 'Permissions Violation for Subscription to \"a.>\"'", Violation("subscribe", "a.>")),
        ('-ERR \'Permissions Violation for Subscription to "Q.x" using queue "grp"\'', Violation("subscribe", "Q.x")),
        ("-ERR 'Authorization Violation'", None),
        ("-ERR 'Slow Consumer'", None),
    ],
)
def test_the_servers_lines_are_understood(line: str, found: Violation | None) -> None:
    assert violation(line) == found


def test_a_forbidden_request_fails_at_once_and_only_that_one(limited: Server) -> None:
    async def main() -> None:
        async with connected(as_user(limited, "Limited")) as t:
            await t.subscribe("silent", lambda message: None)
            other = asyncio.ensure_future(t.request("silent", timeout=600))
            for forbidden in (t.request("No.Way", timeout=600), t.request_many("No.Way", timeout=600)):
                with pytest.raises(NotPermitted, match=r"does not permit user 'Limited' to publish to No\.Way;") as caught:
                    await forbidden
                assert caught.value.details == {"subject": "No.Way", "user": "user 'Limited'"}
            told: list[Message | Exception] = []
            assert t.call("No.Other", timeout=600, answered=told.append)
            await eventually(lambda: told, what="the callback")
            assert isinstance(told[0], NotPermitted)
            with pytest.raises(NotPermitted, match=r"No\.Mail"):
                await store(t, "No.Mail", b"x", timeout=600)
            assert not other.done()
            other.cancel()
            assert t.connected and t.refusal is None

    run(main())


def test_who_may_not_ask_for_the_domain_asks_once(limited: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_domain, "LEARN_S", 0.1)

    async def main() -> None:
        asked: list[str] = []

        class Counting(connection.NatsTransport):
            def call(self, subject: str, *given: Any, **named: Any) -> bool:
                asked.append(subject)
                return super().call(subject, *given, **named)

        monkeypatch.setattr(connection, "NatsTransport", Counting)
        t = await connect(as_user(limited, "Limited"), name="test", mesh="MESH_registry")
        try:
            await asyncio.sleep(0.5)
            assert t.connected and t.domain is None and len(asked) == 1
        finally:
            await t.close()

    run(main())


def test_a_refused_subscription_is_known_after_a_flush(limited: Server) -> None:
    async def main() -> None:
        async with connected(as_user(limited, "Limited")) as t:
            heard: list[NotPermitted] = []
            t.on_refused(heard.append)
            await t.subscribe("Yes", lambda message: None)
            await t.flush()
            assert heard == []
            await t.subscribe("No.Ears", lambda message: None)
            await t.subscribe("Queue.x", lambda message: None, queue="grp")
            await t.flush()
            assert [error.details["subject"] for error in heard] == ["No.Ears", "Queue.x"]
            assert t.refusal is heard[0]
            assert "to subscribe to No.Ears" in heard[0].message

    run(main())


def test_who_may_not_hear_replies_is_told_so(limited: Server) -> None:
    async def main() -> None:
        async with connected(as_user(limited, "deaf")) as t:
            for _ in range(2):
                with pytest.raises(NotPermitted, match=r"user 'deaf' to subscribe to _INBOX\."):
                    await t.request("$JS.API.INFO", timeout=600)
            with pytest.raises(NotPermitted):
                await t.request_many("$JS.API.INFO", timeout=600)

    run(main())


def test_a_user_who_is_removed_learns_it_and_one_who_returns_goes_on() -> None:
    with Server(config="authorization { users: [ { user: a, password: p } ] }") as server:

        async def main() -> None:
            async with connected(as_user(server, "a")) as t:
                heard: list[NotPermitted] = []
                t.on_refused(heard.append)
                server._extra = "authorization { users: [ { user: b, password: p } ] }"
                await asyncio.to_thread(server.restart)
                await eventually(lambda: heard, what="the refusal")
                assert "refuses the credentials of user 'a'" in heard[0].message
                assert t.refusal is heard[0]
                server._extra = "authorization { users: [ { user: a, password: p } ] }"
                await asyncio.to_thread(server.restart)
                await eventually(lambda: t.connected, what="the connection")
                assert len(heard) == 1
                await t.flush()
                assert t.refusal is None

        run(main())


# --- TLS ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    return authority


def test_over_tls_the_same_is_said_and_nothing_else(
    trusted: Authority, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Server(config=f"{trusted.server()}\n{LIMITED}") as server, caplog.at_level(logging.WARNING):

        async def main() -> None:
            for scheme in ("nats://", "tls://"):
                url = server.url.replace("nats://", scheme + "Limited:wrong@")
                with pytest.raises(NotPermitted, match="refuses the credentials of user 'Limited'"):
                    await connect(url, name="t", connect_timeout=math.inf)
            async with connected(as_user(server, "Limited")) as t:
                with pytest.raises(NotPermitted, match=r"No\.Way"):
                    await t.request("No.Way", timeout=600)
                await asyncio.to_thread(server.restart)
                await eventually(lambda: t.connected, what="the connection")

        run(main())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert "eof_received" not in capfd.readouterr().err


def test_wrong_tls_ends_a_first_connection_at_once_and_says_why(trusted: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    said = r"certificate of the server at 127\.0\.0\.1:\d+ is not trusted"
    with Server(config=stranger.server()) as server, pytest.raises(TlsFailed, match=said):
        run(connect(server.url, name="t", connect_timeout=math.inf))
    with Server(config=trusted.server(address="127.0.0.2")) as server, pytest.raises(TlsFailed, match="IP address mismatch"):
        run(connect(server.url, name="t", connect_timeout=math.inf))


def test_what_asks_for_tls_sends_nothing_without_it(trusted: Authority) -> None:
    with Server() as server:
        with pytest.raises(TlsFailed, match="offers no TLS"):
            run(connect(server.url.replace("nats://", "tls://me:secret@"), name="t", connect_timeout=math.inf))
        assert "secret" not in server.log
    with Server(config=f"{trusted.server()}\nallow_non_tls: true") as server:

        async def main() -> None:
            async with connected(server.url.replace("nats://", "tls://")) as t:
                await t.flush()
                assert t._client._stream.get_extra_info("ssl_object") is not None

        run(main())


def test_what_is_no_answer_is_still_waited_for() -> None:
    assert not refusals.rejected("nats: 'Authentication Timeout'")

    async def main() -> None:
        with Server() as server:
            async with connected(server.url) as t:
                await t.subscribe("silent", lambda message: None)
                with pytest.raises(RequestTimeout):
                    await t.request("silent", timeout=0.05)

    run(main())
