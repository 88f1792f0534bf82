"""Which message repeats which, by its id."""

from __future__ import annotations

import pytest

from agentmesh import message_ids
from agentmesh.message_ids import MessageIds
from agentmesh.wire import Mail, format_time

REMEMBER_S = 180.0
BEGAN = 1_800_000_000.0


def mail(seq: int, msg_id: str | None = "a.1", *, lane: str = "inbox", at: float = 0.0, origin: str | None = None) -> Mail:
    return Mail(lane=lane, seq=seq, msg_id=msg_id, stored=format_time(BEGAN + at), origin=origin)


def repeated(ids: MessageIds, *arrived: Mail) -> list[str | None]:
    return [item.repeats for item in ids.marked(arrived)]


@pytest.mark.case(280)
def test_each_later_message_with_an_id_repeats_the_first_one() -> None:
    ids = MessageIds(REMEMBER_S)
    assert repeated(ids, mail(3), mail(5), mail(6, "a.2")) == [None, "3", None]
    assert repeated(ids, mail(9, at=100.0)) == ["3"]
    assert repeated(ids, mail(3)) == [None], "the first one, read again"


@pytest.mark.case(280)
def test_what_was_consumed_is_repeated_too() -> None:
    ids = MessageIds(REMEMBER_S)
    ids.note("inbox", 2, "a.1", format_time(BEGAN))
    assert repeated(ids, mail(7)) == ["2"]


def test_mail_without_an_id_passes_as_it_is_and_so_does_mail_of_agents() -> None:
    ids = MessageIds(REMEMBER_S)
    of_agents = (mail(3, lane="peer-inbox", origin="1.1.0"), mail(4, lane="peer-inbox", origin="1.2.0"))
    arrived = (mail(1, None), mail(2, None), *of_agents)
    assert ids.marked(arrived) is arrived


def test_an_event_repeats_no_prompt() -> None:
    ids = MessageIds(REMEMBER_S)
    assert repeated(ids, mail(1), mail(2, lane="notify"), mail(3, lane="notify")) == [None, None, "2"]


def test_beyond_the_time_an_id_is_a_new_one() -> None:
    ids = MessageIds(REMEMBER_S)
    assert repeated(ids, mail(1), mail(2, at=REMEMBER_S - 1), mail(3, at=REMEMBER_S + 1)) == [None, "1", None]
    assert repeated(ids, mail(4, at=REMEMBER_S + 2)) == ["3"]


def test_where_no_time_is_known_an_id_is_the_same() -> None:
    ids = MessageIds(REMEMBER_S)
    ids.note("inbox", 1, "a.1", None)
    ids.note("inbox", 2, "a.2", "no time")
    assert repeated(ids, mail(3), mail(4, "a.2")) == ["1", "2"]


def test_the_oldest_ids_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_ids, "MAX_IDS", 2)
    ids = MessageIds(REMEMBER_S)
    assert repeated(ids, *(mail(seq, f"a.{seq}") for seq in (1, 2, 3))) == [None, None, None]
    assert repeated(ids, mail(4, "a.3"), mail(5, "a.1")) == ["3", None]
