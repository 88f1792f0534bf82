"""The streams of a mesh, as the server makes them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agentmesh.edge import stream_configs as configs
from agentmesh.edge import streams
from agentmesh.edge.api import call_api
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.manage import stream_state
from agentmesh.edge.publish import schedule, store
from agentmesh.edge.registry import Registry
from agentmesh.edge.stream_configs import stream_configs
from agentmesh.edge.streams import absent, account_has_streams, carry_out, ensure, plan
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest, ConfigMismatch, MailboxFull, ServerTooOld, TooLarge, Unavailable
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import MAIL_ROOM
from support import Cluster, Faulty, Server, connected, eventually, run


def test_every_field_arrives_as_it_was_asked_for(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, mailbox_limit=77, results_age_s=120)
            made = stream_configs(subjects, replicas=1, max_payload=t.max_payload, mailbox_limit=77, results_age_s=120)
            assert set(made) == {
                f"{subjects.root.upper()}_{role}" for role in ("MAIL", "TIMER", "RESULT", "JOURNAL", "DEAD", "SESSION", "TRACE")
            } | {f"KV_{subjects.root}-registry", f"OBJ_{subjects.root}-blobs"}
            for name, wanted in made.items():
                found = (await stream_state(t, name)).config
                for field, value in wanted.items():
                    assert found.get(field, False) == value, (name, field)

    run(main())


def test_many_processes_may_ensure_at_once_and_again(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as a, connected(server.url) as b:
            await asyncio.gather(*(ensure(t, subjects) for t in (a, b) * 5))
            await ensure(a, subjects)
            entry = await Registry(a, subjects).get("epoch")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"1", 1)

    run(main())


def test_a_raised_epoch_stays(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            registry = Registry(t, subjects)
            await registry.update("epoch", b"2", 1)
            await ensure(t, subjects)
            entry = await registry.get("epoch")
            assert entry is not None
            assert entry.value == b"2"

    run(main())


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"mailbox_limit": 5}, "max_msgs_per_subject"), ({"results_age_s": 5}, "max_age"), ({"replicas": 3}, "num_replicas")],
)
def test_another_configuration_is_named(server: Server, subjects: Subjects, changed: dict[str, Any], field: str) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, replicas=1)
            with pytest.raises(ConfigMismatch) as caught:
                await ensure(t, subjects, **changed)
            details = caught.value.details
            assert details["field"] == field
            assert details["stream"].startswith(subjects.root.upper())
            assert details["wanted"] != details["found"]

    run(main())


def test_a_stranger_s_stream_on_our_subjects_is_named(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stranger = subjects.root.upper()
            await call_api(t, f"STREAM.CREATE.{stranger}", {"name": stranger, "subjects": [f"{subjects.root}.inbox.*"]})
            with pytest.raises(ConfigMismatch, match="another stream"):
                await ensure(t, subjects)

    run(main())


def test_an_old_server_is_refused(server: Server, subjects: Subjects) -> None:
    class Old(Faulty):
        server_version = (2, 12, 9)
        clustered = False

    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(ServerTooOld, match=r"2\.12\.9"):
                await ensure(Old(t), subjects)

    run(main())


def test_without_jetstream_it_says_so_and_gives_up(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "PATIENCE_S", 0.6)
    monkeypatch.setattr(streams, "_TELL_S", 0.1)

    class Nobody(Faulty):
        async def request(self, *args: Any, **kwargs: Any) -> Message:
            raise Unavailable("JetStream is off")

    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(Unavailable, match="JetStream is off"):
                await ensure(Nobody(t), subjects)

    run(main())
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "JetStream is off" in warning


def test_every_lane_takes_names_of_every_length_and_republishes(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            agents = ["coder", "team-a.coder", ".".join("abcdefgh")]
            for agent in agents:
                live: list[Message] = []
                subscription = await t.subscribe(subjects.copies(agent), live.append)
                stored = [
                    (await store(t, subjects.lane(lane, agent), lane.encode(), headers={"Mesh-Tag": "t"})).seq
                    for lane in LANES
                    if lane != "due"
                ]
                await schedule(t, subjects.timer(agent, "t1"), subjects.due(agent), time.time(), b"due")
                await eventually(lambda live=live: len(live) == len(LANES), what=f"all lanes of {agent}")
                assert [subjects.parse_copy(message.subject) for message in live] == [(lane, agent) for lane in LANES]
                assert [message.data.decode() for message in live] == list(LANES)
                assert [int(message.headers["Nats-Sequence"]) for message in live[:-1]] == stored
                await subscription.unsubscribe()

    run(main())


def test_results_and_the_registry_are_republished(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            seen: list[Message] = []
            await t.subscribe(subjects.done("coder", "*"), seen.append)
            await t.subscribe(subjects.registry_change(), seen.append)
            await store(t, subjects.result("coder", "17"), b"outcome", expected=0)
            await store(t, subjects.registry_key("agents.coder"), b"spec")
            await eventually(lambda: len(seen) == 2, what="both copies")
            assert [message.subject for message in seen] == [
                subjects.done("coder", "17"),
                subjects.registry_change("agents.coder"),
            ]
            with pytest.raises(WrongLastSequence):
                await store(t, subjects.result("coder", "17"), b"another outcome", expected=0)

    run(main())


@pytest.mark.case(208)
def test_a_lane_is_bounded_by_itself(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, mailbox_limit=3)
            for _ in range(3):
                await store(t, subjects.inbox("a"), b"x")
            with pytest.raises(MailboxFull):
                await store(t, subjects.inbox("a"), b"x")
            await store(t, subjects.lane("peer-inbox", "a"), b"a colleague gets through")
            await store(t, subjects.inbox("a.b"), b"another agent")

    run(main())


@pytest.mark.case(244)
def test_what_a_stranger_may_not_do_to_mail(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await store(t, subjects.inbox("a"), b"x")
            for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}):
                with pytest.raises(BadRequest):
                    await store(t, subjects.inbox("a"), b"x", headers=headers)
            body = b"x" * (t.max_payload - MAIL_ROOM)
            await store(t, subjects.inbox("a"), body)
            with pytest.raises(TooLarge):
                await store(t, subjects.inbox("a"), body + b"x")
            assert (await stream_state(t, subjects.stream("mail"))).messages == 2

    run(main())


@pytest.mark.processes
def test_three_replicas_on_a_cluster_by_default(subjects: Subjects) -> None:
    with Cluster() as cluster:

        async def main() -> None:
            async with connected(cluster.url) as a, connected(cluster.url) as b:
                assert a.clustered
                await asyncio.gather(ensure(a, subjects), ensure(b, subjects), ensure(a, subjects))
                names = stream_configs(subjects, replicas=3, max_payload=a.max_payload)
                for name in names:
                    assert (await stream_state(a, name)).config["num_replicas"] == 3
                await ensure(b, subjects, replicas=3)
                # A mesh that was made with one replica is taken as it is, unless the caller says what it wants.
                other = Subjects(root=subjects.root + "x")
                await ensure(a, other, replicas=1)
                await ensure(a, other)
                with pytest.raises(ConfigMismatch):
                    await ensure(a, other, replicas=3)

        run(main(), timeout=60)


def test_more_replicas_than_servers(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "JOINING_S", 0.3)

    class Alone(Faulty):
        """One server that calls itself a cluster."""

        server_version = (2, 15, 0)
        clustered = True

    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(Unavailable, match="3 replicas"):
                await ensure(t, subjects, replicas=3)
            await ensure(Alone(t), subjects)
            assert (await stream_state(t, subjects.stream("mail"))).config["num_replicas"] == 1

    run(main())


# --- setup ----------------------------------------------------------------------------------------------------------
async def take_away(t: NatsTransport, stream: str) -> None:
    await call_api(t, f"STREAM.DELETE.{stream}")


async def change(t: NatsTransport, stream: str, **fields: Any) -> None:
    await call_api(t, f"STREAM.UPDATE.{stream}", (await stream_state(t, stream)).config | fields)


@pytest.mark.case(260)
def test_a_plan_says_what_is_missing_and_changes_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            names = set(stream_configs(subjects, replicas=1, max_payload=t.max_payload))
            found = await plan(t, subjects)
            later = {name for name in names if configs.purpose(subjects, name) is not None}
            assert {config["name"] for config in found.create} == names and set(found.lost) == names - later
            assert not found.known
            refusal = found.refusal(subjects.root)
            assert refusal is not None
            assert refusal.code == "stream_missing"
            assert "mesh setup --new" in refusal.message and "encryption key" in refusal.message
            assert (await absent(t, subjects)).lost == found.lost, "nothing was made"
            await carry_out(t, subjects, found)
            again = await plan(t, subjects)
            assert (again.create, again.change, again.refusal(subjects.root)) == ([], [], None)

    run(main())


@pytest.mark.case(260)
def test_what_every_mesh_has_is_not_made_anew_unasked(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await store(t, subjects.result("a", "1"), b"used")
            await store(t, subjects.result("a", "2"), b"twice")
            await take_away(t, subjects.stream("mail"))
            found = await plan(t, subjects)
            refusal = found.refusal(subjects.root)
            assert refusal is not None
            assert "restore" in refusal.message and "--new" in refusal.message
            assert refusal.details == {"missing": [subjects.stream("mail")]}
            await carry_out(t, subjects, found)
            assert (await store(t, subjects.inbox("a"), b"x")).seq > 1_000_000_000, "no sequence is given twice"

    run(main())


@pytest.mark.case(263)
def test_what_a_newer_build_needs_is_added_and_nothing_is_taken_away(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            # As an older build has made them: without one stream, one subject, one switch. And one subject of somebody else's.
            mail, dead, own = subjects.stream("mail"), subjects.stream("dead"), f"{subjects.root}.own"
            await take_away(t, dead)
            kept = [subject for subject in (await stream_state(t, mail)).config["subjects"] if "peer-answer" not in subject]
            await change(t, mail, subjects=[*kept, own])
            await change(t, subjects.stream("result"), republish=None)
            await store(t, subjects.inbox("a"), b"stays")
            monkeypatch.setattr(
                configs, "LATER", {"dead": "dead letters", "mail.subjects": "answers", "result.republish": "news"}
            )
            lacks = await absent(t, subjects)
            assert lacks.lost == []
            assert lacks.later == {
                dead: "dead letters",
                f"{mail}.subjects": "answers",
                f"{subjects.stream('result')}.republish": "news",
            }
            found = await plan(t, subjects)
            assert found.refusal(subjects.root) is None, "an older mesh has not lost what it never had"
            await carry_out(t, subjects, found)
            assert (await absent(t, subjects)).later == {}
            state = await stream_state(t, mail)
            assert set(state.config["subjects"]) == {*kept, own, f"{subjects.root}.peer-answer.>"}
            assert state.messages == 1

    run(main())


@pytest.mark.case(263)
def test_a_bound_may_grow_and_does_not_shrink(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, results_age_s=300, mailbox_limit=10)
            await ensure(t, subjects, results_age_s=600, mailbox_limit=20)
            await ensure(t, subjects)
            assert (await stream_state(t, subjects.stream("result"))).config["max_age"] == 600_000_000_000
            assert (await stream_state(t, subjects.stream("mail"))).config["max_msgs_per_subject"] == 20
            with pytest.raises(ConfigMismatch, match="max_age"):
                await ensure(t, subjects, results_age_s=300)

    run(main())


@pytest.mark.case(263)
def test_each_stream_has_bounds_of_its_own(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, trace_age_s=300, trace_bytes=1 << 20)
            await ensure(t, subjects, results_age_s=7200)
            traces = (await stream_state(t, subjects.stream("trace"))).config
            assert (traces["max_age"], traces["max_bytes"]) == (300_000_000_000, 1 << 20), "nobody chose anything for this one"
            with pytest.raises(ConfigMismatch) as caught:
                await ensure(t, subjects, trace_bytes=1 << 19)
            assert caught.value.details["stream"] == subjects.stream("trace")

    run(main())


@pytest.mark.case(540)
def test_a_mesh_of_a_former_build_lacks_traces_alone(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await take_away(t, subjects.stream("trace"))
            lacks = await absent(t, subjects)
            assert lacks.lost == [] and set(lacks.later) == {subjects.stream("trace")}
            found = await plan(t, subjects)
            assert found.refusal(subjects.root) is None
            await carry_out(t, subjects, found)
            assert await absent(t, subjects) == ([], {})

    run(main())


def test_a_process_names_what_its_mesh_must_have_and_lacks(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await change(t, subjects.stream("result"), republish=None)
            with pytest.raises(ConfigMismatch, match="`mesh setup` adds it"):
                await absent(t, subjects)
            await ensure(t, subjects)
            assert await absent(t, subjects) == ([], {})

    run(main())


def test_a_store_that_can_be_read_shows_any_stream(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            assert not await account_has_streams(t)
            await call_api(t, "STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["other"]})
            assert await account_has_streams(t)

    run(main())
