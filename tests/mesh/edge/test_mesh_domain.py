"""How a connection learns the JetStream domain of its mesh, and what it sends there."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.edge import mesh_domain
from agentmesh.edge.frames import NO_HEADERS
from agentmesh.edge.mesh_domain import DomainLearner, reached_by
from agentmesh.edge.transport import Answered, Message, RequestTimeout
from agentmesh.errors import NotPermitted
from support import eventually, run

MISSING = b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}'
INFO = b'{"type":"io.nats.jetstream.api.v1.stream_info_response","domain":"hub"}'


@pytest.mark.parametrize(
    ("subject", "there"),
    [
        ("$JS.API.STREAM.INFO.X", "$JS.hub.API.STREAM.INFO.X"),
        ("$KV.mesh-registry.a", "$JS.hub.API.$KV.mesh-registry.a"),
        ("mesh.inbox.a", "mesh.inbox.a"),
        ("$SYS.REQ.USER.INFO", "$SYS.REQ.USER.INFO"),
    ],
)
def test_only_what_jetstream_answers_goes_to_its_domain(subject: str, there: str) -> None:
    assert reached_by("$JS.hub.API", subject) == there


class Asked:
    """A connection that notes what it is asked."""

    def __init__(self) -> None:
        self.callbacks: list[Answered] = []
        self.found: list[str | None] = []

    def call(self, subject: str, *, timeout: float, answered: Answered) -> bool:
        assert subject == "$JS.API.STREAM.INFO.KV_mesh-registry"
        self.callbacks.append(answered)
        return True


def test_it_asks_again_until_there_is_an_answer_and_no_more_once_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_domain, "LEARN_S", 0.001)

    async def main() -> None:
        asked = Asked()
        learner = DomainLearner("KV_mesh-registry", asked.call, asked.found.append)
        learner.learn()
        assert learner.learning
        asked.callbacks[0](RequestTimeout())
        await eventually(lambda: len(asked.callbacks) == 2, what="the second question")
        asked.callbacks[1](Message("", MISSING, NO_HEADERS))
        await eventually(lambda: len(asked.callbacks) == 3, what="the third question")
        assert asked.found == []
        asked.callbacks[2](Message("", INFO, NO_HEADERS))
        assert (asked.found, learner.learning) == (["hub"], False)
        learner.learn()
        learner.close()
        asked.callbacks[3](RequestTimeout())
        await asyncio.sleep(0.01)
        assert len(asked.callbacks) == 4

    run(main())


def test_who_may_not_ask_and_who_belongs_to_no_mesh_does_not_ask_again() -> None:
    async def main() -> None:
        asked = Asked()
        learner = DomainLearner("KV_mesh-registry", asked.call, asked.found.append)
        learner.learn()
        asked.callbacks[0](NotPermitted("no"))
        assert learner._timer is None
        DomainLearner(None, asked.call, asked.found.append).learn()
        assert len(asked.callbacks) == 1

    run(main())
