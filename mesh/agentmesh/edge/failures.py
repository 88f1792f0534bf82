"""What a call to the server may raise, in the two groups that callers tell apart.

A caller that acts upon one error names that one (`WrongLastSequence` after a compare-and-set, `Uncertain` where a repetition
could do harm); these are for the rest.
"""

from __future__ import annotations

from agentmesh.edge.jetstream import ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.transport import UNANSWERED
from agentmesh.errors import MeshError, Unavailable

EDGE_ERRORS = (MeshError, ApiError, Uncertain, WrongLastSequence, *UNANSWERED, TimeoutError)
"""All that a call of the edge raises because of the server, the network or another process, and `TimeoutError` for a bound around
it: none is a defect of the program.

For work that must be done in the end, and that nobody waits for: it is tried again whatever the error is, for an operator may yet
mend what the server refuses (a full disk, a missing stream, a permission)."""

PASSING_ERRORS = (Unavailable, Uncertain)
"""Those that end by themselves: no connection, no leader, no acknowledgement.

For a call that somebody waits for, and that may be made twice: it is repeated after these; any other error is its caller's."""
