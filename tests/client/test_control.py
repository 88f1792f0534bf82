"""Control requests: their replies, their errors, and owners that are away."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest

from agentmesh.control_values import ControlRequest
from agentmesh.edge.transport import Message, RequestTimeout
from agentmesh.errors import AskTimeout, BadRequest, BadState, NotFound, NotPermitted, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import ErrorBody
from agentmesh_client.control import Control, ControlReply
from client.fake_owner import world
from support import Faulty, Server, eventually, nobody, run

STATUS = {
    "name": "coder",
    "kind": "Coder",
    "backend": "scripted",
    "state": "idle",
    "halted": False,
    "queued": 2,
    "current_request": None,
    "node": "n1",
    "incarnation": "life1",
    "generation": 3071,
    "turn": 9,
    "usage": {},
}


def test_each_request_says_what_it_wants_and_returns_what_came_of_it(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {
                "status": {**STATUS, "agent_state": {"n": 1}, "of_a_later_version": True},
                "interrupt": {"interrupted": True},
                "cancel": {"cancelled": True},
                "resume": {"resumed": False},
            }
            status = await w.mesh.status("coder", content=True)
            assert (status.queued, status.generation, status.agent_state) == (2, 3071, {"n": 1})
            assert await w.mesh.interrupt("coder") is True
            assert await w.mesh.interrupt("coder", "17") is True
            assert await w.mesh.cancel("coder", "17") is True
            assert await w.mesh.resume("coder") is False
            assert owner.requests == [
                {"op": "status", "content": True},
                {"op": "interrupt"},
                {"op": "interrupt", "ref": "17"},
                {"op": "cancel", "ref": "17"},
                {"op": "resume"},
            ]

    run(scenario())


@pytest.mark.case(236)
def test_timers_are_set_and_cancelled(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            due = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
            owner.replies = {"set_timer": {"set": True, "due": "2030-01-02T03:04:05Z"}, "cancel_timer": {"cancelled": True}}
            assert (await w.mesh.set_timer("coder", "t1", {"tick": 1}, at=due)).due == due
            await w.mesh.set_timer("coder", "t1", {"tick": 1}, after_s=60, every_s=30)
            assert await w.mesh.cancel_timer("coder", "t1") is True
            assert owner.requests == [
                {"op": "set_timer", "id": "t1", "event": {"tick": 1}, "at": "2030-01-02T03:04:05.000000Z"},
                {"op": "set_timer", "id": "t1", "event": {"tick": 1}, "after_s": 60, "every_s": 30},
                {"op": "cancel_timer", "id": "t1"},
            ]
            wrong: list[dict[str, Any]] = [
                {},
                {"at": due, "after_s": 1.0},
                {"after_s": -1.0},
                {"after_s": 1.0, "every_s": 0.0},
                {"at": due.replace(tzinfo=None)},
            ]
            for arguments in wrong:
                with pytest.raises(BadRequest):
                    await w.mesh.set_timer("coder", "t1", {}, **arguments)

    run(scenario())


def test_the_owners_error_is_raised_as_its_type(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies["resume"] = {"error": {"code": "bad_state", "message": "cannot be decoded", "details": {"turn": 4}}}
            with pytest.raises(BadState, match="cannot be decoded") as caught:
                await w.mesh.resume("coder")
            assert caught.value.details == {"turn": 4}
            owner.replies["status"] = {"name": "coder"}
            with pytest.raises(Unavailable, match="newer"):
                await w.mesh.status("coder")

    run(scenario())


def test_a_request_waits_for_an_owner_in_takeover(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder")
            asked = asyncio.create_task(w.mesh.status("coder", timeout=60))
            await w.transport.flush()
            owner = w.owner("coder")
            owner.replies["status"] = STATUS
            async with owner:
                assert (await asked).node == "n1"

    run(scenario())


def test_an_owner_that_is_away_is_told_apart_from_none(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            with pytest.raises(NotFound):
                await w.mesh.interrupt("coder")
            await w.write_spec("coder")
            with pytest.raises(Unavailable, match="waits for another") as caught:
                await w.mesh.interrupt("coder", timeout=8)
            assert caught.value.details["status"] == "running"
            await w.write_spec("coder", status="wanted", reason=ErrorBody(code="no_node", message="no node has label gpu"))
            async with asyncio.timeout(20):
                with pytest.raises(Unavailable, match="no node has label gpu"):
                    await w.mesh.status("coder", timeout=120)

    run(scenario())


def test_an_owner_that_was_away_until_the_last_moment_is_not_one_that_is_mute(server: Server, subjects: Subjects) -> None:
    def late(reply: Message | None) -> Message:
        raise RequestTimeout

    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder")
            transport = Faulty(w.transport)
            transport.inject(subjects.control("coder"), nobody, *[late] * 100)
            control = Control(transport, subjects, w.mesh._specs)
            with pytest.raises(Unavailable, match="waits for another"):
                await control.ask("coder", ControlRequest(op="poll", ref="1"), ControlReply, timeout=0.5, repeat=True)

    run(scenario())


def test_an_owner_that_does_not_answer_ends_in_a_timeout(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"interrupt": None}
            with pytest.raises(AskTimeout):
                await w.mesh.interrupt("coder", timeout=8)
            await eventually(lambda: owner.requests)
            assert owner.requests == [{"op": "interrupt"}], "an interrupt of whatever runs must not be repeated"

    run(scenario())


class Refusing:
    """A connection whose server refuses some subjects, and an owner that refuses the rest, or answers it."""

    connected = True

    def __init__(self, *refused: str, answer: bytes = b'{"v":1,"interrupted":true}') -> None:
        self.refused = refused
        self.answer = answer
        self.sent: list[tuple[str, bytes]] = []

    async def request(self, subject: str, data: bytes, *, headers: object = None, timeout: float) -> Message:
        self.sent.append((subject, data))
        if subject in self.refused:
            raise NotPermitted(f"publish to {subject}")
        return Message("_INBOX.1", self.answer, {})


@pytest.mark.case(616)
def test_an_operation_that_alone_is_permitted_is_sent_by_its_subject_once_the_other_form_is_refused(subjects: Subjects) -> None:
    every, one = subjects.control("coder"), subjects.control_op("interrupt", "coder")

    async def interrupt(transport: Refusing) -> ControlReply:
        control = Control(transport, subjects, None)  # type: ignore[arg-type]
        request = ControlRequest(op="interrupt", ref="17")
        return await control.ask("coder", request, ControlReply, timeout=60, repeat=True)

    async def scenario() -> None:
        free, few, none = Refusing(), Refusing(every), Refusing(every, one)
        assert (await interrupt(free)).interrupted and [subject for subject, _ in free.sent] == [every]
        assert (await interrupt(few)).interrupted and few.sent[1] == (one, b'{"ref":"17"}')
        with pytest.raises(NotPermitted, match=every):
            await interrupt(none)
        owner = Refusing(answer=b'{"v":1,"error":{"code":"not_permitted","message":"the key is another one"}}')
        with pytest.raises(NotPermitted, match="key"):
            await interrupt(owner)
        assert [subject for subject, _ in owner.sent] == [every], "the owner's word is the last one"

    run(scenario())
