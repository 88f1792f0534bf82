"""What a turn may be driven to."""

from __future__ import annotations

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.tools import Result
from agentmesh_node.tools.turn_bounds import KEPT, Driven, TurnBounds


def reason(driven: Driven) -> tuple[str, bool] | None:
    try:
        driven.check()
    except BackendError as error:
        return error.details["reason"], error.details["retryable"]
    return None


@pytest.mark.case(429)
def test_each_bound_ends_a_turn_under_the_name_of_its_option() -> None:
    driven = Driven(TurnBounds(3, 2, 10))
    assert [driven.may_run() for _ in range(2)] == [True, True]
    driven.take("0123456789")
    driven.iterations = 2
    assert reason(driven) is None
    driven.take("0")
    assert reason(driven) == ("max_result_bytes", False)
    assert not driven.may_run()
    assert reason(driven) == ("max_tool_runs", False)
    driven.iterations = 3
    assert reason(driven) == ("max_iterations", False)


def test_another_try_helps_only_where_it_goes_on_behind_what_was_done() -> None:
    driven = Driven(TurnBounds(1, goes_on=True))
    driven.iterations = 1
    assert reason(driven) == ("max_iterations", True)


def test_answers_that_somebody_else_counts_are_not_bounded() -> None:
    driven = Driven(TurnBounds(None))
    driven.iterations = 10**9
    assert reason(driven) is None


def test_a_result_beyond_the_bound_is_its_beginning_and_says_so() -> None:
    driven = Driven(TurnBounds(max_result_bytes=KEPT))
    short = Result("1", "pay", True, "paid")
    assert driven.kept(short) is short
    assert driven.kept(Result("2", "look", True, "y" * KEPT * 2)).text.startswith("y" * KEPT + "\n[cut: the results of this turn")
    assert driven.kept(short) is short, "what a short one says is worth its bytes"
