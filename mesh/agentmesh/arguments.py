"""Arguments of commands, as people type them, for all programs of the mesh."""

from __future__ import annotations

from collections.abc import Iterable

from agentmesh.errors import BadRequest


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """The pairs in `["gpu=yes", ...]`, which `option` was given. The value begins after the first `=`; the last of a key counts.

    Raises:
        BadRequest: one has no `=`, or nothing before it.
    """
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise BadRequest(f"{option} {text}: write KEY=VALUE")
        found[key] = value
    return found
