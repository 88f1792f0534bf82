"""`poll`: from the stored result, from the owner, or from the mailbox when there is no owner."""

from __future__ import annotations

import pytest

from agentmesh import wire
from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.errors import BadRequest, Interrupted, NotFound, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome
from agentmesh_client import connect
from client.fake_owner import world
from support import Server, eventually, run


@pytest.mark.case(22)
@pytest.mark.case(26)
@pytest.mark.case(211)
def test_a_stored_outcome_can_be_polled_again_by_anybody_and_after_the_stop(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder")
            async with w.owner("coder") as owner:
                owner.replies["poll"] = {"status": "pending"}
                told = await w.mesh.tell("coder", "hello")
                asked = (await w.mesh.ask("coder", "hello too", timeout=60)).ref

                async def done() -> bool:
                    return (await w.mesh.poll("coder", told)).done

                await eventually(done)
            await w.write_spec("coder", status="stopped")
            async with connect(server.url, root=subjects.root) as other:
                for ref, text in ((told, "echo: hello"), (asked, "echo: hello too")):
                    first, second = await other.poll("coder", ref), await w.mesh.poll("coder", ref)
                    assert first == second
                    assert first.outcome is not None
                    assert (first.status, first.outcome.text) == ("completed", text)

    run(scenario())


@pytest.mark.case(25)
def test_a_failed_request_polls_as_its_error(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder", lambda _: Interrupted("stop that")) as owner:
            await w.write_spec("coder")
            owner.replies["poll"] = {"status": "pending"}
            ref = await w.mesh.tell("coder", "hello")

            async def done() -> bool:
                return (await w.mesh.poll("coder", ref)).done

            await eventually(done)
            outcome = (await w.mesh.poll("coder", ref)).outcome
            assert outcome is not None
            with pytest.raises(Interrupted, match="stop that"):
                outcome.unwrap()

    run(scenario())


@pytest.mark.case(24)
def test_what_the_owner_says_of_a_ref_without_a_result(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies["poll"] = {"status": "pending"}
            assert (await w.mesh.poll("coder", "5")).status == "pending"
            owner.replies["poll"] = {"status": "completed", "outcome": {"agent": "coder", "ref": "5", "ok": True, "text": "hi"}}
            assert (await w.mesh.poll("coder", "5")).outcome == Outcome(agent="coder", ref="5", ok=True, text="hi")
            for reply in ({"status": "not_found"}, {"error": {"code": "not_found", "message": "never"}}):
                owner.replies["poll"] = reply
                with pytest.raises(NotFound, match="'5'"):
                    await w.mesh.poll("coder", "5")
            with pytest.raises(BadRequest):
                await w.mesh.poll("coder", "no token")

    run(scenario())


def test_a_result_stored_between_the_look_and_the_owners_answer_is_seen(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            outcome = Outcome(agent="coder", ref="5", ok=True, text="just in time")

            async def answer_late(_: object) -> None:
                await store(w.transport, subjects.result("coder", "5"), wire.encode_outcome(outcome), expected=0)

            watching = await w.transport.subscribe(subjects.control("coder"), answer_late)
            owner.replies["poll"] = {"status": "not_found"}

            async def found() -> bool:
                try:
                    return (await w.mesh.poll("coder", "5")).outcome == outcome
                except NotFound:
                    return False

            await eventually(found)
            await watching.unsubscribe()

    run(scenario())


def test_without_an_owner_the_mailbox_tells(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            for agent in ("coder", "other"):
                await w.write_spec(agent)
            mine = await w.mesh.tell("coder", "hello")
            others = await w.mesh.tell("other", "hello")
            gone = await w.mesh.tell("coder", "consumed")
            await w.mesh.tell("other", "last")
            await purge(w.transport, subjects.stream("mail"), subjects.inbox("coder"), below=int(gone) + 1)
            kept = await w.mesh.tell("coder", "hello again")

            assert (await w.mesh.poll("coder", kept, timeout=5)).status == "pending"
            for never in (others, "99999", "chained-1", "0"):
                with pytest.raises(NotFound):
                    await w.mesh.poll("coder", never, timeout=5)
            for consumed in (mine, gone):  # a deferred request looks the same: only its owner knows
                with pytest.raises(Unavailable, match="only its owner"):
                    await w.mesh.poll("coder", consumed, timeout=5)

    run(scenario())
