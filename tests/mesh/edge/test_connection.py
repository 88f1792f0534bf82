"""The transport over a real server: requests, subscriptions, limits, connecting."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Awaitable

import pytest

from agentmesh.edge import nats_client, subscription
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.transport import Message, NoResponders, RequestTimeout
from agentmesh.errors import BadRequest, NotPermitted, TooLarge, Unavailable
from support import Server, connected, eventually, run


async def _echo(t: NatsTransport, subject: str) -> None:
    async def answer(message: Message) -> None:
        await t.publish(message.reply, message.data, headers=message.headers)

    await t.subscribe(subject, answer)
    await t.flush()


# --- requests -----------------------------------------------------------------------------------------------------
def test_request_returns_data_and_headers(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await _echo(t, "echo.a")
            reply = await t.request("echo.a", b"body", headers={"A": "1", "Bee": "zwei ü"}, timeout=5)
            assert reply.data == b"body"
            assert dict(reply.headers) == {"A": "1", "Bee": "zwei ü"}
            plain = await t.request("echo.a", b"", timeout=5)
            assert (plain.data, dict(plain.headers), plain.status) == (b"", {}, "")

    run(main())


def test_many_requests_in_flight_get_their_own_replies(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t, connected(server.url) as other:
            await _echo(other, "echo.many")
            bodies = [str(n).encode() for n in range(500)]
            replies = await asyncio.gather(*(t.request("echo.many", body, timeout=5) for body in bodies))
            assert [reply.data for reply in replies] == bodies

    run(main())


def test_nobody_listens(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(NoResponders):
                await t.request("nobody.there", timeout=5)
            with pytest.raises(NoResponders):
                await t.request_many("nobody.there", timeout=5)

    run(main())


def test_silence_times_out_and_a_late_reply_is_dropped(server: Server) -> None:
    async def main() -> None:
        late: list[Message] = []
        async with connected(server.url) as t:
            await t.subscribe("silent", late.append)
            with pytest.raises(RequestTimeout):
                await t.request("silent", timeout=0.05)
            with pytest.raises(RequestTimeout):
                await t.request_many("silent", timeout=0.05)
            for message in late:
                await t.publish(message.reply, b"too late")
            await _echo(t, "echo.late")
            assert (await t.request("echo.late", b"x", timeout=5)).data == b"x"

    run(main())


def test_request_many_gathers_until_a_status_and_counts_silence_between_replies(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:

            async def slowly(message: Message) -> None:
                for n in range(4):
                    await asyncio.sleep(0.35)
                    await t.publish(message.reply, str(n).encode())

            await t.subscribe("slow", slowly)
            # 1.4 s in all, but never 1.2 s of silence before the last reply; the end never comes.
            started = time.monotonic()
            with pytest.raises(RequestTimeout):
                await t.request_many("slow", timeout=1.2)
            assert time.monotonic() - started > 1.4 + 1.1

    run(main())


def test_cancelled_request_leaves_nothing_behind(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await t.subscribe("hole", lambda message: None)
            one = asyncio.ensure_future(t.request("hole", timeout=5))
            many = asyncio.ensure_future(t.request_many("hole", timeout=5))
            await asyncio.sleep(0)
            one.cancel()
            many.cancel()
            await asyncio.gather(one, many, return_exceptions=True)
            assert one.cancelled() and many.cancelled()
            assert not t._pending.waiting and not t._pending.gathering

    run(main())


# --- calls --------------------------------------------------------------------------------------------------------
def test_a_call_is_told_once_how_it_ended(server: Server) -> None:
    async def main() -> None:
        told: dict[str, list[Message | Exception]] = {}

        async with connected(server.url) as t:

            def call(subject: str, timeout: float = 5.0, body: bytes = b"") -> bool:
                return t.call(subject, body, timeout=timeout, answered=told.setdefault(subject, []).append)

            late: list[Message] = []
            await t.subscribe("calls.silent", late.append)
            await t.subscribe("calls.empty", lambda message: t.publish(message.reply))
            await _echo(t, "calls.echo")
            assert call("calls.echo", body=b"body") and call("calls.empty") and call("calls.nobody")
            assert call("calls.silent", timeout=0.01)
            assert call("calls.silent.too", timeout=600)
            await eventually(
                lambda: all(told[f"calls.{name}"] for name in ("echo", "empty", "nobody", "silent")), what="the ends"
            )
            for message in late:
                await t.publish(message.reply, b"too late")
            await t.flush()
            (echoed,), (empty,), (nobody,), (silent,) = (told[f"calls.{n}"] for n in ("echo", "empty", "nobody", "silent"))
            assert isinstance(echoed, Message) and echoed.data == b"body"
            assert isinstance(empty, Message) and empty.data == b""
            assert isinstance(nobody, NoResponders)
            assert isinstance(silent, RequestTimeout)

    run(main())


def test_a_call_that_cannot_be_sent_is_never_told(server: Server) -> None:
    async def main() -> None:
        told: list[Message | Exception] = []
        async with connected(server.url) as t:
            with pytest.raises(TooLarge):
                t.call("calls.big", b"x" * (t.max_payload + 1), timeout=5, answered=told.append)
            with pytest.raises(TooLarge):
                t.send("calls.big", b"x" * (t.max_payload + 1))
            t._client._crowded = True  # as after more than a MiB in one iteration of the loop
            assert not t.call("calls.busy", timeout=5, answered=told.append)
            assert not t.send("calls.busy")
            t._client._crowded = False
        assert not t.call("calls.closed", timeout=5, answered=told.append)
        assert not t.send("calls.closed")
        assert told == []

    run(main())


def test_one_who_is_told_badly_harms_no_other(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        told: list[Message | Exception] = []

        def bad(outcome: Message | Exception) -> None:
            raise RuntimeError("a defect")

        async with connected(server.url) as t:
            await _echo(t, "calls.defect")
            await t.subscribe("calls.hole", lambda message: None)
            t.call("calls.defect", timeout=5, answered=bad)
            t.call("calls.hole", timeout=0.01, answered=bad)
            t.call("calls.hole", timeout=0.01, answered=told.append)
            t.call("calls.defect", timeout=5, answered=told.append)
            await eventually(lambda: len(told) == 2, what="the others")
        assert "a defect" in caplog.text

    run(main())


# --- subscriptions ------------------------------------------------------------------------------------------------
def test_plain_and_async_handlers_see_messages_in_order(server: Server) -> None:
    async def main() -> None:
        plain: list[bytes] = []
        slow: list[bytes] = []
        mixed: list[bytes] = []

        async def slowly(message: Message) -> None:
            await asyncio.sleep(0)
            slow.append(message.data)

        def sometimes(message: Message) -> Awaitable[None] | None:
            if int(message.data) % 3 == 0:

                async def later() -> None:
                    await asyncio.sleep(0)
                    mixed.append(message.data)

                return later()
            mixed.append(message.data)
            return None

        async with connected(server.url) as t:
            await t.subscribe("order", lambda message: plain.append(message.data))
            await t.subscribe("order", slowly)
            await t.subscribe("order", sometimes)
            sent = [str(n).encode() for n in range(100)]
            for body in sent:
                await t.publish("order", body)
            await eventually(lambda: len(slow) == len(mixed) == len(plain) == 100, what="delivery")
            assert plain == slow == mixed == sent

    run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_handler_is_logged_and_the_next_message_arrives(
    server: Server, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        def handle(message: Message) -> None:
            if message.data == b"bad":
                raise ValueError("boom")
            seen.append(message.data)

        async def handle_later(message: Message) -> None:
            handle(message)

        async with connected(server.url) as t:
            await t.subscribe("fails", handle_later if is_async else handle)
            for body in (b"bad", b"good"):
                await t.publish("fails", body)
            await eventually(lambda: seen == [b"good"], what="the message behind the failing one")

    run(main())
    assert "a handler of fails failed" in caplog.text


def test_unsubscribe_and_queue_groups(server: Server) -> None:
    async def main() -> None:
        first: list[Message] = []
        second: list[Message] = []
        gone: list[Message] = []
        async with connected(server.url) as t, connected(server.url) as other:
            await t.subscribe("shared", first.append, queue="q")
            await other.subscribe("shared", second.append, queue="q")
            stopped = await t.subscribe("shared", gone.append)
            await stopped.unsubscribe()
            await stopped.unsubscribe()
            await t.flush()
            await other.flush()
            for _ in range(50):
                await t.publish("shared")
            await eventually(lambda: len(first) + len(second) == 50, what="50 deliveries")
            assert first and second and not gone

    run(main())


def test_a_slow_handler_drops_at_its_bound_and_reports_the_gap(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MAX_BACKLOG", 10)

    async def main() -> None:
        release = asyncio.Event()
        seen: list[bytes] = []
        gaps: list[None] = []

        async def handle(message: Message) -> None:
            await release.wait()
            seen.append(message.data)

        async with connected(server.url) as t:
            remove = t.on_gap(lambda: gaps.append(None))
            await t.subscribe("slow.one", handle)
            for n in range(30):
                await t.publish("slow.one", str(n).encode())
            await t.flush()
            assert len(gaps) == 1
            release.set()
            await eventually(lambda: len(gaps) == 2, what="the gap when the backlog is done")
            assert seen == [str(n).encode() for n in range(11)]
            remove()
            remove()

    run(main())


def test_a_subject_that_is_not_utf8_does_not_end_the_connection(server: Server) -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with connected(server.url) as t:
            await t.subscribe("raw.>", seen.append)
            await t.flush()
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
                raw.sendall(b'CONNECT {"verbose":false}\r\nPUB raw.\xff\xfe 2\r\nhi\r\nPING\r\n')
                await eventually(lambda: seen, what="the message")
            assert seen[0].data == b"hi"
            assert seen[0].subject.startswith("raw.")
            await t.flush()

    run(main())


# --- limits -------------------------------------------------------------------------------------------------------
@pytest.mark.case(220)
def test_what_exceeds_a_limit_is_refused_before_it_costs_the_connection(server: Server) -> None:
    async def main() -> None:
        gaps: list[None] = []
        async with connected(server.url) as t:
            t.on_gap(lambda: gaps.append(None))
            limit = t.max_payload
            with pytest.raises(TooLarge):
                await t.publish("big", b"x" * (limit + 1))
            with pytest.raises(TooLarge):
                await t.publish("big", b"x" * limit, headers={"A": "b"})
            with pytest.raises(TooLarge):
                await t.request("big", b"", headers={"A": "b" * limit}, timeout=1)
            with pytest.raises(TooLarge):
                await t.publish("s" * 4001)
            with pytest.raises(TooLarge):
                await t.publish("s" * 2001, reply="r" * 2000)
            seen: list[Message] = []
            await t.subscribe("big", seen.append)
            await t.publish("big", b"x" * limit)
            await t.publish("b" * 2000, reply="r" * 2000)
            await eventually(lambda: len(seen) == 1, what="the largest message")
            assert t.connected and not gaps

    run(main())


def test_posts_keep_their_order_and_one_that_is_too_large_is_left_out(server: Server) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        async with connected(server.url) as t:
            await t.subscribe("posts", lambda message: seen.append(message.data))
            await t.publish("posts", b"1")
            t.post_all([("posts", b"2"), ("posts", b"x" * (t.max_payload + 1)), ("posts", b"3")])
            t.post("posts", b"4")
            await t.publish("posts", b"5")
            await eventually(lambda: len(seen) == 5, what="all but one")
            assert seen == [b"1", b"2", b"3", b"4", b"5"]
            assert t.connected

    run(main())


@pytest.mark.case(470)
def test_a_burst_in_one_iteration_of_the_loop_drops_nothing(server: Server) -> None:
    async def main() -> None:
        heard = 0

        def hear(_: Message) -> None:
            nonlocal heard
            heard += 1

        async with connected(server.url) as t, connected(server.url) as reader:
            await reader.subscribe("burst", hear)
            await reader.flush()
            for _ in range(6000):
                t.post("burst", b"x" * 500)
            assert t.dropped == 0
            t.post("burst", b"and one more")
            await eventually(lambda: heard == 6001, what="all of the burst")
            assert t.dropped == 0

    run(main())


@pytest.mark.case(470)
def test_what_a_full_socket_does_not_take_is_dropped_and_counted_until_it_takes_again(fresh_server: Server) -> None:
    """Nobody awaits anything of this connection meanwhile: it finds by itself that there is room again."""
    count, heard = 0, []

    async def main() -> None:
        nonlocal count
        async with connected(fresh_server.url) as t, connected(fresh_server.url) as reader:
            await reader.subscribe("full", lambda message: heard.append(int(message.data[:8])))
            await reader.flush()
            fresh_server.freeze()
            try:
                while not t.dropped:
                    t.post("full", b"%08d" % count + b"x" * 10_000)
                    count += 1
                    await asyncio.sleep(0)
                assert (count - t.dropped) * 10_008 > nats_client.ROOM
                t.post_all([("full", b"%08d" % (count + n)) for n in range(7)])
                count += 7
                assert t.dropped == 8
                t.post("full", b"%08d" % count, though_full=True)
                count += 1
                assert not t.send("full") and not t.call("full", timeout=5, answered=lambda _: None)
            finally:
                fresh_server.thaw()
            await eventually(lambda: len(heard) == count - 8, what="all that was not dropped")
            assert heard == sorted(heard) and heard[-1] == count - 1
            t.post("full", b"%08d" % count)
            await eventually(lambda: heard[-1] == count, what="one more")
            assert t.dropped == 8 and t.connected

    run(main())


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "a\tb", "a\x00b", "\udc80"])
def test_malformed_subjects_and_headers_are_refused(server: Server, subject: str) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(BadRequest):
                await t.publish(subject, b"x")
            with pytest.raises(BadRequest):
                await t.subscribe(subject, lambda message: None)
            with pytest.raises(BadRequest):
                await t.publish("a", b"x", headers={subject + ":": "v"})
            await t.flush()

    run(main())


@pytest.mark.parametrize("subject", ["a.>.b", "a..b", ".a", "a.", "a.b*", "*b", "a>", "x" * 4001])
def test_a_pattern_that_the_server_refuses_never_reaches_it(server: Server, subject: str) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(BadRequest):
                await t.subscribe(subject, lambda message: None)
            with pytest.raises(BadRequest):
                await t.subscribe("fine", lambda message: None, queue=subject)
            await t.flush()

    run(main())


def test_line_breaks_in_a_header_value_cannot_smuggle_in_a_header(server: Server) -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with connected(server.url) as t:
            await t.subscribe("smuggle", seen.append)
            await t.publish("smuggle", b"x", headers={"A": "1\r\nNats-Msg-Id: 7\nB: 2"})
            await eventually(lambda: seen, what="the message")
            assert dict(seen[0].headers) == {"A": "1 Nats-Msg-Id: 7 B: 2"}

    run(main())


# --- connecting ---------------------------------------------------------------------------------------------------
def test_no_server_is_unavailable_and_says_where_without_the_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def main() -> None:
        started = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await connect(f"nats://me:secret@127.0.0.1:{port}", name="t", connect_timeout=0.5)
        assert time.monotonic() - started > 0.4
        assert f"127.0.0.1:{port}" in caught.value.message
        assert "secret" not in caught.value.message

    run(main())


@pytest.mark.parametrize("servers", ["", " , ", [], "http://a:1", "ws://a:1", "nats://", "nats://a:nan", "a:99999"])
def test_addresses_that_are_none_are_refused(servers: str | list[str]) -> None:
    with pytest.raises(BadRequest):
        run(connect(servers, name="t"))


def test_several_addresses_and_wait(fresh_server: Server) -> None:
    url = fresh_server.url
    fresh_server.stop()

    async def main() -> None:
        waiting = asyncio.ensure_future(connect(f"nats://127.0.0.1:1, {url}", name="t", connect_timeout=0.1, wait_s=math.inf))
        done, _ = await asyncio.wait((waiting,), timeout=0.3)
        assert not done
        await asyncio.to_thread(fresh_server.start)
        t = await waiting
        assert t.connected
        await t.close()
        await t.close()

    run(main())


@pytest.mark.processes
def test_wrong_credentials_end_a_first_connection_at_once() -> None:
    with Server(config="authorization { user: a, password: b }") as server:

        async def main() -> None:
            with pytest.raises(NotPermitted, match=r"asks for credentials, and none were given"):
                await connect(server.url, name="t", connect_timeout=math.inf)
            with pytest.raises(NotPermitted, match=r"refuses the credentials of user 'a'"):
                await connect(server.url.replace("nats://", "nats://a:wrong@"), name="t", wait_s=math.inf)
            good = server.url.replace("nats://", "nats://a:b@")
            async with connected(good) as t:
                await t.flush()

        run(main())


def test_facts_about_the_server(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url, name="facts") as t:
            assert t.server_version >= (2, 14, 0)
            assert not t.clustered
            assert t.max_payload == 1 << 20
            assert t.new_inbox() != t.new_inbox()
            names = [each["name"] for each in server.monitor("connz")["connections"]]
            assert "facts" in names

    run(main())
