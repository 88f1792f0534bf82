"""Last messages, for a user who may read by subject alone."""

from __future__ import annotations

import pytest

from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.errors import NotPermitted
from agentmesh.subjects import Subjects
from support import Faulty, Server, connected, run

pytestmark = [pytest.mark.processes, pytest.mark.case(606)]

SUBJECTS = Subjects("mesh")
STREAM = SUBJECTS.stream("result")
USERS = f"""authorization {{ users: [
  {{ user: "op", password: "p" }}
  {{ user: "shop", password: "p", permissions: {{
      publish: {{ allow: "$JS.API.DIRECT.GET.{STREAM}.mesh.result.a.>" }}, subscribe: {{ allow: "_INBOX.shop.>" }} }} }}
] }}"""


def test_a_user_who_may_read_by_subject_alone_tries_the_others_once() -> None:
    with Server(config=USERS) as server:

        async def main() -> None:
            async with (
                connected(server.url.replace("//", "//op:p@")) as op,
                connected(server.url.replace("//", "//shop:p@")) as t,
            ):
                await ensure(op, SUBJECTS)
                names = [SUBJECTS.result("a", str(number)) for number in range(40)]
                for subject in (*names, SUBJECTS.result("b", "1")):
                    await store(op, subject, subject.encode())
                counted = Faulty(t)
                for reads in (LastReads(op), LastReads(counted)):
                    for direct in (False, True, False, True):
                        found = await reads.newest(STREAM, names[7], direct=direct)
                        assert found is not None and found.data == names[7].encode() and found.seq == 8
                        assert await reads.newest(STREAM, SUBJECTS.result("a", "none"), direct=direct) is None
                    for _ in range(2):
                        many = await reads.newest_of(STREAM, [*names, SUBJECTS.result("a", "none")])
                        assert {subject: one.data for subject, one in many.items()} == {name: name.encode() for name in names}
                asked = [s for s in counted.requests if not s.startswith(f"$JS.API.DIRECT.GET.{STREAM}.")]
                assert sorted(asked) == [f"$JS.API.DIRECT.GET.{STREAM}"] * 2 + [f"$JS.API.STREAM.MSG.GET.{STREAM}"]
                with pytest.raises(NotPermitted, match=r"mesh\.result\.b\.1"):
                    await reads.newest(STREAM, SUBJECTS.result("b", "1"))
                reads.forget()
                await reads.newest(STREAM, names[0])
                assert counted.requests.count(f"$JS.API.STREAM.MSG.GET.{STREAM}") == 2

        run(main())
