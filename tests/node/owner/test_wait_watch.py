"""The watch over the waits of a turn: which end, when, and with what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from agentmesh.edge.transport import Message
from agentmesh.records import Ledger, Turning, Wait
from agentmesh.turn.step_values import WaitLost
from agentmesh.turn.values import Active, Phase
from agentmesh_node.owner.effect_handlers import no_agent
from agentmesh_node.owner.wait_watch import WaitWatch
from node.owner.noting_loop import NotingLoop
from node.simulated import SimulatedNode, simulate

pytestmark = pytest.mark.case(451)

WAIT = Wait(agent="b", since=10.0, deadline=1e12, origin="1.5.0")
WORKS = {"open": True, "ref": "7", "waits": True, "halted": False, "failed": None}
HALTED = {**WORKS, "halted": True}
FAILED = {**WORKS, "failed": {"code": "failed", "message": "crashed 6 times"}}


class Watched:
    """An agent whose turn waits for `b`, and the owner of `b`, if somebody is that."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.notes = NotingLoop(node)
        self.waits = True
        self.patient = False
        self.answer: dict[str, Any] | None = None
        self.asked: list[dict[str, Any]] = []
        self.watch = WaitWatch(
            self.notes.loop, node.services, waiting=lambda: self.waits, for_halted=lambda wait: self.patient and wait == "w"
        )

    async def begin(self, answer: dict[str, Any] | None) -> None:
        self.notes.begin()
        ledger = Ledger(
            incarnation="life", phase="ready", waits={"w": WAIT}, turning=Turning(key="inbox:1", number=1, prompt="p")
        )
        active = Active(ref="1", key="inbox:1", number=1, text="p", started=0.0)
        self.notes.become(ledger=ledger, work=ledger, active=active, phase=Phase.TURN)
        self.answer = answer
        if answer is not None:
            await self.serve()
        self.watch.arm()

    async def serve(self) -> None:
        """There is an owner of `b`."""
        await self.node.others.subscribe(self.node.subjects.control("b"), self._on_request)
        await self.node.others.flush()

    def _on_request(self, message: Message) -> None:
        self.asked.append(msgspec.json.decode(message.data))
        if self.answer is not None:
            self.node.services.spawn(self.node.others.publish(message.reply, msgspec.json.encode({"v": 1, **self.answer})))

    @property
    def lost(self) -> list[WaitLost]:
        return [item for item in self.notes.inputs if isinstance(item, WaitLost)]


def watched(story: Callable[[Watched], Awaitable[None]]) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Watched(node)
        await story(it)
        await it.notes.loop.close()

    main.__name__ = story.__name__
    simulate(main)


def test_an_agent_that_has_failed_ends_the_wait_at_the_first_look() -> None:
    async def story(it: Watched) -> None:
        await it.begin(FAILED)
        await it.node.pass_time(1.0)
        (lost,) = it.lost
        assert (lost.wait, lost.origin, lost.error.code) == ("w", "1.5.0", "failed")
        assert "crashed 6 times" in lost.error.message
        assert it.asked == [{"op": "open", "sender": it.notes.loop.name, "origin": "1.5.0"}]

    watched(story)


@pytest.mark.parametrize("answer", [HALTED, None], ids=["halted", "without a node"])
def test_one_that_is_halted_or_without_a_node_ends_it_after_a_takeover_could_be_over(answer: dict[str, Any] | None) -> None:
    async def story(it: Watched) -> None:
        await it.node.spec("b")
        await it.begin(answer)
        await it.node.pass_time(9.0)
        assert it.lost == []
        await it.node.pass_time(8.0)
        found = it.lost[0].error
        assert (found.code, found.details) == ("unavailable", {"state": "halted" if answer else "wanted"})

    watched(story)


@pytest.mark.parametrize(
    ("is_there", "code"),
    [
        ("nothing", "not_found"),
        ("a spec that is stopped", "not_found"),
        ("a journal", "unavailable"),
        ("a spec that nobody can read", "unavailable"),
    ],
)
def test_a_name_that_no_agent_has_ends_it_with_the_error_of_a_question_that_is_refused(is_there: str, code: str) -> None:
    async def story(it: Watched) -> None:
        if is_there == "a spec that is stopped":
            await it.node.spec("b", status="stopped")
        elif is_there == "a journal":
            await it.node.record("b", "activated")
        elif is_there == "a spec that nobody can read":
            await it.node.write_spec("b", b"?")
        await it.begin(None)
        await it.node.pass_time(9.0)
        assert it.lost == []
        await it.node.pass_time(8.0)
        error = it.lost[0].error
        assert error.code == code
        assert (error == no_agent("b")) is (code == "not_found")

    watched(story)


def test_whether_the_name_is_known_is_asked_again_if_it_cannot_be_told() -> None:
    async def story(it: Watched) -> None:
        registry = it.node.stream("registry").name
        it.node.faults.leaderless.add(registry)
        await it.begin(None)
        await it.node.pass_time(30.0)
        assert it.lost == []
        it.node.faults.leaderless.clear()
        await it.node.pass_time(12.0)
        assert it.lost[0].error == no_agent("b")

    watched(story)


@pytest.mark.parametrize(
    "answer", [WORKS, {**HALTED, "waits": False}, {**HALTED, "open": False}, {"open": True}, {**FAILED, "open": False}]
)
def test_one_that_works_or_has_the_question_in_hand_is_waited_for(answer: dict[str, Any]) -> None:
    async def story(it: Watched) -> None:
        await it.begin(answer)
        await it.node.pass_time(60.0)
        assert it.lost == [] and len(it.asked) > 10

    watched(story)


def test_who_wants_to_waits_for_a_halted_agent() -> None:
    async def story(it: Watched) -> None:
        it.patient = True
        await it.begin(HALTED)
        await it.node.pass_time(60.0)
        assert it.lost == []

    watched(story)


def test_a_takeover_begins_the_patience_anew_and_the_end_of_the_wait_ends_the_looks() -> None:
    async def story(it: Watched) -> None:
        await it.begin(None)
        await it.node.pass_time(6.0)
        it.answer = WORKS
        await it.serve()
        await it.node.pass_time(20.0)
        assert it.lost == []
        it.waits = False
        await it.node.pass_time(6.0)
        looks = len(it.asked)
        await it.node.pass_time(20.0)
        assert len(it.asked) == looks

    watched(story)
