"""Where a request can be answered."""

from __future__ import annotations

import functools
import logging

from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest
from agentmesh.names import reply_subject

log = logging.getLogger("agentmesh.edge")

REMEMBERED = 256
"""Subjects for which an unusable reply subject was reported lately: it is said once for each, however often it is asked."""


def usable_reply(message: Message, root: str) -> str | None:
    """The reply subject of a request, or None: it has none, or none that the mesh may publish to (case 220). Its caller cannot be
    told then, so the log says why nothing answers."""
    try:
        return reply_subject(message.reply, root)
    except BadRequest as error:
        report_unanswerable(message.subject, error.message if message.reply else "it has no reply subject")
        return None


def report_unanswerable(subject: str, why: str) -> None:
    """Log that a request on `subject` is dropped, because its caller cannot be told anything."""
    reported = _reported(subject)
    if not reported:
        reported.append(why)
        log.warning("a request is dropped, for there is nowhere to answer: %s", why, extra={"subject": ascii(subject[:200])})


@functools.lru_cache(maxsize=REMEMBERED)
def _reported(subject: str) -> list[str]:
    """What was reported of requests on `subject`; the subjects that were asked least lately are forgotten."""
    return []
