"""Ending a request together with what was asked on its behalf: what a client is told of it (case 350)."""

from __future__ import annotations

import pytest

from agentmesh.subjects import Subjects
from agentmesh_client.results import EndedRequest, Subrequest
from agentmesh_client.subrequests import Endings
from client.fake_owner import world
from support import Server, run

ASKED = {"agent": "reviewer", "origin": "1.5.0"}


@pytest.mark.case(350)
@pytest.mark.parametrize("how", ["interrupt", "cancel"])
@pytest.mark.parametrize("still_open", [True, False])
def test_what_is_withdrawn_is_listed_with_what_has_not_ended(
    server: Server, subjects: Subjects, how: str, still_open: bool
) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner, w.owner("reviewer") as asked:
            await w.write_spec("coder")
            await w.write_spec("reviewer")
            owner.replies = {
                "interrupt": {"interrupted": True, "withdrawn": [ASKED]},
                "cancel": {"cancelled": True, "withdrawn": [ASKED, {"agent": "gone", "origin": "1.5.1"}]},
            }
            asked.replies = {"open": {"open": still_open, "ref": "9" if still_open else None}}
            ended = await w.mesh.end("coder", "17", how="cancel" if how == "cancel" else "interrupt", wait=0.5)
            first = Subrequest(agent="reviewer", origin="1.5.0", ref="9" if still_open else None, ended=not still_open)
            gone = Subrequest(agent="gone", origin="1.5.1", ended=True)
            assert ended == EndedRequest(done=True, withdrawn=(first,) if how == "interrupt" else (first, gone))
            assert asked.requests[0] == {"op": "open", "sender": "coder", "origin": "1.5.0"}
            assert owner.requests == [{"op": how, "ref": "17", **({"tree": True} if how == "cancel" else {})}]

    run(scenario())


def test_without_a_wait_nobody_is_asked(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"interrupt": {"interrupted": True, "withdrawn": [ASKED]}, "open": {"asked": [ASKED]}}
            ended = await w.mesh.end("coder", how="interrupt", wait=0)
            assert ended == EndedRequest(done=True, withdrawn=(Subrequest(agent="reviewer", origin="1.5.0"),))
            assert await Endings(w.mesh._control).asked_by("coder", timeout=60) == ended.withdrawn

    run(scenario())


def test_an_owner_of_an_older_build_cannot_tell(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.replies = {"open": {"error": {"code": "bad_request", "message": "unknown operation 'open'"}}}
            endings = Endings(w.mesh._control)
            assert await endings.asked_by("coder", timeout=60) == ()
            (one,) = await endings.follow("boss", [Subrequest(agent="coder", origin="1.5.0")], 0.3)
            assert not one.ended

    run(scenario())
