"""How large an outcome may be: one bound, so that a request has one outcome wherever it is shown."""

from __future__ import annotations

import msgspec

from agentmesh.wire import HEADER_ROOM, MAIL_ROOM, ErrorBody, Outcome, encode_outcome


def outcome_limit(max_payload: int, *, mailed: bool = False) -> int:
    """Bytes that an encoded outcome may take: what the narrowest of its ways can carry.

    Args:
        max_payload: the server's limit, in bytes. Mail is limited to 64 KiB less (docs/protocol.md#streams), headers included.
        mailed: an agent asked, and gets the outcome as mail too.
    """
    return max_payload - HEADER_ROOM - (MAIL_ROOM if mailed else 0)


def capped(outcome: Outcome, limit: int) -> Outcome:
    """The outcome; or, if it takes more than `limit` bytes, the error `too_large` in its place.

    The turn machine does this before the record is built, so that the journal has the same outcome that callers get. Owners do
    it again when they perform a record: an older journal may hold a larger outcome.
    """
    size = len(encode_outcome(outcome))
    if size <= limit:
        return outcome
    error = ErrorBody(code="too_large", message=f"the outcome takes {size} bytes, more than a message can hold")
    return msgspec.structs.replace(outcome, ok=False, text=None, usage=None, session_id=None, error=error)
