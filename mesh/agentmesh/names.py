"""Names: what may stand in a subject, and what may not.

An agent is a *name*. Names map to NATS subjects without escaping, so a name that this module accepts can be used as the
tail of a subject and as the tail of a registry key, and no name can widen a wildcard (docs/protocol.md#names).
"""

from __future__ import annotations

import re

from agentmesh.errors import BadRequest

MAX_NAME = 128
"""Longest agent name, in characters."""
MAX_REPLY_SUBJECT = 256
"""Longest reply subject of a caller that the mesh publishes to, in bytes."""

_TOKEN = r"[A-Za-z0-9_-]{1,64}"
_NAME = re.compile(rf"{_TOKEN}(?:\.{_TOKEN}){{0,7}}")
_ONE_TOKEN = re.compile(_TOKEN)
_SUBJECT = re.compile(r"(?:(?![*>]\.)[^\s.]+\.)*(?![*>]$)[^\s.]+")
_ROOT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def agent_name(text: object) -> str:
    """Return `text` if it is a valid agent name: 1 to 8 tokens of `[A-Za-z0-9_-]{1,64}`, joined by dots, at most 128 characters.

    Raises:
        BadRequest: it is not. Tokens that begin with `_` are the mesh's own.
    """
    if not isinstance(text, str) or len(text) > MAX_NAME or _NAME.fullmatch(text) is None:
        raise BadRequest(
            f"{_shown(text)} is not an agent name: use 1 to 8 tokens of letters, digits, '_' and '-' joined by dots, "
            f"{MAX_NAME} characters in all"
        )
    if any(token.startswith("_") for token in text.split(".")):
        raise BadRequest(f"{_shown(text)} is not an agent name: tokens that begin with '_' are reserved for the mesh")
    return text


def prefix_of(agent: str) -> str:
    """The first token of an agent's name: agents that have it in common share what is shared between prefixes."""
    return agent.partition(".")[0]


def node_id(text: object) -> str:
    """Return `text` if it is a valid node or supervisor id: one token.

    Raises:
        BadRequest: it is not.
    """
    if not isinstance(text, str) or _ONE_TOKEN.fullmatch(text) is None or text.startswith("_"):
        raise BadRequest(f"{_shown(text)} is not a node id: use one token of letters, digits, '_' and '-'")
    return text


def token(text: object, what: str = "id") -> str:
    """Return `text` if it is one subject token (a ref, a timer id; a leading `_` is allowed).

    Raises:
        BadRequest: it is not.
    """
    # Timer ids of the mesh itself look like `_deadline.<ref>` in prose; on the wire they are one token.
    if not isinstance(text, str) or _ONE_TOKEN.fullmatch(text) is None:
        raise BadRequest(f"{_shown(text)} is not a valid {what}: use 1 to 64 letters, digits, '_' and '-'")
    return text


def root_token(text: object) -> str:
    """Return `text` if it can be a mesh's root token. Lower case only: stream names are its upper-cased form.

    Raises:
        BadRequest: it cannot.
    """
    if not isinstance(text, str) or _ROOT.fullmatch(text) is None:
        raise BadRequest(f"{_shown(text)} cannot be a mesh's root: use lower-case letters, digits, '_' and '-'")
    return text


def reply_subject(text: str, root: str) -> str:
    """Return `text` if an owner may publish an outcome there.

    An owner never publishes to the mesh's own subjects, or to the server's, on a stranger's word; and a long subject
    would exceed the server's control line (4 kB), which costs the connection that sends it.

    Raises:
        BadRequest: it is longer than 256 bytes, lies under the mesh's root, begins with `$`, or is no literal subject.
    """
    if len(text) > MAX_REPLY_SUBJECT or (not text.isascii() and len(text.encode()) > MAX_REPLY_SUBJECT):
        raise BadRequest(f"the reply subject has more than {MAX_REPLY_SUBJECT} bytes")
    if text.startswith(("$", root + ".")) or text == root:
        raise BadRequest(f"the reply subject {_shown(text)} lies in a reserved subject space; use an inbox of your own")
    if _SUBJECT.fullmatch(text) is None or not text.isprintable():
        raise BadRequest(f"the reply subject {_shown(text)} is not a literal subject")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
