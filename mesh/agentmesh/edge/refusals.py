"""What a NATS server refuses and no wait would change: credentials, subjects, TLS. Functions, no state.

A server tells of a forbidden publish or subscription in an error of the connection, at once, and leaves the request without an
answer (docs/nats.md#what-a-permission-forbids). Here that error becomes the one that fails what waits.
"""

from __future__ import annotations

import re
import ssl
from typing import Literal, NamedTuple

from agentmesh.errors import NotPermitted, TlsFailed

_VIOLATION = re.compile(r"Permissions Violation for (Publish|Subscription) to \"(.*?)\"(?: using queue \"(.*)\")?'?\s*$", re.I)
_REJECTED = ("authorization violation", "authentication expired", "authentication revoked", "user authentication")

_TLS_CURES = {
    "CERTIFICATE_REQUIRED": "it asks for a client's certificate: name one (--tls-cert, --tls-key)",
    "BAD_CERTIFICATE": "it does not take this client's certificate: name the right one (--tls-cert, --tls-key)",
    "UNKNOWN_CA": "it does not believe who has signed this client's certificate: name another one (--tls-cert, --tls-key)",
    "CERTIFICATE_EXPIRED": "this client's certificate has expired: get another one (--tls-cert, --tls-key)",
    "WRONG_VERSION_NUMBER": "it answers without TLS; if it does not begin with TLS (`handshake_first`), leave out --tls-first",
}
"""What to do, by a part of the reason that TLS gives. Alerts of the server among them."""

NOBODY = "a client without credentials"


class Violation(NamedTuple):
    """What a user may not do, as the server writes it."""

    act: Literal["publish", "subscribe"]
    subject: str


def violation(line: str) -> Violation | None:
    """What a server's error line forbids; None if it is another error."""
    found = _VIOLATION.search(line)
    if found is None:
        return None
    return Violation("publish" if found[1].lower() == "publish" else "subscribe", found[2])


def rejected(text: str) -> bool:
    """Whether an error of a connection says that the credentials are wrong (or none were given)."""
    lower = text.lower()
    return any(words in lower for words in _REJECTED)


def forbidden(refused: Violation, user: str) -> NotPermitted:
    """The error of a forbidden publish or subscription; `user` as `who` names it."""
    doing = "publish to" if refused.act == "publish" else "subscribe to"
    return NotPermitted(
        f"the NATS server does not permit {user} to {doing} {refused.subject}; ask its operator for the permission",
        details={"subject": refused.subject, "user": user},
    )


def bad_credentials(user: str, address: str) -> NotPermitted:
    """The error of a connection that the server refuses."""
    what = f"refuses the credentials of {user}" if user != NOBODY else "asks for credentials, and none were given"
    return NotPermitted(
        f"the NATS server at {address} {what}; put the right ones into the address (nats://USER:PASSWORD@HOST, by "
        "MESH_NATS_URL), or name them (--creds, --nkey, --context, MESH_USER and MESH_PASSWORD)",
        details={"user": user},
    )


def who(username: str | None, password: str | None) -> str:
    """A connection's user in words. Without a password the user part of a URL is a token, which is a secret."""
    if username and password is not None:
        return f"user {username!r}"
    return "the bearer of this token" if username else NOBODY


def tls_failed(address: str, error: Exception | None) -> TlsFailed:
    """The error of a connection whose TLS cannot be made; `error` None: the server offers none."""
    if error is None:
        return TlsFailed(
            f"the server at {address} offers no TLS, and its address asks for it (tls://): nothing was sent to it; "
            "switch TLS on there, or use nats://"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFailed(
            f"the certificate of the server at {address} is not trusted ({error.verify_message}): name the authority that has "
            "signed it (--tls-ca, or SSL_CERT_FILE), and the host as the certificate has it"
        )
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    for part, cure in _TLS_CURES.items():
        if part in reason.upper():
            return TlsFailed(f"no TLS with the server at {address} ({reason}): {cure}")
    return TlsFailed(f"no TLS with the server at {address} ({reason}); check its address and its TLS settings")
