"""Whose clock is wrong is said by name, with what that does."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh_client.doctor.clocks import findings, servers_ahead_s
from agentmesh_client.doctor.findings import Finding
from agentmesh_client.doctor.members import MemberFacts
from agentmesh_client.doctor.servers import ServerReport
from client.test_doctor import facts


def servers(*ahead: float | None) -> list[ServerReport]:
    return [ServerReport(name=name, clock_ahead_s=one) for name, one in zip("abc", ahead, strict=False)]


def node(clock: float | None, server: float | None = 0.0, *, answers: bool = True) -> MemberFacts:
    return MemberFacts(id="n1", role="node", answers=answers, clock_ahead_s=clock, server_ahead_s=server)


def found(**changes: Any) -> list[Finding]:
    return list(findings(facts(**changes)))


def test_clocks_that_agree_are_no_finding() -> None:
    assert found(servers=servers(0.1, -0.1, 1.0), members=[node(0.5), node(None, answers=False)]) == []
    assert found(clock_skew_s=None, servers=servers(None)) == []


@pytest.mark.case(333)
@pytest.mark.parametrize("wrong", [-3600.0, -90.0, 90.0, 3600.0])
def test_one_of_three_servers_is_named(wrong: float) -> None:
    (said,) = found(servers=servers(0.01, wrong, 0.0))
    how = "ahead of" if wrong > 0 else "behind"
    assert said.level == "problem" and said.text.startswith(f"the clock of the server b is {abs(wrong):.1f} s {how} the other")


def test_of_two_servers_nobody_can_say_which_is_wrong() -> None:
    (said,) = found(servers=servers(0.0, 90.0))
    assert said.level == "problem" and said.text.startswith("the clocks of the servers a and b differ by 90.0 s")


@pytest.mark.case(333)
@pytest.mark.parametrize("wrong", [-3600.0, -90.0, 90.0, 3600.0])
def test_a_wrong_clock_of_a_node_is_named_also_from_a_machine_whose_clock_is_wrong(wrong: float) -> None:
    for here in (0.0, -1.0):  # by how much this machine's clock is ahead
        (said,) = found(servers=servers(-here, -here, -here), members=[node(wrong - here, -here)])
        assert said.level == "warning" and said.text.startswith("the clock of the machine of node n1 is ")
        assert f"{abs(wrong):.1f} s {'ahead of' if wrong > 0 else 'behind'} the servers'" in said.text


def test_this_machine_is_wrong_where_all_the_others_agree() -> None:
    (said,) = found(servers=servers(90.0, 90.1, 89.9), members=[node(90.0, 90.0)])
    assert said.level == "problem" and "90.0 s ahead of this machine's" in said.text


def test_a_node_that_takes_the_time_to_be_another_is_named() -> None:
    (said,) = found(servers=servers(0.0, 0.0, 0.0), members=[node(0.0, -90.0)])
    assert said.level == "problem" and said.text.startswith("node n1 takes the time to be 90.0 s behind what it is")


def test_a_node_of_an_older_build_is_named() -> None:
    (said,) = found(servers=servers(0.0), members=[node(None, None)])
    assert said.level == "warning" and said.text.startswith("n1: of an older build")


def test_the_middle_server_counts() -> None:
    assert servers_ahead_s(facts(servers=servers(5.0, -3600.0, 7.0))) == 5.0
    assert servers_ahead_s(facts(servers=servers(None), clock_skew_s=3.0)) == 3.0
    assert servers_ahead_s(facts(servers=servers(None), clock_skew_s=None)) is None
