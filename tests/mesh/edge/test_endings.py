"""How mail ends: the first outcome that is stored stays, and a dead letter is the message as it was, with the reason."""

from __future__ import annotations

import pytest

from agentmesh import wire
from agentmesh.edge.endings import bury, send_outcome
from agentmesh.edge.results import store_outcome
from agentmesh.headers import trace_in
from agentmesh.records import Bury, Resolve
from agentmesh.wire import ErrorBody, Outcome
from node.simulated import SimulatedNode, simulate

GONE = ErrorBody(code="not_found", message="no agent\nhas this name \u2026")


def test_the_first_outcome_that_is_stored_stays() -> None:
    async def story(node: SimulatedNode) -> None:
        for text in ("first", "second"):
            await store_outcome(node.transport, node.subjects, Outcome(agent="a", ref="7", ok=True, text=text))
        (stored,) = node.stored(node.subjects.result("a", "7"))
        assert wire.decode_outcome(stored.data).text == "first"

    simulate(story)


def test_only_a_caller_that_waits_on_a_subject_is_told() -> None:
    async def story(node: SimulatedNode) -> None:
        outcome = Outcome(agent="a", ref="7", ok=False, error=GONE)
        heard: list[bytes] = []
        inbox = "_INBOX.caller"
        await node.others.subscribe(inbox, lambda message: heard.append(message.data))
        await node.others.flush()
        await send_outcome(node.transport, Resolve(outcome=outcome))
        await send_outcome(node.transport, Resolve(outcome=outcome, reply_to=inbox))
        await node.until(lambda: heard, "the caller hears of it")
        assert [wire.decode_outcome(data) for data in heard] == [outcome]

    simulate(story)


def test_a_dead_letter_is_the_message_as_it_was_with_the_reason_and_comes_once() -> None:
    async def story(node: SimulatedNode) -> None:
        given = {"Mesh-For": "life", "Content-Type": "text/plain", "X-Other": "x"}
        seq = await node.mail("a", b"hello", headers=given)
        for _ in range(2):
            effect = Bury(lane="inbox", seq=seq, reason=GONE)
            await bury(node.transport, node.subjects, "a", effect, origin="1.5.0", nonce="n")
        (letter,) = node.stored(node.subjects.dead("a"))
        assert letter.data == b"hello"
        assert letter.headers["Mesh-Reason"] == "not_found"
        assert letter.headers["Mesh-Reason-Text"] == "no agent has this name ?"
        assert letter.headers["Mesh-Ref"] == str(seq)
        assert {k: v for k, v in letter.headers.items() if k in given} == {k: v for k, v in given.items() if k != "X-Other"}

    simulate(story)


def test_a_message_that_a_replica_does_not_show_yet_is_in_its_dead_letter() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = await node.mail("a", b"hello")
        node.faults.lag_s = 10.0
        await bury(node.transport, node.subjects, "a", Bury(lane="inbox", seq=seq, reason=GONE), origin="1.5.0", nonce="n")
        (letter,) = node.stored(node.subjects.dead("a"))
        assert letter.data == b"hello"

    simulate(story)


@pytest.mark.case(573)
@pytest.mark.parametrize("seq", [None, 0])
def test_a_dead_letter_bears_the_context_of_its_messages_span(seq: int | None) -> None:
    async def story(node: SimulatedNode) -> None:
        given = await node.mail("a", b"hello", headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "baggage": "b=1"})
        trace = {"traceparent": f"00-{'1' * 32}-{'3' * 16}-01", "baggage": "b=1"}
        effect = Bury(lane="inbox", seq=given if seq is None else seq, reason=GONE, text="x", trace=trace)
        await bury(node.transport, node.subjects, "a", effect, origin="1.5.0", nonce="n")
        (letter,) = node.stored(node.subjects.dead("a"))
        assert trace_in(letter.headers) == trace

    simulate(story)
