"""KEY=VALUE, as people type it."""

import pytest

from agentmesh.arguments import pairs
from agentmesh.errors import BadRequest


def test_pairs_are_split_at_the_first_sign_and_the_last_of_a_key_counts() -> None:
    assert pairs(["gpu=yes", "url=a=b", "empty=", "gpu=no"], "--label") == {"gpu": "no", "url": "a=b", "empty": ""}
    assert pairs([], "--label") == {}


@pytest.mark.parametrize("text", ["gpu", "=yes", ""])
def test_what_is_no_pair_is_shown_with_its_option(text: str) -> None:
    with pytest.raises(BadRequest, match=f"--label {text}: write KEY=VALUE$"):
        pairs([text], "--label")
