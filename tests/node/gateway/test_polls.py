"""A poll by plain request is answered as the owner answers it, and without an owner from what is stored (case 623)."""

from __future__ import annotations

import pytest

from agentmesh.edge.publish import store
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import Outcome, encode, encode_outcome
from agentmesh_node.gateway.polls import PollRequest
from node.gateway.served import CODER, Served, served
from support import Server, run


async def _poll(at: Served, body: bytes, agent: str = "coder", **headers: str) -> object:
    return await at.request(at.subjects.poll(agent), body, **headers)


@pytest.mark.case(623)
def test_a_poll_is_answered_from_what_is_stored_where_nobody_owns_the_agent(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            await at.registry.create(spec_key("other"), encode(CODER))
            ref = (await at.request(subjects.tell("coder")))["ref"]
            strange = (await at.request(subjects.tell("other")))["ref"]
            event = (await at.request(subjects.event_to("coder")))["ref"]
            assert await _poll(at, b'{"ref":"%s"}' % ref.encode()) == {"v": 1, "status": "pending"}
            assert await _poll(at, encode(PollRequest(ref=int(ref)))) == {"v": 1, "status": "pending"}
            for unknown in (strange, event, "9999", "0", "c12", str(2**64)):
                assert await _poll(at, b'{"ref":"%s"}' % unknown.encode()) == {"v": 1, "status": "not_found"}, unknown
            outcome = Outcome(agent="coder", ref=ref, ok=True, text="done")
            await store(at.transport, subjects.result("coder", ref), encode_outcome(outcome))
            found = await _poll(at, b'{"ref":"%s"}' % ref.encode())
            assert found == {
                "v": 1,
                "status": "completed",
                "outcome": {"v": 1, "agent": "coder", "ref": ref, "ok": True, "text": "done"},
            }

    run(main())


@pytest.mark.case(623)
def test_a_poll_that_makes_no_sense_is_refused_and_one_of_a_nameless_agent_finds_nothing(
    server: Server, subjects: Subjects
) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            for body in (b"", b"[]", b"{}", b'{"ref":""}', b'{"ref":"a b"}', b'{"ref":"1","op":"interrupt"}', b"[" * 99_999):
                answer = await _poll(at, body)
                assert isinstance(answer, dict) and answer["error"]["code"] == "bad_request", body
            assert await _poll(at, b'{"ref":"1"}', "nobody") == {"v": 1, "status": "not_found"}
            stored = await store(at.transport, subjects.inbox("nobody"), b"hello")
            waits = await _poll(at, b'{"ref":"%d"}' % stored.seq, "nobody")
            assert isinstance(waits, dict) and (waits["status"], waits["reason"]["code"]) == ("pending", "not_found")

    run(main())


@pytest.mark.case(623)
def test_the_owner_is_asked_for_what_is_not_stored_and_has_its_word_passed_on(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            first = await store(at.transport, subjects.inbox("coder"), b"hello")
            await at.transport.request(
                f"$JS.API.STREAM.MSG.DELETE.{subjects.stream('mail')}", b'{"seq":%d}' % first.seq, timeout=5
            )
            open_or_not = b'{"ref":"%d"}' % first.seq
            answer = await _poll(at, open_or_not)
            assert isinstance(answer, dict) and answer["error"]["code"] == "unavailable", "it may be kept open"

            async def owner(message: object) -> None:
                await at.transport.publish(message.reply, b'{"v":1,"status":"pending"}')  # type: ignore[attr-defined]

            held = await at.transport.subscribe(subjects.control("coder"), owner)
            await at.transport.flush()
            assert await _poll(at, open_or_not) == {"v": 1, "status": "pending"}
            await held.unsubscribe()

    run(main())
