"""The registry over a real server: compare-and-set, leases, markers, the change feed, live views."""

from __future__ import annotations

import asyncio
from typing import Any

import nats
import pytest
from nats.js.errors import KeyNotFoundError

from agentmesh.edge import registry as registry_module
from agentmesh.edge.batches import PART
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.failures import Uncertain, WrongLastSequence
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import get_last
from agentmesh.edge.registry import RESYNC_SHARE, Entry, Registry, View, decode_node, decode_placement, decode_spec
from agentmesh.edge.streams import ensure
from agentmesh.errors import BadRequest, Unavailable
from agentmesh.registry_values import NodeLease, Placement, Spec
from agentmesh.subjects import Subjects
from agentmesh.wire import encode
from support import Faulty, Server, connected, eventually, nobody, replaced, reply_lost, run


async def _registry(t: Any, subjects: Subjects) -> Registry:
    await ensure(t, subjects)
    return Registry(t, subjects)


async def _messages(t: NatsTransport, subjects: Subjects) -> int:
    return (await stream_state(t, subjects.stream("registry"))).messages


# --- keys ---------------------------------------------------------------------------------------------------------
def test_create_update_delete(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            assert await registry.get("agents.a") is None
            first = await registry.create("agents.a", b"1")
            with pytest.raises(WrongLastSequence) as caught:
                await registry.create("agents.a", b"x")
            assert caught.value.last == first
            second = await registry.update("agents.a", b"2", first)
            with pytest.raises(WrongLastSequence):
                await registry.update("agents.a", b"x", first)
            assert await registry.get("agents.a") == ("agents.a", b"2", second)
            assert not await registry.delete("agents.a", first)
            assert await registry.delete("agents.a", second)
            assert not await registry.delete("agents.a", second)
            assert await registry.get("agents.a") is None
            with pytest.raises(WrongLastSequence):
                await registry.update("agents.a", b"x", second)

    run(main())


def test_a_key_can_be_created_again_over_a_delete_marker(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            for n in range(3):
                revision = await registry.create("agents.a", str(n).encode())
                assert await registry.get("agents.a") == ("agents.a", str(n).encode(), revision)
                assert await registry.delete("agents.a", revision)

    run(main())


def test_a_lease_expires_and_can_be_taken_over_its_marker(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            held = await registry.create("supervisor", b"s1", ttl_s=1)

            async def expired() -> bool:
                return await registry.get("supervisor") is None

            await eventually(expired, what="the expiry")
            marker = await get_last(t, subjects.stream("registry"), subjects.registry_key("supervisor"))
            assert marker is not None  # the key is gone, its marker is not
            assert marker.headers["Nats-Marker-Reason"] == "MaxAge"
            with pytest.raises(WrongLastSequence):
                await registry.update("supervisor", b"s1", held, ttl_s=1)
            taken = await registry.create("supervisor", b"s2", ttl_s=60)
            assert await registry.get("supervisor") == ("supervisor", b"s2", taken)

    run(main())


def test_a_renewed_lease_lives_on_and_a_write_without_ttl_is_for_ever(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            expiries: list[str] = []
            await registry.watch(">", lambda entry: expiries.append(entry.key) if entry.value is None else None)
            renewed = await registry.create("nodes.n1", b"x", ttl_s=1)
            kept = await registry.create("nodes.n2", b"x", ttl_s=1)
            await registry.update("nodes.n2", b"x", kept)
            for n in range(3):
                # Two more leases mark the time: each expires a second after it was written.
                await registry.create(f"nodes.clock{n}", b"", ttl_s=1)
                renewed = await registry.update("nodes.n1", b"x", renewed, ttl_s=60 if n == 2 else 2)
                await eventually(lambda n=n: f"nodes.clock{n}" in expiries, what="a second")
            assert await registry.get("nodes.n1") is not None
            assert await registry.get("nodes.n2") is not None
            assert "nodes.n1" not in expiries

    run(main())


def test_markers_vanish_and_the_key_can_be_created_then_too(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "DELETED_TTL_S", 1)
    monkeypatch.setattr("agentmesh.edge.stream_configs.MARKER_TTL_S", 1)

    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            before = await _messages(t, subjects)
            feed: list[Entry] = []
            await registry.watch(">", feed.append)
            deleted = await registry.create("agents.deleted", b"x")
            await registry.delete("agents.deleted", deleted)
            await registry.create("agents.expired", b"x", ttl_s=1)

            async def vanished() -> bool:
                return await _messages(t, subjects) == before

            await eventually(vanished, what="the end of both markers")
            # One marker each: an expired marker leaves no second one.
            assert [entry.key for entry in feed if entry.value is None] == ["agents.deleted", "agents.expired"]
            assert await registry.create("agents.deleted", b"new") > 0
            assert await registry.create("agents.expired", b"new") > 0

    run(main())


def test_of_many_creators_one_wins(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as a, connected(server.url) as b:
            registries = [await _registry(a, subjects), await _registry(b, subjects)]
            first = await registries[0].create("agents.a", b"x")
            await registries[0].delete("agents.a", first)
            results = await asyncio.gather(*(each.create("agents.a", b"x") for each in registries * 10), return_exceptions=True)
            assert sum(isinstance(result, int) for result in results) == 1
            assert sum(isinstance(result, WrongLastSequence) for result in results) == 19

    run(main())


def test_no_verdict_is_tried_again_and_failures_show(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_RETRY_WAIT_S", 0.001)
    no_verdict = replaced(b'{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}')

    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            registry = await _registry(t, subjects)
            key = subjects.registry_key("agents.a")
            t.inject(key, no_verdict, no_verdict)
            revision = await registry.create("agents.a", b"x")
            t.inject(key, nobody)
            with pytest.raises(Unavailable):
                await registry.update("agents.a", b"y", revision)
            t.inject(key, reply_lost)
            with pytest.raises(Uncertain):
                await registry.update("agents.a", b"y", revision)
            entry = await registry.get("agents.a")
            assert entry is not None
            assert entry.value == b"y"
            t.inject(key, *[no_verdict] * 40)
            with pytest.raises(Unavailable):
                await registry.update("agents.a", b"z", entry.revision)

    run(main())


def test_other_clients_read_and_write_the_bucket(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            await registry.create("agents.ours", b"1")
            gone = await registry.create("agents.gone", b"1")
            await registry.delete("agents.gone", gone)
            client = await nats.connect(server.url)
            try:
                bucket = await client.jetstream().key_value(subjects.bucket)
                assert (await bucket.get("agents.ours")).value == b"1"
                # (Not `keys`: nats-py takes what it has not yet received for an empty bucket.)
                assert (await bucket.get("epoch")).value == b"1"
                with pytest.raises(KeyNotFoundError):
                    await bucket.get("agents.gone")
                revision = await bucket.put("agents.theirs", b"2")
                assert await registry.get("agents.theirs") == ("agents.theirs", b"2", revision)
                await bucket.delete("agents.theirs")
                assert await registry.get("agents.theirs") is None
                assert await registry.create("agents.theirs", b"3") > revision
            finally:
                await client.close()

    run(main())


# --- load and watch -----------------------------------------------------------------------------------------------
def test_load_gives_the_live_keys_under_a_prefix(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            names = [f"agents.a{n}" for n in range(600)]
            revisions = dict(zip(names, await asyncio.gather(*(registry.create(n, b"x") for n in names)), strict=True))
            await registry.create("placements.n1.a1", b"p")
            await registry.delete("agents.a7", revisions["agents.a7"])
            newest = await registry.update("agents.a0", b"y", revisions["agents.a0"])
            entries, last = await registry.load("agents.")
            assert last == newest
            assert len(entries) == 599
            assert {entry.key for entry in entries} == set(names) - {"agents.a7"}
            assert Entry("agents.a0", b"y", newest) in entries
            assert [entry.key for entry in (await registry.load("placements.n1."))[0]] == ["placements.n1.a1"]
            assert (await registry.load("none."))[0] == []
            assert len((await registry.load())[0]) == 601
            assert [e.key for e in (await registry.load_pattern("epoch"))[0]] == ["epoch"]

    run(main())


def test_load_goes_on_until_the_leader_has_nothing_more(server: Server, subjects: Subjects) -> None:
    """A replica that lags answers a page without the newest keys; what the leader knows is still found."""

    class Lagging(Faulty):
        async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> Any:
            messages = await super().request_many(subject, data, timeout=timeout)
            if len(messages) < 3:
                return messages
            end = messages[-1]
            cut = messages[:-3]  # the two newest are missing, and the end does not know of them
            last = cut[-1].headers["Nats-Sequence"] if cut else "0"
            return [*cut, end._replace(headers={**end.headers, "Nats-Num-Pending": "0", "Nats-Last-Sequence": last})]

    async def main() -> None:
        async with connected(server.url) as t:
            await _registry(t, subjects)
            registry = Registry(Lagging(t), subjects)
            for n in range(5):
                await registry.create(f"agents.a{n}", b"x")
            entries, _ = await registry.load("agents.")
            assert sorted(entry.key for entry in entries) == [f"agents.a{n}" for n in range(5)]

    run(main())


def test_watch_tells_committed_changes_only(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t, connected(server.url) as other:
            registry = await _registry(t, subjects)
            writer = Registry(other, subjects)
            seen: list[Entry] = []
            watch = await registry.watch("agents.>", seen.append)
            await t.flush()
            first = await writer.create("agents.team.a", b"1", ttl_s=60)
            with pytest.raises(WrongLastSequence):
                await writer.update("agents.team.a", b"refused", first + 100)
            await writer.create("nodes.n1", b"x")
            second = await writer.update("agents.team.a", b"2", first)
            await writer.delete("agents.team.a", second)
            third = await writer.create("agents.b", b"3", ttl_s=1)
            await eventually(lambda: len(seen) == 5, what="five changes")
            assert seen[:2] == [Entry("agents.team.a", b"1", first), Entry("agents.team.a", b"2", second)]
            assert (seen[2].key, seen[2].value) == ("agents.team.a", None)
            assert seen[3] == Entry("agents.b", b"3", third)
            assert (seen[4].key, seen[4].value) == ("agents.b", None)
            assert [entry.revision for entry in seen] == sorted(entry.revision for entry in seen)
            await t.publish(subjects.registry_change("agents.c"), b"no write of the bucket")
            await watch.close()
            await writer.create("agents.d", b"unheard")
            await t.flush()
            assert len(seen) == 5

    run(main())


# --- views --------------------------------------------------------------------------------------------------------
def test_a_view_follows(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t, connected(server.url) as other:
            registry = await _registry(t, subjects)
            writer = Registry(other, subjects)
            await writer.create("agents.a", b"1")
            changes: list[Entry] = []
            view = View(registry, ["agents.>", "nodes.*"], changes.append)
            fresh_before = view.fresh
            await view.start()
            assert (fresh_before, view.fresh) == (False, True)
            assert [entry.key for entry in changes] == list(view.entries) == ["agents.a"]
            entry = view.get("agents.a")
            assert entry is not None
            revision = await writer.update("agents.a", b"2", entry.revision)
            await writer.create("nodes.n1", b"n", ttl_s=1)
            await writer.create("placements.n1.a", b"not followed")
            await view.wait_for(lambda: "nodes.n1" in view.entries, 60)
            assert view.get("agents.a") == ("agents.a", b"2", revision)
            await view.wait_for(lambda: "nodes.n1" not in view.entries, 60)
            await writer.delete("agents.a", revision)
            await view.wait_for(lambda: not view.entries, 60)
            assert [(e.key, e.value) for e in changes] == [
                ("agents.a", b"1"),
                ("agents.a", b"2"),
                ("nodes.n1", b"n"),
                ("nodes.n1", None),
                ("agents.a", None),
            ]
            with pytest.raises(TimeoutError):
                await view.wait_for(lambda: False, 0.05)
            await view.close()
            await view.close()
            assert not view.fresh

    run(main())


def test_a_view_of_a_registry_that_takes_long_to_read_reads_it_less_often(server: Server, subjects: Subjects) -> None:
    class Slow(Faulty):
        """A connection on which reading takes time."""

        async def request_many(self, *arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0.05)  # stands for the time that 100,000 keys take
            return await super().request_many(*arguments, **options)

    async def main() -> None:
        async with connected(server.url) as inner:
            await _registry(inner, subjects)
            view = View(Registry(Slow(inner), subjects), ["agents.>"], resync_s=0.01)
            await view.start()
            assert view._pause() >= 0.05 / RESYNC_SHARE
            await view.close()

    run(main())


def test_a_view_heals_what_it_missed(server: Server, subjects: Subjects) -> None:
    """The feed is deaf; only a gap report and the resync bring the truth."""

    class Deaf(Faulty):
        gap: Any

        async def subscribe(self, subject: str, handler: Any, *, queue: str = "") -> Any:
            return await super().subscribe("deaf", handler)

        def on_gap(self, callback: Any) -> Any:
            self.gap = callback
            return lambda: None

    async def main() -> None:
        async with connected(server.url) as inner:
            writer = await _registry(inner, subjects)
            t = Deaf(inner)
            stays = await writer.create("agents.stays", b"1")
            goes = await writer.create("agents.goes", b"1")
            changes: list[Entry] = []
            view = View(Registry(t, subjects), ["agents.>"], changes.append, resync_s=3600)
            await view.start()
            await writer.update("agents.stays", b"2", stays)
            await writer.delete("agents.goes", goes)
            await writer.create("agents.new", b"1")
            assert len(changes) == 2
            t.gap()
            assert not view.fresh
            await view.wait_for(lambda: view.fresh, 60)
            assert {key: entry.value for key, entry in view.entries.items()} == {"agents.stays": b"2", "agents.new": b"1"}
            assert ("agents.goes", None) in [(entry.key, entry.value) for entry in changes[2:]]
            assert len(changes) == 5
            await view.close()

            resyncing = View(Registry(t, subjects), ["agents.>"], None, resync_s=0.05)
            await resyncing.start()
            await writer.create("agents.late", b"1")
            await resyncing.wait_for(lambda: "agents.late" in resyncing.entries, 60)
            await resyncing.close()

    run(main())


def test_older_news_never_replaces_newer(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            revision = await registry.create("agents.a", b"new")
            view = View(registry, ["agents.>"], None)
            await view.start()
            # The feed may bring what the load has seen already, in any order.
            view._apply(Entry("agents.a", b"old", revision - 1))
            view._apply(Entry("agents.a", None, revision - 1))
            assert view.get("agents.a") == ("agents.a", b"new", revision)
            # A deletion heard while a load is under way wins over what that load had read before.
            view._apply(Entry("agents.a", None, revision + 5))
            await view._merge({"agents.a": Entry("agents.a", b"new", revision)}, revision)
            assert view.get("agents.a") is None
            view._apply(Entry("agents.a", b"between", revision + 4))
            assert view.get("agents.a") is None
            # A creation heard during a load that did not see it stays.
            view._apply(Entry("agents.b", b"heard", revision + 6))
            await view._merge({}, revision + 5)
            assert view.get("agents.b") == ("agents.b", b"heard", revision + 6)
            await view.close()

    run(main())


def test_what_the_feed_brings_while_a_large_load_is_taken_in_wins_over_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            floor = 10 * PART
            view = View(registry, ["agents.>"], None)
            await view.start()
            view._apply(Entry("agents.gone", b"x", 1))
            loaded = {f"agents.a{number}": Entry(f"agents.a{number}", b"loaded", number + 2) for number in range(3 * PART)}
            last, before_last = f"agents.a{3 * PART - 1}", f"agents.a{3 * PART - 2}"
            merging = asyncio.create_task(view._merge(loaded, floor))
            while "agents.a0" not in view.entries:  # noqa: ASYNC110 - one part must be in, and not all
                await asyncio.sleep(0)
            assert last not in view.entries
            assert view.floor < floor, "not complete yet"
            view._apply(Entry(last, b"newer", floor + 1))
            view._apply(Entry(before_last, None, floor + 2))
            view._apply(Entry("agents.gone", b"old news", floor - 1))
            await merging
            assert view.floor == floor
            assert view.get(last) == Entry(last, b"newer", floor + 1)
            assert view.get(before_last) is None
            assert view.get("agents.gone") is None
            assert len(view.entries) == 3 * PART - 1
            await view.close()

    run(main())


def test_a_deleted_key_stays_so_when_the_server_is_killed(
    fresh_server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.edge.stream_configs.MARKER_TTL_S", 1)

    async def main() -> None:
        async with connected(fresh_server.url) as t:
            registry = await _registry(t, subjects)
            keys = [f"placements.n1.a{number}" for number in range(5)]
            for key in keys:
                assert await registry.delete(key, await registry.create(key, b"x"))
            await registry.create("nodes.n1", b"x", ttl_s=1)
            lease = subjects.registry_key("nodes.n1")

            async def expired() -> bool:  # and its marker too, which is gone as soon as any may be
                return await get_last(t, subjects.stream("registry"), lease) is None

            await eventually(expired, what="the end of a lease and of its marker")
            await asyncio.to_thread(fresh_server.kill)
            await asyncio.to_thread(fresh_server.start)

            async def loaded() -> bool:
                try:
                    assert (await registry.load_pattern("placements.>"))[0] == []
                except Unavailable:
                    return False
                return True

            await eventually(loaded)
            assert [await registry.get(key) for key in keys] == [None] * len(keys)

    run(main())


def test_a_view_outlives_a_server_restart(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            registry = await _registry(t, subjects)
            await registry.create("agents.a", b"1")
            view = View(registry, ["agents.>"], None)
            await view.start()
            fresh_server.kill()
            await eventually(lambda: not view.fresh, what="the view to know that it may be stale")
            assert "agents.a" in view.entries
            await asyncio.to_thread(fresh_server.start)
            await eventually(lambda: view.fresh, what="a fresh view")
            await registry.create("agents.b", b"1")
            await view.wait_for(lambda: "agents.b" in view.entries, 60)
            await view.close()

    run(main())


def test_a_view_that_cannot_load_does_not_start(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            view = View(Registry(t, subjects), ["agents.>"], None)
            with pytest.raises(Unavailable):  # nobody has made the bucket
                await view.start()
            await ensure(t, subjects)
            await view.start()
            assert view.fresh
            await view.close()

    run(main())


def test_a_failing_handler_of_changes_is_logged(server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture) -> None:
    def fail(entry: Entry) -> None:
        raise ValueError(entry.key)

    async def main() -> None:
        async with connected(server.url) as t:
            registry = await _registry(t, subjects)
            view = View(registry, ["agents.>"], fail)
            await view.start()
            await registry.create("agents.a", b"1")
            await view.wait_for(lambda: "agents.a" in view.entries, 60)
            await view.close()

    run(main())
    assert "agents.a" in caplog.text


# --- values -------------------------------------------------------------------------------------------------------
def test_typed_values() -> None:
    spec = Spec(kind="Coder", incarnation="i1")
    node = NodeLease(boot="b")
    placement = Placement(incarnation="i1")
    assert decode_spec(Entry("agents.a", encode(spec), 1)) == spec
    assert decode_node(Entry("nodes.n", encode(node), 1)) == node
    assert decode_placement(Entry("placements.n.a", encode(placement), 1)) == placement
    for value in (b"", b"{", b"[]", b'{"kind":1}', None):
        with pytest.raises(BadRequest, match=r"agents\.a"):
            decode_spec(Entry("agents.a", value, 1))
