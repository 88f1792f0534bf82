"""Publishing once, over a connection that loses acknowledgements."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout, Transport
from agentmesh.errors import BadRequest, NotPermitted, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import MSG_ID, Outcome
from agentmesh_client import mailer
from agentmesh_client.mailer import Mailer
from support import run

ACK = Message("", b'{"stream":"S","seq":17}', {})
IN_PROCESS = Message("", b'{"error":{"code":400,"err_code":10158,"description":"duplicate message id is in process"}}', {})


class Line:
    """A transport that answers publishes from a script; its last entry counts for all that follow."""

    def __init__(self, *script: Message | type[Exception]) -> None:
        self._script = list(script)
        self.connected = True
        self.ids: list[str] = []
        self.domain: str | None = None

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float
    ) -> Message:
        self.ids.append((headers or {})[MSG_ID])
        step = self._script[0] if len(self._script) == 1 else self._script.pop(0)
        if isinstance(step, Message):
            return step
        raise step

    def put(self, timeout: float = 5.0, answer: asyncio.Future[Outcome | None] | None = None) -> Any:
        mailer = Mailer(cast("Transport", self))
        message_id = mailer.message_id("coder", "key")
        return mailer.put("mesh.inbox.coder", b"hi", {}, message_id=message_id, timeout=timeout, answer=answer)


@pytest.mark.case(207)
def test_a_publish_of_unknown_fate_is_repeated_under_its_id() -> None:
    line = Line(RequestTimeout, NoResponders, Disconnected, ACK)
    assert run(line.put()).seq == 17
    assert line.ids == ["coder.key"] * 4


@pytest.mark.case(207)
def test_a_publish_whose_first_try_is_still_being_stored_is_repeated() -> None:
    line = Line(RequestTimeout, IN_PROCESS, ACK)
    assert run(line.put()).seq == 17
    with pytest.raises(Unavailable, match="may or may not"):
        run(Line(IN_PROCESS).put(timeout=0.1))


def test_what_was_surely_not_stored_is_told_apart_from_what_may_be() -> None:
    with pytest.raises(Unavailable, match="nothing was sent") as sure:
        run(Line(NoResponders).put(timeout=0.1))
    assert sure.value.details == {"uncertain": False}
    with pytest.raises(Unavailable, match="may or may not") as unsure:
        run(Line(RequestTimeout, NoResponders).put(timeout=0.1))
    assert unsure.value.details == {"uncertain": True, "idempotency_key": "key"}


def test_repeating_ends_before_the_server_forgets_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer, "REPEATABLE_S", 0.1)
    with pytest.raises(Unavailable, match="may or may not"):
        run(Line(RequestTimeout).put(timeout=600), timeout=10)


def test_an_answer_proves_that_the_prompt_was_stored() -> None:
    async def scenario() -> int:
        answer: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        answer.set_result(Outcome(agent="coder", ref="23", ok=True, text="done"))
        stored = await Line(RequestTimeout).put(answer=answer)
        return int(stored.seq)

    assert run(scenario()) == 23


def test_a_forbidden_publish_is_not_repeated() -> None:
    line = Line(NotPermitted)
    with pytest.raises(NotPermitted):
        run(line.put(timeout=600), timeout=10)
    assert len(line.ids) == 1


def test_ids_are_the_agents_own_and_never_the_same() -> None:
    mailer = Mailer(cast("Transport", Line(ACK)))
    ids = {mailer.message_id("a.b", None) for _ in range(100)}
    assert len(ids) == 100
    assert all(one.startswith("a.b.") for one in ids)
    assert mailer.message_id("a", "b") == "a.b"
    with pytest.raises(BadRequest):  # else "a" with the key "b.c" would be "a.b" with the key "c"
        mailer.message_id("a", "b.c")


class Forgetful(Line):
    """Its server says how long it remembers ids, and acknowledges nothing."""

    def __init__(self, window_s: float) -> None:
        super().__init__(RequestTimeout)
        self._info = json.dumps(
            {
                "state": {"messages": 0, "first_seq": 0, "last_seq": 0},
                "config": {"duplicate_window": int(window_s * 1e9)},
            }
        ).encode()
        self.asked = 0

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float
    ) -> Message:
        if subject == "$JS.API.STREAM.INFO.MESH_MAIL":
            self.asked += 1
            return Message("", self._info, {})
        return await super().request(subject, data, headers=headers, timeout=timeout)

    def mailer(self) -> Mailer:
        return Mailer(cast("Transport", self), subjects=Subjects())


@pytest.mark.case(207)
def test_repeating_keeps_within_the_window_that_the_mesh_has() -> None:
    line = Forgetful(window_s=0.2)
    mailer = line.mailer()

    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(Unavailable, match="s of the first attempt"):
                await mailer.put("mesh.inbox.coder", b"hi", {}, message_id=mailer.message_id("coder", None), timeout=600)

    run(scenario(), timeout=20)
    assert len(line.ids) > 2, "both were repeated"
    assert line.asked == 1, "it is asked once"


def test_what_was_surely_not_stored_is_tried_as_long_as_its_caller_waits() -> None:
    line = Line(NoResponders, NoResponders, NoResponders, NoResponders, ACK)
    assert run(line.put(timeout=60)).seq == 17
