"""What passes between the accounts."""

from __future__ import annotations

from agentmesh.access.layout import STREAMS_OUT, Crossing, callers_account, crossings, mesh_account
from agentmesh.access.roles import lists
from agentmesh.subjects import Subjects

MESH = Subjects("mesh")


def test_callers_send_as_before_and_the_mesh_hears_that_it_came_from_them() -> None:
    found = crossings(MESH, ("status",))
    assert Crossing("mesh.caller.ask.>", "mesh.ask.>") in found
    assert Crossing("mesh.live.control-status.>", "mesh.live.control-status.>") in found
    assert {one.exported for one in found if one.local.startswith("mesh.") and "control" not in one.local} == {
        "mesh.caller.ask.>",
        "mesh.caller.tell.>",
        "mesh.caller.event-to.>",
        "mesh.caller.poll.>",
    }
    assert STREAMS_OUT == ("_INBOX.>",)


def test_all_that_a_caller_may_send_is_imported() -> None:
    local = [one.local.removesuffix(">") for one in crossings(MESH, ("status", "cancel"))]
    granted = lists("caller", MESH, user="u", agents=("a", "b."), ops=("status", "cancel"))
    for subject in granted.publish_allow:
        assert subject.startswith("$SYS") or any(subject.startswith(head) for head in local), subject


def test_accounts_bear_the_root() -> None:
    assert (mesh_account(Subjects("shop")), callers_account(Subjects("shop"))) == ("SHOP", "SHOP_CALLERS")
