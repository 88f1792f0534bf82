"""Options that all backends of this room have: how long, how often, how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.values import Count, Seconds
from agentmesh_node.backends.retries import Retries
from agentmesh_node.tools.loop import Bounds
from agentmesh_node.tools.turn_bounds import RESULT_BYTES, TOOL_RUNS


class ApiOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one agent. They are journaled, so none of them is a secret."""

    timeout_s: Seconds = 600.0
    """Longest silence of the API."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 8
    """Most tries of one model call, if the API says or implies that another try may succeed."""
    max_wait_s: Seconds = 60.0
    """Longest wait between two tries. If the API asks for more the turn ends, and the error says how long."""
    max_iterations: Count = 50
    """Most model answers in one turn."""
    answer_by: Literal["schema", "prompt"] = "schema"
    """How the type of the agent's answer is asked for: in the API's own way, or in words, for servers that do not know it."""
    parallel_tools: Count = 8
    """Most tools that run at the same time."""
    max_tool_runs: Count = TOOL_RUNS
    """Most runs of tools in one turn."""
    max_result_bytes: Count = RESULT_BYTES
    """Most bytes of all results of tools in one turn."""

    def parameters(self) -> dict[str, Any]:
        """The parameters of every request, apart from messages and tools."""
        raise NotImplementedError

    @property
    def retries(self) -> Retries:
        """How often a call is tried."""
        return Retries(self.attempts, self.max_wait_s)

    @property
    def bounds(self) -> Bounds:
        """Those of a turn."""
        return Bounds(self.max_iterations, self.parallel_tools, self.max_tool_runs, self.max_result_bytes)


def read[O: ApiOptions](kind: type[O], given: Mapping[str, Any], backend: str) -> O:
    """The options in `given`.

    Raises:
        BackendError: `details["reason"]` is `bad_options`: one is unknown, or has the wrong shape.
    """
    try:
        options = msgspec.convert(dict(given), kind)
        options.parameters()
    except (msgspec.ValidationError, TypeError, AttributeError) as error:
        raise unusable(backend, f"{error}; it knows {', '.join(kind.__struct_fields__)}") from None
    return options


def unusable(backend: str, why: str) -> BackendError:
    """The error for options that cannot be used."""
    details = {"reason": "bad_options", "retryable": False}
    return BackendError(f"the options of the {backend} backend cannot be used: {why}", details=details)
