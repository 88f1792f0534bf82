"""What a stream is configured as, what of it operators may choose, and what may be added to one that exists."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.edge import stream_configs as configs
from agentmesh.edge.stream_configs import addition, differences, options, purpose
from agentmesh.subjects import Subjects

SUBJECTS = Subjects()


@pytest.mark.parametrize(
    ("field", "wanted", "found", "more"),
    [
        ("subjects", ["a", "b"], ["c", "a"], ["c", "a", "b"]),
        ("max_age", 9, 5, 9),
        ("max_age", 0, 5, 0),
        ("max_age", 5, 9, None),
        ("max_age", 5, 0, None),
        ("max_bytes", -1, 5, -1),
        ("max_msg_size", 5, -1, None),
        ("allow_msg_ttl", True, None, True),
        ("allow_msg_ttl", False, True, None),
        ("republish", {"src": "a", "dest": "b"}, None, {"src": "a", "dest": "b"}),
        ("republish", {"src": "a", "dest": "b"}, {"src": "a", "dest": "c"}, None),
        ("discard", "new", "old", None),
        ("storage", "file", "memory", None),
    ],
)
def test_what_is_added_takes_nothing_away(field: str, wanted: Any, found: Any, more: Any) -> None:
    assert addition(field, wanted, found) == more


def test_a_stream_may_take_more_subjects_than_this_build_knows() -> None:
    assert list(differences({"subjects": ["a"]}, {"subjects": ["a", "b"]})) == []
    assert list(differences({"subjects": ["a", "c"]}, {"subjects": ["a", "b"]})) == [("subjects", ["a", "c"], ["a", "b"])]


def test_what_operators_may_choose_is_a_matter_of_the_stream() -> None:
    assert "max_msgs_per_subject" in options(SUBJECTS.stream("mail"))
    assert "max_msgs_per_subject" not in options(SUBJECTS.stream("registry")), "one value for a key"
    assert "max_age" in options(SUBJECTS.stream("result"))
    assert "max_age" not in options(SUBJECTS.stream("journal"))


def test_what_an_older_mesh_may_lack_is_a_stream_or_a_field_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "LATER", {"dead": "dead letters", "mail.subjects": "a sixth lane"})
    assert purpose(SUBJECTS, SUBJECTS.stream("dead")) == "dead letters"
    assert purpose(SUBJECTS, SUBJECTS.stream("dead"), "subjects") == "dead letters"
    assert purpose(SUBJECTS, SUBJECTS.stream("mail")) is None
    assert purpose(SUBJECTS, SUBJECTS.stream("mail"), "subjects") == "a sixth lane"
    assert purpose(SUBJECTS, SUBJECTS.stream("mail"), "discard") is None
