"""Mail that waits for a name that no agent has: everybody can see it, and a client of the mesh sends none."""

from __future__ import annotations

import pytest

from agentmesh.edge.publish import store
from agentmesh.errors import NotFound
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, encode_outcome
from agentmesh_client.cli import exits
from agentmesh_client.unclaimed import counts
from client.fake_owner import World
from client.test_cli import shell
from support import Server, run


async def publish(w: World, subjects: Subjects, agent: str) -> str:
    """A prompt of a plain client; its ref."""
    return str((await store(w.transport, subjects.inbox(agent), b"hello")).seq)


@pytest.mark.case(102)
def test_telling_a_name_without_an_agent_is_refused_at_once(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with shell(server, subjects) as (w, sh):
            await w.write_spec("over", status="stopped")
            for name in ("nobody", "over"):
                for verb in ("tell", "notify", "ask"):
                    _, err = await sh.run(verb, name, "hello", expect=exits.NOT_FOUND)
                    assert f"there is no agent {name!r}; start it with `mesh start {name} --kind KIND`" in err
            assert await w.mesh.unclaimed_mail() == []  # nothing was sent

    run(main(), 60)


@pytest.mark.case(293)
def test_what_waits_is_pending_with_the_reason_and_is_listed(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with shell(server, subjects) as (w, sh):
            ref = await publish(w, subjects, "nobody")
            await publish(w, subjects, "nobody")
            await publish(w, subjects, "another.one")
            await publish(w, subjects, "coder")
            await w.write_spec("over", status="stopped")
            await publish(w, subjects, "over")
            out, err = await sh.run("poll", "nobody", ref)
            assert out == "pending\n"
            assert "no agent has the name 'nobody'" in err and "mesh start nobody" in err
            assert (await w.mesh.poll("nobody", ref)).reason is not None

            waiting = await w.mesh.unclaimed_mail()
            assert [(one.agent, one.messages) for one in waiting] == [("nobody", 2), ("another.one", 1)]  # the oldest first
            assert await w.mesh.unclaimed_mail("nobody") == waiting[:1]
            assert await w.mesh.unclaimed_mail("coder") == await w.mesh.unclaimed_mail("over") == []
            assert [one["agent"] for one in await sh.json("dead", "unclaimed")] == ["nobody", "another.one"]
            out, err = await sh.run("dead", "ls", "nobody")
            assert "no agent has the name nobody" in err and "messages: 2" in err
            assert (await sh.run("dead", "ls", "coder"))[1] == "mesh: coder has no dead letters\n"

    run(main(), 60)


def test_of_a_name_without_an_agent_only_what_is_stored_is_known(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with shell(server, subjects) as (w, _):
            ref, others = await publish(w, subjects, "nobody"), await publish(w, subjects, "another")
            for never in (others, "99999", "c1"):
                with pytest.raises(NotFound, match=never):
                    await w.mesh.poll("nobody", never)
            ended = Outcome(agent="nobody", ref=ref, ok=False)
            await store(w.transport, subjects.result("nobody", ref), encode_outcome(ended), expected=0)
            assert (await w.mesh.poll("nobody", ref)).outcome == ended
            await w.write_spec("another", status="stopped")  # its mail is its next life's, or answered by a sweep
            found = await w.mesh.poll("another", others)
            assert (found.status, found.reason) == ("pending", None)

    run(main(), 60)


def test_subjects_that_are_no_names_are_not_counted() -> None:
    stored = {"mesh.inbox.a": 2, "mesh.notify.a": 1, "mesh.inbox.*": 7, "mesh.inbox.>": 7, "mesh.inbox.b": 4, "mesh.other.a": 9}
    assert counts(Subjects(), stored, {"agents.b", "epoch"}) == {"a": 3}
