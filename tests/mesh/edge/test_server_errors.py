"""What the server's errors mean: each a typed error that says what to do, and survives the wire."""

from __future__ import annotations

import pytest

from agentmesh.edge.server_errors import ServerError, definite, leaderless, missing
from agentmesh.errors import (
    BadRequest,
    MailboxFull,
    MeshError,
    NoLeader,
    StoreFull,
    StreamMissing,
    TooLarge,
    Unavailable,
    error_for,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerError(503, 10077, "maximum messages per subject exceeded"), MailboxFull),
        (ServerError(503, 10077, "maximum bytes exceeded"), StoreFull),
        (ServerError(503, 10077, "maximum messages exceeded"), StoreFull),
        (ServerError(503, 10077, "write a.blk: no space left on device"), StoreFull),
        (ServerError(503, 10077, "something else"), Unavailable),
        (ServerError(400, 10002, "resource limits exceeded for account"), StoreFull),
        (ServerError(503, 10023, "insufficient resources"), StoreFull),
        (ServerError(500, 10028, "insufficient memory resources available"), StoreFull),
        (ServerError(500, 10047, "insufficient storage resources available"), StoreFull),
        (ServerError(400, 10054, "message size exceeds maximum allowed"), TooLarge),
        (ServerError(429, 10167, "too many requests"), Unavailable),
        (ServerError(400, 10060, "expected stream does not match"), BadRequest),
    ],
)
def test_each_refusal_is_the_error_that_its_cause_deserves(error: ServerError, expected: type[MeshError]) -> None:
    found = definite(error, "mesh.inbox.coder")
    assert type(found) is expected
    assert found.details == {"err_code": error.err_code, "subject": "mesh.inbox.coder"}
    assert isinstance(found, Unavailable) == (expected in (StoreFull, Unavailable)), "what passes is tried again"


@pytest.mark.parametrize(
    ("error", "code", "cure"),
    [
        (definite(ServerError(503, 10023, "insufficient resources"), "s"), "store_full", "free space"),
        (leaderless(), "no_leader", "bring the others back"),
        (missing("MESH_MAIL"), "stream_missing", "restore it from its backup"),
        (missing("KV_mesh-registry"), "stream_missing", "no such mesh"),
        (Unavailable("x"), "unavailable", "x"),
    ],
)
def test_what_keeps_the_store_from_its_work_has_a_stable_code_and_says_what_to_do(error: MeshError, code: str, cure: str) -> None:
    assert error.code == code
    assert cure in error.message
    again = error_for(error.code, error.message, error.details)
    assert (type(again), again.message, again.details) == (type(error), error.message, error.details)


def test_all_of_them_are_waited_through() -> None:
    assert all(issubclass(kind, Unavailable) for kind in (StoreFull, NoLeader, StreamMissing))
