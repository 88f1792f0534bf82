"""Which stored outcome counts, and storing one behind another (docs/design/020-outcomes-name-their-message.md)."""

from __future__ import annotations

import pytest
from msgspec import structs

from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.edge.results import LAST_REF, OlderMail, describe, older_mail, read_outcome, standing_prompt, store_outcome
from agentmesh.errors import Unavailable
from agentmesh.outcomes import Asked
from agentmesh.wire import MSG_ID, Outcome, decode_outcome, encode_outcome, format_time
from node.simulated import SimulatedNode, simulate
from support import replaced

AGENT = "a1"
OLDER = Outcome(agent=AGENT, ref="7", ok=True, text="old", msg_id="a1.old", stored="2000-01-01T00:00:00Z")
NEWER = Outcome(agent=AGENT, ref="7", ok=True, text="new", msg_id="a1.new", stored="2000-01-02T00:00:00Z")
UNNAMED = Outcome(agent=AGENT, ref="7", ok=True, text="unnamed")


async def texts(node: SimulatedNode) -> list[str | None]:
    """All that is stored under the ref, oldest first."""
    subject = node.subjects.result(AGENT, "7")
    found = await read_all(node.others, node.subjects.stream("result"), subject)
    return [decode_outcome(message.data).text for message in found]


async def keep(node: SimulatedNode, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        await store_outcome(node.transport, node.subjects, outcome)


def test_of_one_message_the_first_outcome_stays() -> None:
    async def story(node: SimulatedNode) -> None:
        await keep(node, OLDER, structs.replace(OLDER, text="again"), OLDER)
        assert await texts(node) == ["old"]

    simulate(story)


def test_behind_another_messages_outcome_its_own_is_stored_and_counts() -> None:
    async def story(node: SimulatedNode) -> None:
        await keep(node, OLDER, NEWER, NEWER)
        assert await texts(node) == ["old", "new"]
        for direct in (False, True):
            found = await read_outcome(node.others, node.subjects, AGENT, "7", direct=direct)
            assert found is not None and found.outcome == NEWER and found.body == encode_outcome(NEWER)

    simulate(story)


def test_where_an_older_build_has_written_the_time_tells_whose_outcome_it_is() -> None:
    async def story(node: SimulatedNode) -> None:
        subject = node.subjects.result(AGENT, "7")
        await store(node.others, subject, encode_outcome(UNNAMED))
        await keep(node, NEWER, UNNAMED)
        assert await texts(node) == ["unnamed"], "it was stored behind that message, so it may be its outcome"
        await keep(node, structs.replace(NEWER, stored="2999-01-01T00:00:00Z"))
        assert await texts(node) == ["unnamed", "new"]

    simulate(story)


def test_what_is_no_outcome_is_passed_over() -> None:
    async def story(node: SimulatedNode) -> None:
        subject = node.subjects.result(AGENT, "7")
        assert await read_outcome(node.others, node.subjects, AGENT, "7") is None
        await store(node.others, subject, b"[" * 5000)
        assert await read_outcome(node.others, node.subjects, AGENT, "7") is None
        await keep(node, OLDER)
        await store(node.others, subject, b"{}")
        found = await read_outcome(node.others, node.subjects, AGENT, "7")
        assert found is not None and found.outcome == OLDER

    simulate(story)


def test_while_others_store_outcomes_at_the_same_time_it_is_tried_again_and_then_left_to_later() -> None:
    async def story(node: SimulatedNode) -> None:
        await keep(node, OLDER)
        refusal = replaced(b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}')
        subject = node.subjects.result(AGENT, "7")
        node.transport.inject(subject, refusal, refusal)
        await keep(node, NEWER)
        assert await texts(node) == ["old", "new"]
        node.transport.inject(subject, *(refusal for _ in range(5)))
        with pytest.raises(Unavailable, match="try again"):
            await keep(node, structs.replace(NEWER, stored="2000-01-03T00:00:00Z"))

    simulate(story)


def test_the_prompt_that_stands_under_a_ref() -> None:
    async def story(node: SimulatedNode) -> None:
        stored = await store(node.others, node.subjects.inbox(AGENT), b"hello", headers={MSG_ID: "a1.x"})
        event = await store(node.others, node.subjects.notify(AGENT), b"1")
        other = await node.mail("another")
        found = await standing_prompt(node.others, node.subjects, AGENT, str(stored.seq))
        assert found is not None and found.lane == "inbox"
        (message,) = await read_all(node.others, node.subjects.stream("mail"), node.subjects.inbox(AGENT))
        assert found.asked == Asked("a1.x", message.time)
        for ref in (str(event.seq), str(other), "99", "0", "c1", str(LAST_REF + 1)):
            assert await standing_prompt(node.others, node.subjects, AGENT, ref) is None

    simulate(story)


def test_results_that_the_mail_does_not_reach_or_whose_refs_were_given_twice_show_older_mail() -> None:
    async def story(node: SimulatedNode) -> None:
        async def found() -> OlderMail | None:
            return await older_mail(node.others, node.subjects)

        assert await found() is None
        for _ in range(9):
            await node.mail("another")
        await purge(node.others, node.subjects.stream("mail"), node.subjects.inbox("another"), below=9)
        await keep(node, OLDER, structs.replace(UNNAMED, ref="c3"))
        assert await found() is None
        await keep(node, structs.replace(UNNAMED, ref="10"))
        assert await found() == OlderMail(answered=10, end=9)
        await node.mail("another")
        assert await found() is None
        await keep(node, structs.replace(NEWER, ref="6"))
        assert await found() == OlderMail(answered=10, end=10), "a later message is older"

    simulate(story)


def test_where_another_message_has_the_place_of_the_last_answered_one_the_mail_was_put_back() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = await node.mail(AGENT)
        (message,) = await read_all(node.others, node.subjects.stream("mail"), node.subjects.inbox(AGENT))
        own = Outcome(agent=AGENT, ref=str(seq), ok=True, stored=message.headers["Nats-Time-Stamp"])
        await keep(node, own)
        assert await older_mail(node.others, node.subjects) is None
        await keep(node, structs.replace(own, stored=format_time(message.time - 1)))
        assert await older_mail(node.others, node.subjects) == OlderMail(seq, seq), "its own is there, too: it was given twice"
        await purge(node.others, node.subjects.stream("result"), node.subjects.result(AGENT, str(seq)))
        await keep(node, structs.replace(own, stored=format_time(message.time - 1)))
        assert await older_mail(node.others, node.subjects) == OlderMail(seq, seq)

    simulate(story)


def test_older_mail_is_described_as_it_was_found() -> None:
    assert "given again" in describe(OlderMail(10, 10)) and "the mail ends at 9" in describe(OlderMail(10, 9))
