"""What the gateway answers to a client that may only send requests (case 624)."""

from __future__ import annotations

import pytest

from agentmesh.edge.failures import Uncertain
from agentmesh.edge.publish import Stored
from agentmesh.edge.transport import Message, NoResponders, RequestTimeout
from agentmesh.errors import NotFound, NotPermitted, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_client.by_request import poll_by_request, store_by_request
from support import run


class Answers:
    """A connection whose requests are answered so."""

    connected = True

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer

    async def request(self, subject: str, data: bytes = b"", **how: object) -> Message:
        if isinstance(self.answer, Exception):
            raise self.answer
        return Message(subject, self.answer, {})


def _error(code: str, details: str = "{}") -> bytes:
    return b'{"v":1,"error":{"code":"%s","message":"m","details":%s}}' % (code.encode(), details.encode())


async def _store(answer: bytes | Exception) -> Stored:
    return await store_by_request(Answers(answer), "mesh.tell.a", b"x", headers={}, msg_id="a.1")  # type: ignore[arg-type]


@pytest.mark.case(624)
def test_only_what_is_of_unknown_fate_is_uncertain() -> None:
    assert run(_store(b'{"v":1,"ref":"17"}')) == Stored(17, False)
    assert run(_store(b'{"v":1,"ref":"17","duplicate":true}')) == Stored(17, True)
    told: list[tuple[bytes | Exception, type[Exception]]] = [
        (_error("not_found"), NotFound),
        (_error("not_permitted"), NotPermitted),
        (_error("unavailable"), Unavailable),
        (_error("unavailable", '{"uncertain":true}'), Uncertain),
        (RequestTimeout(), Uncertain),
        (NoResponders("mesh.tell.a"), Unavailable),
        (b"{}", Uncertain),
        (b"no JSON", Uncertain),
    ]
    for answer, error in told:
        with pytest.raises(error):
            run(_store(answer))


@pytest.mark.case(624)
def test_a_poll_says_what_the_gateway_says() -> None:
    async def poll(answer: bytes | Exception) -> str:
        found = await poll_by_request(Answers(answer), Subjects("mesh"), "a", "17", key=None)  # type: ignore[arg-type]
        return f"{found.status} {found.outcome.text if found.outcome else None}"

    outcome = b'{"v":1,"status":"completed","outcome":{"v":1,"agent":"a","ref":"17","ok":true,"text":"done"}}'
    assert run(poll(outcome)) == "completed done"
    assert run(poll(b'{"v":1,"status":"pending"}')) == "pending None"
    told: list[tuple[bytes | Exception, type[Exception]]] = [
        (_error("not_permitted"), NotPermitted),
        (RequestTimeout(), Unavailable),
        (NoResponders("x"), Unavailable),
        (b"[]", Unavailable),
    ]
    for answer, error in told:
        with pytest.raises(error):
            run(poll(answer))
