"""What is kept for nobody is read once, and what is beyond its bounds is found, the oldest first."""

from __future__ import annotations

import pytest

from agentmesh_node.supervisor.unclaimed_table import OVERHEAD, UnclaimedTable, Waiting, beyond, some_at_a_time
from node.simulated import SimulatedNode, simulate


def waiting(*seqs: int, size: int = 10) -> list[Waiting]:
    """Messages of which each was stored at the second of its number."""
    return [Waiting(seq, float(seq), size) for seq in seqs]


def test_what_is_old_is_beyond_the_bound_and_what_is_younger_stays() -> None:
    kept = {"a": waiting(1, 5, 9), "b": waiting(6), "c": waiting(5)}
    assert beyond(kept, before=5.0, names=9, size=999) == ({"a": 5, "c": 5}, {})


def test_of_too_many_names_those_with_the_oldest_mail_go_first_with_all_that_they_have() -> None:
    kept = {"a": waiting(3), "b": waiting(1, 9), "c": waiting(2), "d": waiting(4)}
    assert beyond(kept, before=0.0, names=2, size=999) == ({}, {"b": 9, "c": 2})


def test_of_too_many_bytes_the_oldest_messages_go_first() -> None:
    kept = {"a": waiting(1, 4), "b": waiting(2, 3)}
    assert beyond(kept, before=0.0, names=9, size=40) == ({}, {})
    assert beyond(kept, before=0.0, names=9, size=39) == ({}, {"a": 1})
    assert beyond(kept, before=0.0, names=9, size=10) == ({}, {"a": 1, "b": 3})


def test_what_is_old_does_not_count_for_the_bounds() -> None:
    kept = {"a": waiting(1), "b": waiting(2), "c": waiting(3)}
    assert beyond(kept, before=1.0, names=2, size=20) == ({"a": 1}, {})


# --- the table ------------------------------------------------------------------------------------------------------
def test_only_names_that_have_changed_are_read_again() -> None:
    async def story(node: SimulatedNode) -> None:
        table = UnclaimedTable(
            node.transport,
            node.subjects.stream("mail"),
            name_of=lambda subject: subject.rpartition(".")[2],
            filter_of=node.subjects.mail_filter,
            counts=lambda message: message.data != b"other",
        )
        known: set[str] = set()
        await node.mail("a", b"12345")
        await node.mail("b", b"other")
        found = await table.look(known.__contains__)
        assert (sorted(found.new), found.more) == (["a", "b"], False)
        assert [one.seq for one in table.kept["a"]] == [1]
        assert table.kept["a"][0].size >= 5 + OVERHEAD
        assert table.kept["b"] == []

        node.transport.requests.clear()
        assert (await table.look(known.__contains__)).new == []
        assert len(node.transport.requests) == 1, "nothing is read"

        await node.mail("a", b"more", lane="notify")
        assert (await table.look(known.__contains__)).new == []
        assert [one.seq for one in table.kept["a"]] == [1, 3]
        table.forget("a")
        assert (await table.look(known.__contains__)).new == ["a"]
        known.add("a")
        await table.look(known.__contains__)
        assert table.kept.keys() == {"b"}, "it has a spec now"

    simulate(story)


def test_the_first_error_ends_the_work_on_many() -> None:
    async def story(node: SimulatedNode) -> None:
        done: list[int] = []

        async def work(item: int) -> None:
            await node.pass_time(1.0)
            if item == 3:
                raise ValueError(item)
            done.append(item)

        with pytest.raises(ValueError, match="3"):
            await some_at_a_time(range(100), work)
        assert len(done) < 100
        await some_at_a_time([], work)

    simulate(story)
