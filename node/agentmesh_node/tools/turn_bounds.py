"""What one turn may be driven to: by its model, which asks for tools, and by tools, whose results it takes.

Each backend counts with a `Driven` and ends the turn with the error of `Driven.check`. The bounds are far beyond what a turn of
use to anybody takes; they end one that goes in circles before its watchdog and its budget do.
"""

from __future__ import annotations

import msgspec

from agentmesh.errors import BackendError
from agentmesh_node.tools.calls import Result

ITERATIONS = 500
"""Most answers of the model in one turn, where the program that runs the tools has no bound of its own."""
TOOL_RUNS = 1000
RESULT_BYTES = 16 << 20
KEPT = 1000
"""Characters of a result that a model still gets once the bound on results is reached."""


class TurnBounds(msgspec.Struct, frozen=True):
    """The bounds of a turn, as the options of a backend name them."""

    max_iterations: int | None = ITERATIONS
    """Most answers of the model; None where somebody else counts them."""
    max_tool_runs: int = TOOL_RUNS
    max_result_bytes: int = RESULT_BYTES
    """Most bytes of all results together."""
    goes_on: bool = False
    """Whether another prompt goes on behind what was done, so that another try helps."""


class Driven:
    """What a turn has been driven to so far, by earlier owners too."""

    def __init__(self, bounds: TurnBounds) -> None:
        self._bounds = bounds
        self.iterations = 0
        self.tool_runs = 0
        self.result_bytes = 0

    def may_run(self) -> bool:
        """Count a run of a tool. Returns whether it may be made."""
        self.tool_runs += 1
        return self.tool_runs <= self._bounds.max_tool_runs

    def take(self, text: str) -> None:
        """Count the text of a result."""
        self.result_bytes += len(text.encode(errors="replace"))

    def kept(self, result: Result) -> Result:
        """Count `result`. Returns what the model gets of it: its beginning, once there are more bytes than the turn may have."""
        self.take(result.text)
        if self.result_bytes <= self._bounds.max_result_bytes or len(result.text) <= KEPT:
            return result
        cut = f"{result.text[:KEPT]}\n[cut: the results of this turn are longer than {self._bounds.max_result_bytes} bytes]"
        return msgspec.structs.replace(result, text=cut)

    def check(self) -> None:
        """Return if the model may be asked once more.

        Raises:
            BackendError: a bound is reached; `details["reason"]` is the name of the option that sets it.
        """
        bounds = self._bounds
        if bounds.max_iterations is not None and self.iterations >= bounds.max_iterations:
            raise self._over("max_iterations", f"the model wanted more than {bounds.max_iterations} steps in one turn")
        if self.tool_runs > bounds.max_tool_runs:
            raise self._over("max_tool_runs", f"the model wanted more than {bounds.max_tool_runs} runs of tools in one turn")
        if self.result_bytes > bounds.max_result_bytes:
            raise self._over("max_result_bytes", f"the results of one turn are longer than {bounds.max_result_bytes} bytes")

    def _over(self, option: str, said: str) -> BackendError:
        go_on = "prompt it to go on, or raise" if self._bounds.goes_on else "give it a smaller task, or raise"
        return BackendError(f"{said}; {go_on} the option {option}", details={"reason": option, "retryable": self._bounds.goes_on})
