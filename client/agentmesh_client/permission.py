"""Permission errors of NATS.

A server reports a forbidden publish or subscription as an error of the connection; the request itself merely gets no answer. So
a call that has waited in vain looks here for the reason (docs/nats.md#what-a-permission-forbids).
"""

from __future__ import annotations

import re

from agentmesh.edge.transport import Transport
from agentmesh.errors import NotPermitted

_VIOLATION = re.compile(r"permissions violation for (?:publish|subscription) to [\"']?([^\"'\s]+)", re.IGNORECASE)
_REFUSED = re.compile(r"authorization violation|authentication (?:expired|timeout)|user authentication", re.IGNORECASE)


def refusal(report: str, subject: str | None = None) -> NotPermitted | None:
    """The typed error in what the connection last reported; with `subject` only if it is about that subject."""
    violation = _VIOLATION.search(report)
    if violation is not None and (subject is None or violation[1].lower() == subject.lower()):
        return NotPermitted(
            f"the NATS server does not permit this user to use the subject {violation[1]}; ask its operator for the permission",
            details={"subject": violation[1]},
        )
    if subject is None and _REFUSED.search(report):
        return NotPermitted("the NATS server refuses these credentials; put others into the URL (nats://user:password@host)")
    return None


def last_report(transport: Transport) -> str:
    """What the connection reported last; empty for a transport that does not say."""
    return str(getattr(transport, "last_error", ""))
