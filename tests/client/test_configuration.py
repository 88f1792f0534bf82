"""`update_agent`: one id for all attempts, labels by compare-and-set, and errors that say what to do."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from agentmesh.control_values import Configuration
from agentmesh.errors import AskTimeout, BadRequest, Conflict, NotFound, Unavailable
from agentmesh.registry_values import By, Restart
from agentmesh.subjects import Subjects
from agentmesh_client.configuration import adjustment, checked_labels
from client.fake_owner import world
from client.test_control import STATUS
from support import Server, eventually, run

FOUND = Configuration(
    backend_options={}, budget={}, watchdog_s=600.0, restart=Restart(), labels={"zone": "a"}, sets=0, tag="0a1b2c3d4e"
)


def test_what_makes_no_sense_is_refused_in_the_caller() -> None:
    assert adjustment() is None
    for wrong in ({"restart": "never"}, {"watchdog_s": 0}, {"budget": {"euro": 1}}, {"backend_options": {"f": object()}}):
        with pytest.raises(BadRequest):
            adjustment(**wrong)
    for labels in ({"": "x"}, {"a": 1}, {"mesh.reads-2": None}):
        with pytest.raises(BadRequest):
            checked_labels(labels)  # type: ignore[arg-type]


@pytest.mark.case(343)
def test_a_request_that_is_sent_again_bears_the_same_id(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"set": None}
            with pytest.raises(AskTimeout, match="does no harm"):
                await w.mesh.update_agent("coder", watchdog_s=60, timeout=3)
            assert len(owner.requests) > 1 and len({request["id"] for request in owner.requests}) == 1

    run(scenario(), timeout=60)


@pytest.mark.case(582)
def test_that_a_request_waits_is_no_answer_to_it(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"set": {"status": "pending"}}
            setting = asyncio.create_task(w.mesh.update_agent("coder", watchdog_s=60, timeout=60))
            await eventually(lambda: len(owner.requests) > 1, 10, "it is asked again")
            owner.replies = {"set": {"set": True, "configuration": to_builtins(FOUND)}}
            assert (await setting).configuration == FOUND
            assert len({request["id"] for request in owner.requests}) == 1
            owner.replies = {"set": {"status": "pending"}}
            with pytest.raises(AskTimeout, match="does no harm"):
                await w.mesh.update_agent("coder", watchdog_s=60, timeout=0.2)

    run(scenario(), timeout=60)


@pytest.mark.case(347)
def test_an_owner_of_an_older_build_is_named_as_the_cause(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"set": {"error": {"code": "bad_request", "message": "unknown operation 'set'", "details": {}}}}
            with pytest.raises(Unavailable, match="older build"):
                await w.mesh.update_agent("coder", watchdog_s=60)

    run(scenario(), timeout=60)


@pytest.mark.case(345)
def test_labels_need_no_owner_and_leave_the_rest_of_the_spec(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            before = await w.write_spec(
                "coder", labels={"zone": "a", "mesh.reads-2": "yes"}, by=By(sender="boss", origin="1.2.0"), status="wanted"
            )
            done = await w.mesh.update_agent("coder", labels={"gpu": "yes", "zone": None})
            assert done.changed
            spec = await w.spec("coder")
            assert spec.labels == {"gpu": "yes", "mesh.reads-2": "yes"}
            assert (spec.by, spec.incarnation, spec.status) == (before.by, before.incarnation, "wanted")
            assert not (await w.mesh.update_agent("coder", labels={"gpu": "yes"})).changed
            with pytest.raises(NotFound):
                await w.mesh.update_agent("nobody", labels={"gpu": "yes"})

    run(scenario(), timeout=60)


@pytest.mark.case(344)
def test_labels_that_somebody_else_has_changed_stay(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder", labels={"zone": "b"})
            owner.replies = {"set": {"set": True, "configuration": FOUND}}  # of an owner that has not heard of it yet
            with pytest.raises(Conflict):
                await w.mesh.update_agent("coder", watchdog_s=60, labels={"zone": "c"}, expect=FOUND.tag)
            assert (await w.spec("coder")).labels == {"zone": "b"}

    run(scenario(), timeout=60)


@pytest.mark.case(464)
def test_options_of_a_start_are_set_afterwards_where_an_older_node_has_dropped_them(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner, w.placer():
            for found, sets in (({}, 1), ({"model": "new", "more": 1}, 0)):
                owner.requests.clear()
                owner.replies = {"status": STATUS | {"configuration": to_builtins(replace(FOUND, backend_options=found))}}
                owner.replies["set"] = {"set": True}
                await w.mesh.start_agent("coder", kind="Coder", backend_options={"model": "new", "gone": None})
                assert (await w.spec("coder")).backend_options == {"model": "new", "gone": None}
                assert len([request for request in owner.requests if request["op"] == "set"]) == sets
                await w.mesh.stop("coder")

    run(scenario(), timeout=60)
