"""Options that the backends on an API have in common."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.options import ApiOptions, read
from agentmesh_node.backends.retries import Retries
from agentmesh_node.tools.loop import Bounds


class Some(ApiOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an API."""

    edits: tuple[dict[str, Any], ...] = ()

    def parameters(self) -> dict[str, Any]:
        return {"edits": [edit.get("type") for edit in self.edits]}


def test_what_is_given_becomes_retries_and_bounds() -> None:
    options = read(Some, {"attempts": 2, "max_wait_s": 1, "max_iterations": 3, "parallel_tools": 4, "max_tool_runs": 5}, "some")
    assert options.retries == Retries(2, 1.0)
    assert options.bounds == Bounds(3, 4, 5, Some().max_result_bytes)


@pytest.mark.parametrize("given", [{"attempt": 2}, {"attempts": 0}, {"edits": ["one"]}, {"timeout_s": "long"}])
def test_what_is_unknown_or_misshapen_is_refused_with_what_is_known(given: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=r"options of the some backend cannot be used: .*it knows .*edits") as caught:
        read(Some, given, "some")
    assert caught.value.details == {"reason": "bad_options", "retryable": False}
