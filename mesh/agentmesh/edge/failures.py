"""What a call to the server may raise: JetStream's own errors beside those of `agentmesh.errors`, and the two groups that
callers tell apart.

A caller that acts upon one error names that one (`WrongLastSequence` after a compare-and-set, `Uncertain` where a repetition
could do harm); the groups are for the rest.
"""

from __future__ import annotations

from agentmesh.edge.server_errors import NO_STREAM, missing
from agentmesh.edge.transport import UNANSWERED
from agentmesh.errors import MeshError, Unavailable


class WrongLastSequence(Exception):
    """The compare-and-set lost; nothing was stored. `last` is the subject's last sequence, or None when the server gave no
    verdict (another write of that subject is in flight): read it from the leader and try again."""

    def __init__(self, last: int | None) -> None:
        super().__init__("no verdict; try again" if last is None else f"the last sequence is {last}")
        self.last = last


class Uncertain(Exception):
    """The message was sent and no acknowledgement came: it may be stored, now or later."""


class ApiError(Exception):
    """A definite error of the JetStream API: `code` as in HTTP, `err_code` names it."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


def explained(error: ApiError, stream: str, *, clustered: bool) -> Unavailable:
    """What a definite error of a call about `stream` means to a user."""
    if error.err_code == NO_STREAM:
        return missing(stream, clustered=clustered)
    return Unavailable(f"stream {stream} cannot be used: {error.description}", details={"err_code": error.err_code})


EDGE_ERRORS = (MeshError, ApiError, Uncertain, WrongLastSequence, *UNANSWERED, TimeoutError)
"""All that a call of the edge raises because of the server, the network or another process, and `TimeoutError` for a bound around
it: none is a defect of the program.

For work that must be done in the end, and that nobody waits for: it is tried again whatever the error is, for an operator may yet
mend what the server refuses (a full disk, a missing stream, a permission)."""

PASSING_ERRORS = (Unavailable, Uncertain)
"""Those that end by themselves: no connection, no leader, no acknowledgement.

For a call that somebody waits for, and that may be made twice: it is repeated after these; any other error is its caller's."""
