"""Keys of requests: a caller that has not got a request's key may neither poll nor cancel it, nor take it up by its id. Pure.

A caller sends its own random key in `Mesh-Key`. Nothing stores it: mail, journals and outcomes have its digest, which everybody
may see (docs/protocol.md#keys).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.headers import readable

KEY = "Mesh-Key"
KEY_DIGEST = "Mesh-Key-Digest"
SHORTEST, LONGEST = 16, 128
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(key: str) -> str:
    """What stands for a key where it is stored.

    Raises:
        BadRequest: this can be no key.
    """
    if not (SHORTEST <= len(key) <= LONGEST and readable(key) and key == key.strip()):
        form = f"{SHORTEST} to {LONGEST} characters of printable ASCII without blanks around it"
        raise BadRequest(f"a {KEY} is random, {form}; this has {len(key)}")
    return hashlib.sha256(key.encode()).hexdigest()


def shown_by(headers: Mapping[str, str]) -> str | None:
    """The digest of the key that a question about a request shows; None if it shows none. A digest shows nothing.

    Raises:
        BadRequest: what they show can be no key.
    """
    return digest_of(headers[KEY]) if KEY in headers else None


def digest_in(headers: Mapping[str, str]) -> str | None:
    """The digest of the key that a request's headers give it; None if they give none.

    Raises:
        BadRequest: what they give is no key, or no digest of one.
    """
    if KEY in headers:
        return digest_of(headers[KEY])
    found = headers.get(KEY_DIGEST)
    if found is not None and not _DIGEST.fullmatch(found):
        raise BadRequest(f"{KEY_DIGEST} is a SHA-256 in 64 hex digits; send {KEY}, and the mesh makes it")
    return found


def stored_digest(headers: Mapping[str, str]) -> str | None:
    """The digest in the headers of a message that is stored. One that cannot be read is a key that nobody has."""
    try:
        return digest_in(headers)
    except BadRequest:
        return ""


def opens(digest: str | None, given: str | None) -> bool:
    """Whether a request with this digest may be asked about by who gives this one. A request without a key is open to all."""
    return digest is None or (given is not None and hmac.compare_digest(digest, given))


def refusal(ref: str, given: str | None) -> NotPermitted:
    """The error for who has not got the key of a request."""
    what = "with another key than this" if given is not None else "with a key, and none is given"
    return NotPermitted(
        f"request {ref} was made {what}: only who made it may ask about it; give its own {KEY} "
        "(--mesh-key or MESH_KEY of the command, key= of a client)",
        details={"ref": ref},
    )
