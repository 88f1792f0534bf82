"""Which message an outcome answers (docs/design/020-outcomes-name-their-message.md)."""

from __future__ import annotations

import pytest
from msgspec import structs

from agentmesh.outcomes import (
    ID_LENGTH,
    OTHER_CLOCK_S,
    SAME_CLOCK_S,
    Asked,
    answered_by,
    answers,
    capped,
    given_again,
    id_in_outcome,
    message_named,
)
from agentmesh.wire import Outcome, encode_outcome, parse_time

STORED = "2026-11-30T15:20:31.123456789Z"
AT = parse_time(STORED)
OUTCOME = Outcome(agent="a1", ref="7", ok=True, text="42", msg_id="a1.order", stored=STORED)
OLD = structs.replace(OUTCOME, msg_id=None, stored=None)
"""As the build before writes it."""


def test_an_outcome_answers_the_message_that_it_names() -> None:
    assert message_named(OUTCOME) == ("a1.order", AT)
    assert answers(OUTCOME, message_named(OUTCOME), AT + 1)
    assert answers(OUTCOME, Asked("a1.order"), 0.0)
    assert answers(OUTCOME, Asked(stored=AT), 0.0)
    assert answers(OUTCOME, Asked(), 0.0), "who knows nothing of the message takes what is stored"


def test_an_outcome_answers_no_message_of_another_id_or_time() -> None:
    assert not answers(OUTCOME, Asked("a1.other"), AT + 1)
    assert not answers(OUTCOME, Asked("a1.order", AT + 0.000_01), AT + 1)
    assert not answers(OUTCOME, Asked(None, AT - 60), AT + 1)
    assert not answers(structs.replace(OUTCOME, msg_id=None), Asked("a1.order"), AT + 1), "its message had no id"


def test_times_are_the_same_in_every_spelling_of_the_server() -> None:
    short = structs.replace(OUTCOME, stored="2026-11-30T15:20:31.1Z")
    assert answers(short, Asked(stored=parse_time("2026-11-30T15:20:31.100000Z")), 0.0)


def test_an_outcome_that_names_no_message_is_nobodys_if_it_is_older_than_the_message() -> None:
    assert answers(OLD, Asked("a1.order", AT), AT + 0.1)
    assert answers(OLD, Asked("a1.order", AT), AT - SAME_CLOCK_S / 2), "the clocks of two servers differ a little"
    assert not answers(OLD, Asked("a1.order", AT), AT - 2 * SAME_CLOCK_S)
    assert answers(OLD, Asked("a1.order"), 0.0)
    assert message_named(OLD) == Asked()


def test_a_time_that_no_server_has_written_is_no_messages() -> None:
    forged = structs.replace(OUTCOME, stored="yesterday")
    assert message_named(forged) == Asked("a1.order")
    assert not answers(forged, Asked("a1.order", AT), AT)


def test_a_long_id_stands_shortened_in_its_outcome() -> None:
    long = "a1." + "x" * 100_000
    named = structs.replace(OUTCOME, msg_id=id_in_outcome(long), text="y" * 2000)
    assert len(named.msg_id or "") == ID_LENGTH
    assert answers(named, Asked(long, AT), AT)
    limit = 1500
    assert len(encode_outcome(capped(named, limit))) <= limit, "what is told in its place fits"
    assert capped(named, limit).msg_id == named.msg_id and capped(named, limit).stored == STORED
    assert id_in_outcome(None) is None


@pytest.mark.case(594)
def test_sequences_are_given_again_where_a_later_one_is_older() -> None:
    assert not given_again([])
    assert not given_again([(3, AT + 2), (1, AT), (2, AT + 1)])
    assert not given_again([(1, AT + OTHER_CLOCK_S / 2), (2, AT)]), "two servers' clocks"
    assert given_again([(5, AT), (2, AT + 2 * OTHER_CLOCK_S)])
    assert given_again([(5, AT), (4, AT - 1), (5, AT + 0.001)]), "two messages of one sequence, whatever a clock says"
    assert not given_again([(5, AT), (5, AT)]), "two outcomes of one message"


def test_the_message_that_was_answered_is_known_from_its_outcome() -> None:
    assert answered_by(OUTCOME) == (7, AT)
    assert answered_by(OLD) is None and answered_by(structs.replace(OUTCOME, ref="c1")) is None
