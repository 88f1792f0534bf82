"""The transport when the connection is lost: by a restart, a frozen server, an error, a close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from agentmesh.edge import connection
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.subscription import LiveSubscription
from agentmesh.edge.transport import Disconnected, Message
from agentmesh.subjects import Subjects
from support import Server, connected, eventually, run


async def _echo(t: NatsTransport, subject: str) -> None:
    async def answer(message: Message) -> None:
        await t.publish(message.reply, message.data, headers=message.headers)

    await t.subscribe(subject, answer)
    await t.flush()


def test_a_restart_fails_what_is_in_flight_at_once_and_heals(fresh_server: Server) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        gaps: list[bool] = []
        async with connected(fresh_server.url) as t:
            t.on_gap(lambda: gaps.append(t.connected))
            await t.subscribe("live.>", lambda message: seen.append(message.data))
            await t.subscribe("hole", lambda message: None)
            await t.flush()
            waits: list[Callable[[], Awaitable[object]]] = [
                lambda: t.request("hole", timeout=20),
                lambda: t.request_many("hole", timeout=20),
            ]
            flying = [asyncio.ensure_future(wait()) for wait in waits]
            told: list[Message | Exception] = []
            assert t.call("hole", timeout=20, answered=told.append)
            await t.flush()
            fresh_server.kill()
            for each in flying:
                with pytest.raises(Disconnected):
                    await each
            assert not t.connected
            assert [type(end) for end in told] == [Disconnected]
            for call in (t.publish("live.a", b"lost"), t.flush(), *(wait() for wait in waits)):
                with pytest.raises(Disconnected):
                    await call
            late = await t.subscribe("late", lambda message: seen.append(message.data))
            await asyncio.to_thread(fresh_server.start)
            await eventually(lambda: t.connected, what="the reconnect")
            assert gaps == [True]
            await t.publish("live.b", b"new")
            await t.publish("late", b"new too")
            await eventually(lambda: len(seen) == 2, what="both subscriptions to live again")
            assert seen == [b"new", b"new too"]
            await late.unsubscribe()

    run(main())


def test_nothing_pending_is_sent_after_a_reconnect(fresh_server: Server) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        async with connected(fresh_server.url) as t:
            await t.subscribe("pending", lambda message: seen.append(message.data))
            await t.flush()
            # The bytes of one loop iteration wait for its end; the connection dies in between.
            lost = asyncio.ensure_future(t.request("pending", b"lost", timeout=20))
            await asyncio.sleep(0)
            t._client._abort()
            with pytest.raises(Disconnected):
                await lost
            await eventually(lambda: t.connected, what="the reconnect")
            await t.publish("pending", b"new")
            await eventually(lambda: seen, what="the new message")
            assert seen == [b"new"]

    run(main())


def test_a_frozen_server_is_noticed(fresh_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.PING_INTERVAL_S * (connection.MAX_OUTSTANDING_PINGS + 1) <= 15
    monkeypatch.setattr(connection, "PING_INTERVAL_S", 0.2)

    async def main() -> None:
        async with connected(fresh_server.url) as t:
            fresh_server.freeze()
            # More than the kernel takes: closing must not wait for the peer to read it.
            body = b"x" * 1_000_000

            async def flood() -> None:
                while True:
                    await t.publish("flood", body)

            with pytest.raises(Disconnected):
                await flood()
            fresh_server.thaw()
            await eventually(lambda: t.connected, what="the reconnect")
            await t.flush()

    run(main())


def test_a_connection_that_the_server_closes_for_good_is_opened_again(
    fresh_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        gaps: list[None] = []
        async with connected(fresh_server.url) as t:
            t.on_gap(lambda: gaps.append(None))
            await t.subscribe("again", lambda message: seen.append(message.data))
            await t.flush()
            flying = asyncio.ensure_future(t.request("again", b"first", timeout=20))
            await eventually(lambda: seen == [b"first"], what="the first message")
            t._client.send(b"NONSENSE\r\n")
            with pytest.raises(Disconnected):
                await flying
            await eventually(lambda: t.connected, what="the new connection")
            assert gaps
            await t.publish("again", b"second")
            await eventually(lambda: seen == [b"first", b"second"], what="the subscription to live again")

    with caplog.at_level(logging.ERROR, logger="agentmesh.edge"):
        run(main())
    assert "opening it again" in caplog.text


def test_a_busy_connection_is_opened_again_too(fresh_server: Server) -> None:
    """Requests go on while nats-py closes the connection step by step: none may be caught in between."""

    async def main() -> None:
        async with connected(fresh_server.url) as t, connected(fresh_server.url) as other:
            await _echo(other, "busy")
            for _ in range(5):
                flying: set[asyncio.Task[Message]] = set()
                t._client.send(b"SUB a..b 99\r\n")
                while t.connected:
                    flying.add(asyncio.ensure_future(t.request("busy", timeout=20)))
                    await asyncio.sleep(0)
                ended, waiting = await asyncio.wait(flying, timeout=2)
                assert not waiting
                assert all(each.exception() is None or isinstance(each.exception(), Disconnected) for each in ended)
                await eventually(lambda: t.connected, what="the new connection")
            assert (await t.request("busy", b"x", timeout=5)).data == b"x"

    run(main())


def test_a_message_that_cannot_be_delivered_costs_one_reconnect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await _echo(t, "odd")
            original = LiveSubscription.deliver
            failed: list[bool] = []

            def fail_once(subscription: LiveSubscription, message: Message) -> None:
                if not failed:
                    failed.append(True)
                    raise RuntimeError("unexpected")
                original(subscription, message)

            monkeypatch.setattr(LiveSubscription, "deliver", fail_once)
            with pytest.raises(Disconnected):
                await t.request("odd", timeout=20)
            await eventually(lambda: t.connected, what="the reconnect")
            assert (await t.request("odd", b"x", timeout=5)).data == b"x"

    run(main())


def test_an_error_that_nats_py_does_not_expect_costs_one_more_attempt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await _echo(t, "odd")
            original = t._client._process_connect_init
            failed: list[bool] = []

            async def fail_once() -> None:
                if not failed:
                    failed.append(True)
                    raise RuntimeError("unexpected")
                await original()

            monkeypatch.setattr(t._client, "_process_connect_init", fail_once)
            t._client._abort()
            await eventually(lambda: failed, what="the failed reconnect")
            await eventually(lambda: t.connected, what="the reconnect")
            assert (await t.request("odd", b"x", timeout=5)).data == b"x"

    run(main())


def test_close_sends_what_is_pending_and_ends_running_handlers(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        cancelled = asyncio.Event()
        async with connected(server.url) as listener:
            await listener.subscribe(f"{subjects.root}.bye", lambda message: seen.append(message.data))
            await listener.flush()
            t = await connect(server.url, name="closing")

            async def forever(message: Message) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

            await t.subscribe(f"{subjects.root}.hang", forever)
            await t.publish(f"{subjects.root}.hang")
            await t.flush()
            flying = asyncio.ensure_future(t.request(f"{subjects.root}.hang", timeout=20))
            await asyncio.sleep(0)
            await t.publish(f"{subjects.root}.bye", b"bye")
            await t.close()
            assert cancelled.is_set()
            with pytest.raises(Disconnected):
                await flying
            with pytest.raises(Disconnected):
                await t.publish("a")
            await eventually(lambda: seen == [b"bye"], what="the last message")

    run(main())
