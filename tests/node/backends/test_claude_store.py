"""Claude Code's transcripts in JetStream: the SDK's own conformance suite, and what it does not ask for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced
from agentmesh.subjects import Subjects, as_token, of_token
from agentmesh_node.backends.claude.store import PART, RECORD, JetStreamSessionStore
from support import Faulty, Server, connected, never_sent, reply_lost, run

KEY: Any = {"project_key": "-home-x", "session_id": "3f0c6a1e-1111-4222-8333-444455556666"}
SUB: Any = {**KEY, "subpath": "subagents/agent-1"}


def entry(n: int, **more: Any) -> Any:
    return {"type": "user", "uuid": f"u{n}", "n": n, **more}


def transcripts(t: Transport, subjects: Subjects, agent: str = "team.coder", **more: Any) -> JetStreamSessionStore:
    return JetStreamSessionStore(t, subjects, agent, **more)


def test_the_sdks_conformance_suite(server: Server, subjects: Subjects) -> None:
    suite = pytest.importorskip("claude_agent_sdk.testing")

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            names = itertools.count()
            await suite.run_session_store_conformance(lambda: transcripts(t, subjects, f"a{next(names)}"))

    run(main())


@pytest.mark.parametrize("text", ["", "-home-x", "a b", "a.b", "*", ">", "_", "_41", "subagents/agent-1", "häuser\n", "日本"])
def test_any_text_is_a_token(text: str) -> None:
    token = as_token(text)
    assert token
    assert not set(token) & set(".*> \t\r\n")
    assert of_token(token) == text


def test_a_line_larger_than_a_message_takes_several(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            await ensure(t, subjects)
            large = entry(2, text="x" * (2 * t.max_payload + 17))
            many = [entry(n, text="y" * 50_000) for n in range(3, 63)]
            kept = transcripts(t, subjects)
            await kept.append(KEY, [entry(1), large])
            await kept.append(KEY, many)
            assert await transcripts(t, subjects).load(KEY) == [entry(1), large, *many]

    run(main())


def test_a_large_line_that_was_given_up_half_way_is_not_seen(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            kept = transcripts(t, subjects)
            await kept.append(KEY, [entry(1)])
            subject = subjects.session("team.coder", KEY["project_key"], KEY["session_id"], "main")
            await store(t, subject, b'{"type":"user","uuid":"u2","n":2,"te', headers={RECORD: "r1", PART: "1/2"})
            assert await transcripts(t, subjects).load(KEY) == [entry(1)]
            # The SDK gives the whole batch again.
            again = transcripts(t, subjects)
            await store(t, subject, b'{"type":"user","uuid":"u2",', headers={RECORD: "r2", PART: "1/2"})
            await store(t, subject, b'"n":2}', headers={RECORD: "r3", PART: "2/2"})
            await again.append(KEY, [entry(2), entry(3)])
            assert await again.load(KEY) == [entry(1), entry(2), entry(3)]

    run(main())


@pytest.mark.parametrize("fault", [never_sent, reply_lost])
def test_a_lost_acknowledgement_neither_loses_nor_doubles(server: Server, subjects: Subjects, fault: Any) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            await ensure(inner, subjects)
            t = Faulty(inner)
            kept = transcripts(t, subjects)
            plain: Any = {"type": "title"}  # without a uuid: nothing but the append itself keeps it from being doubled
            await kept.append(KEY, [entry(1)])
            t.inject(subjects.session("team.coder", KEY["project_key"], KEY["session_id"], "main"), fault, fault)
            await kept.append(KEY, [plain])
            await kept.append(KEY, [entry(2)])
            assert await kept.load(KEY) == [entry(1), plain, entry(2)]

    run(main())


def test_a_transcript_has_one_writer(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            one, other = transcripts(t, subjects), transcripts(t, subjects)
            await one.append(KEY, [entry(1)])
            await other.append(KEY, [entry(2)])
            with pytest.raises(Fenced):
                await one.append(KEY, [entry(3)])
            assert await one.load(KEY) == [entry(1), entry(2)]

    run(main())


@pytest.mark.case(473)
def test_a_strangers_messages_are_passed_over_and_do_not_stop_the_writer(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            kept = transcripts(t, subjects)
            subject = subjects.session("team.coder", KEY["project_key"], KEY["session_id"], "main")
            for n, body in enumerate((b"", b"hello", b"{", b'{"kind":7}', b"\xff")):
                await kept.append(KEY, [entry(n)])
                await store(t, subject, body)
                assert await kept.load(KEY) == [entry(number) for number in range(n + 1)]
            other: Any = {**KEY, "session_id": "another"}
            await store(t, subjects.session("team.coder", KEY["project_key"], "another", "main"), b"{")
            assert await transcripts(t, subjects).load(other) is None

    run(main())


@pytest.mark.case(473)
@pytest.mark.parametrize("fault", [never_sent, reply_lost])
def test_a_strangers_message_behind_a_lost_acknowledgement_neither_loses_nor_doubles(
    server: Server, subjects: Subjects, fault: Any
) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            faulty = Faulty(t)
            kept = transcripts(faulty, subjects)
            await kept.append(KEY, [entry(1)])
            subject = subjects.session("team.coder", KEY["project_key"], KEY["session_id"], "main")

            await store(t, subject, b"hello")
            faulty.inject(subject, fault, fault)
            await kept.append(KEY, [entry(2)])
            await kept.append(KEY, [entry(3)])
            assert await transcripts(t, subjects).load(KEY) == [entry(1), entry(2), entry(3)]

    run(main())


def test_agents_keep_apart_and_one_is_cleared_whole(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            agents = {name: transcripts(t, subjects, name) for name in ("coder", "coder.17", "other")}
            for kept in agents.values():
                await kept.append(KEY, [entry(1)])
                await kept.append(SUB, [entry(2)])
            assert await agents["coder"].sessions() == {(KEY["project_key"], KEY["session_id"])}
            await agents["coder"].remove(KEY["project_key"])
            assert await agents["coder"].sessions() == set()
            assert await agents["coder"].load(SUB) is None
            assert await agents["coder.17"].load(SUB) == [entry(2)]
            # What was cleared can be begun again.
            await agents["coder"].append(KEY, [entry(9)])
            assert await agents["coder"].load(KEY) == [entry(9)]

    run(main())


def test_a_session_moves_to_another_working_directory(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await transcripts(t, subjects, project="-").append(KEY, [entry(1)])
            elsewhere: Any = {**KEY, "project_key": "-srv-y"}
            assert await transcripts(t, subjects, project="-").load(elsewhere) == [entry(1)]

    run(main())
