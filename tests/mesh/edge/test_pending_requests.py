"""Requests that wait for their answers: what ends them, one by one and together."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.edge import pending_requests
from agentmesh.edge.frames import NO_HEADERS
from agentmesh.edge.pending_requests import PendingRequests
from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout
from agentmesh.errors import NotPermitted
from support import eventually, run


def test_each_kind_of_request_gets_its_own_replies() -> None:
    async def main() -> None:
        pending, answers = PendingRequests(asyncio.get_running_loop()), list[Message | Exception]()
        future = pending.wait("in.1", 5, "one")
        pending.call("in.2", answers.append, 5, "two")
        gathering = pending.gather("in.3", "three")
        for message in (
            Message("in.2", b"b", NO_HEADERS),
            Message("in.1", b"a", NO_HEADERS),
            Message("in.1", b"again", NO_HEADERS),
            Message("in.9", b"?", NO_HEADERS),
        ):
            pending.answer(message)
        pending.answer(Message("in.3", b"c", NO_HEADERS))
        pending.answer(Message("in.3", b"", NO_HEADERS, status="204"))
        assert (await future).data == b"a"
        assert [answer.data for answer in answers if isinstance(answer, Message)] == [b"b"]
        assert gathering.done.done() and [message.data for message in gathering.messages] == [b"c", b""]
        pending.call("in.4", answers.append, 5, "four")
        pending.answer(Message("in.4", b"", NO_HEADERS, status="503"))
        assert isinstance(answers[-1], NoResponders)
        pending.close()

    run(main())


def test_a_refusal_ends_those_to_its_subject_and_a_lost_connection_all(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pending, answers = PendingRequests(asyncio.get_running_loop()), list[Message | Exception]()
        one, other, flush = pending.wait("in.1", 5, "A"), pending.wait("in.2", 5, "b"), pending.wait("pong 1", 5, "")
        pending.call("in.3", answers.append, 5, "A")
        gathering = pending.gather("in.4", "A")
        assert not pending.fail(NotPermitted("no"), "a"), "subjects are told apart by case"
        assert pending.fail(NotPermitted("no"), "A")
        for ended in (one, gathering.done):
            assert isinstance(ended.exception(), NotPermitted)
        assert isinstance(answers[0], NotPermitted) and not other.done()
        assert pending.fail(NotPermitted("deaf"), None) and not flush.done(), "a PONG needs no permission"

        def careless(answer: Message | Exception) -> None:
            raise RuntimeError("careless")

        pending.call("in.5", careless, 5, "c")
        pending.call("in.6", answers.append, 5, "c")
        pending.disconnect()
        assert isinstance(answers[-1], Disconnected) and isinstance(flush.exception(), Disconnected)
        assert "the callback of a request failed" in caplog.text
        assert isinstance(other.exception(), NotPermitted)
        pending.close()

    run(main())


def test_time_outs_end_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_requests, "LOOK_S", 0.005)

    async def main() -> None:
        pending, answers = PendingRequests(asyncio.get_running_loop()), list[Message | Exception]()
        pending.call("in.1", answers.append, 0.03, "a")
        for timeout in (0.001, 0.03):
            with pytest.raises(RequestTimeout):
                await pending.wait("in.2", timeout, "a")
            del pending.waiting["in.2"]
        await eventually(lambda: answers, what="the end of the call")
        assert isinstance(answers[0], RequestTimeout)

    run(main())
