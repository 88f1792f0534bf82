"""Members of what an API sends, read strictly."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.failures import Api
from agentmesh_node.backends.api.values import MOST_COUNT, Members, number, word

MEMBERS = Members(Api("SOME_URL"))


def test_what_is_there_is_read() -> None:
    assert MEMBERS.object({"a": {"b": 1}}, "a") == {"b": 1}
    assert MEMBERS.text({"a": ""}, "a") == ""


@pytest.mark.parametrize("data", [{}, {"a": None}, {"a": 5}, {"a": []}])
def test_what_is_not_there_or_another_thing_is_an_answer_that_cannot_be_read(data: dict[str, Any]) -> None:
    for read in (MEMBERS.object, MEMBERS.text):
        with pytest.raises(BackendError) as caught:
            read(data, "a")
        assert caught.value.details == {"reason": "server_error", "retryable": True}


def test_words_and_counts_are_what_they_are_or_nothing() -> None:
    assert (word("a"), word(5)) == ("a", None)
    assert [number(value) for value in (5, True, -1, MOST_COUNT, "5", None)] == [5, 0, 0, 0, 0, 0]
