"""What a connection keeps of the server's refusals, and for how long. With a server: test_refusals.py."""

from __future__ import annotations

import asyncio

from agentmesh.edge.first_connection import Attempt
from agentmesh.edge.pending_requests import PendingRequests
from agentmesh.edge.refused import Refusals
from agentmesh.errors import NotPermitted
from support import run

PUBLISH = "-ERR 'Permissions Violation for Publish to \"mesh.Inbox.a\"'"
SUBSCRIBE = "-ERR 'Permissions Violation for Subscription to \"{}\"'"


def shown(refusals: Refusals) -> tuple[NotPermitted | None, NotPermitted | None]:
    return refusals.first, refusals.deaf


def test_what_is_refused_lasts_as_long_as_the_connection() -> None:
    async def main() -> None:
        pending = PendingRequests(asyncio.get_running_loop())
        refusals, heard = Refusals("test", "_INBOX.x.*", pending), list[NotPermitted]()
        forget = refusals.on_refused(heard.append)
        waiting = pending.wait("in.1", 5, "mesh.Inbox.a")
        assert refusals.hear(PUBLISH, "user 'op'") and shown(refusals)[0] is None
        assert "user 'op' to publish to mesh.Inbox.a" in str(waiting.exception())
        assert not refusals.hear("-ERR 'Stale Connection'", "user 'op'")
        other = pending.wait("in.2", 5, "b")
        assert refusals.hear(SUBSCRIBE.format("mesh.Events"), "user 'op'")
        assert shown(refusals)[0] is heard[0] and shown(refusals)[1] is None and not other.done()
        refusals.hear(SUBSCRIBE.format("_INBOX.x.*"), "user 'op'")
        assert shown(refusals)[1] is heard[1] and isinstance(other.exception(), NotPermitted), "nobody can answer any more"
        refusals.disconnected()
        assert shown(refusals)[0] is None and shown(refusals)[1] is None
        attempt = Attempt("h:1", "user 'op'", opened=True, error=Exception("nats: 'Authorization Violation'"))
        for _ in range(2):
            refusals.rejected_again(attempt)
        assert len(heard) == 3 and shown(refusals)[0] is heard[2]
        refusals.disconnected()
        assert shown(refusals)[0] is heard[2], "it is still not restored"
        refusals.restored()
        assert shown(refusals)[0] is None
        forget()
        refusals.hear(SUBSCRIBE.format("mesh.Events"), "user 'op'")
        assert len(heard) == 3
        pending.close()

    run(main())
