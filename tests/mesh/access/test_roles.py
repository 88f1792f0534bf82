"""Lists of roles: what nobody has, and what callers are confined to."""

from __future__ import annotations

import re

import pytest

from agentmesh.access.roles import INSIDE, ROLES, Role, lists
from agentmesh.errors import BadRequest
from agentmesh.subjects import LANES, Subjects

MESH = Subjects("mesh")


def granted(role: Role, **how: object) -> tuple[set[str], set[str]]:
    found = lists(role, MESH, user="u", **how)  # type: ignore[arg-type]
    return set(found.publish_allow), set(found.subscribe_allow)


@pytest.mark.parametrize("role", INSIDE)
def test_nobody_inside_may_pose_as_an_import(role: Role) -> None:
    publish, _ = granted(role)
    assert not [subject for subject in publish if subject.startswith(("mesh.caller", "mesh.>", ">", "mesh.*"))]


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("node", "supervisor")])
def test_lanes_that_are_trusted_are_written_by_nodes_and_supervisors_alone(role: Role) -> None:
    publish, _ = granted(role, agents=("a",))
    assert not [name for name, lane in LANES.items() if lane.trusted and MESH.lane(name, ">") in publish]


@pytest.mark.parametrize("role", [role for role in ROLES if role != "setup"])
def test_only_setup_makes_streams(role: Role) -> None:
    publish, _ = granted(role, agents=("a",))
    assert not [subject for subject in publish if re.search(r"STREAM\.(CREATE|UPDATE|DELETE)\.", subject)]
    assert [subject for subject in granted("setup")[0] if ".STREAM.CREATE." in subject]


@pytest.mark.parametrize("role", ROLES)
def test_everybody_hears_its_own_inbox_and_no_others(role: Role) -> None:
    publish, subscribe = granted(role, agents=("a",))
    assert [subject for subject in subscribe if subject.startswith("_INBOX")] == ["_INBOX.u.>"]
    assert "$SYS.REQ.USER.INFO" in publish


def test_a_caller_of_a_name_reaches_that_agent_alone() -> None:
    publish, subscribe = granted("caller", agents=("team-a.reviewer",), ops=("status", "cancel"))
    assert publish == {
        "mesh.ask.team-a.reviewer",
        "mesh.tell.team-a.reviewer",
        "mesh.event-to.team-a.reviewer",
        "mesh.poll.team-a.reviewer",
        "mesh.live.control-status.team-a.reviewer",
        "mesh.live.control-cancel.team-a.reviewer",
        "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.team-a.reviewer",
        "$SYS.REQ.USER.INFO",
    }
    assert subscribe == {"_INBOX.u.>"}


def test_a_caller_of_a_prefix_reads_no_spec() -> None:
    publish, _ = granted("caller", agents=("team-a.",))
    assert "mesh.ask.team-a.>" in publish
    assert not [subject for subject in publish if subject.startswith("$JS")], "the server honours wildcards in a direct get"


@pytest.mark.parametrize("agents", [(), ("a.>",), ("*",), ("a..b",), (".",), ("_supervisor",), ("a b",)])
def test_what_is_neither_a_name_nor_a_prefix_is_refused(agents: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest):
        granted("caller", agents=agents)


def test_an_observer_reads_no_content() -> None:
    publish, subscribe = granted("observer")
    for name in ("MESH_MAIL", "MESH_JOURNAL", "MESH_RESULT", "MESH_SESSION", "MESH_DEAD"):
        assert not [subject for subject in publish | subscribe if name in subject]
    assert not [subject for subject in subscribe if subject.startswith(("mesh.done", "mesh.live"))]
