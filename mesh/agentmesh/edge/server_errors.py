"""What the server's definite errors mean to the mesh: the typed error of each, with what to do about it."""

from __future__ import annotations

import msgspec

from agentmesh.errors import BadRequest, MailboxFull, MeshError, NoLeader, StoreFull, StreamMissing, TooLarge, Unavailable

NO_STREAM = 10059
NO_META_LEADER = 10008
_FULL = 10077
_TOO_LARGE = (10054, 10097)
_STORE_FULL = (10002, 10023, 10028, 10047)


class ServerError(msgspec.Struct):
    """An error as JetStream sends it: `code` as in HTTP, `err_code` names it."""

    code: int = 0
    err_code: int = 0
    description: str = ""


def definite(error: ServerError, subject: str) -> MeshError:
    """The error of a publish to `subject` that was refused for good: nothing was stored."""
    code, text = error.err_code, error.description
    details = {"err_code": code, "subject": subject}
    if code == _FULL and "per subject" in text:
        return MailboxFull(f"{subject} is full; send again later", details=details)
    if code in _STORE_FULL or (code == _FULL and ("maximum" in text or "no space" in text)):
        return StoreFull(
            f"{subject}: the server's storage is full ({text}); free space on its disk, or raise the limit that is reached "
            "(the server's max_file_store, the account's max_file, or the stream's own)",
            details=details,
        )
    if code in _TOO_LARGE:
        return TooLarge(f"{subject}: {text}", details=details)
    if code == _FULL or error.code in (429, 503):
        return Unavailable(f"{subject}: {text}; try again", details=details)
    return BadRequest(f"{subject}: {text}", details=details)


def leaderless() -> NoLeader:
    """The error when too few servers are up to elect a leader."""
    return NoLeader(
        "JetStream has no leader: too few servers of the cluster are up and reach each other; bring the others back",
        details={"err_code": NO_META_LEADER},
    )


def missing(stream: str, *, clustered: bool = True) -> StreamMissing:
    """The error for a stream that the server does not know; `clustered`: another may know it."""
    if stream.startswith("KV_"):
        text = (
            "so there is no such mesh here: if `mesh up` or `mesh setup` has just been started, try again in a moment; else "
            "check its root, the server's address and the account; a new mesh is made by "
        )
    else:
        text = (
            "which every mesh has: if it was deleted, restore it from its backup, or have it made anew, empty, by "
            "`mesh setup --new`; a new mesh is made by "
        )
    return StreamMissing(
        f"this server has no stream {stream}, {text}`mesh setup --new` (or `mesh up`). If it had one, look at its store "
        "directory and its encryption key first",
        details={"missing": stream, "clustered": clustered},
    )
