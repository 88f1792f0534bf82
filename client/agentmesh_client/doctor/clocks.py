"""Whose clock is wrong, and what that does (docs/design/025-time-by-the-servers-clock.md). Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from agentmesh_client.doctor.facts import Facts
from agentmesh_client.doctor.findings import Finding, Level, some
from agentmesh_client.doctor.members import MemberFacts

SKEW_S = 2.0
"""How far clocks may differ before it is said."""
MOST_SKEW_S = 60.0
"""How far this machine's may differ from the servers' before it is called a problem."""
_ENOUGH = 3
"""Servers of which most can be believed."""


def servers_ahead_s(facts: Facts) -> float | None:
    """How far the servers' clocks are ahead of this machine's: the middle one. None: no server says its time."""
    known = [server.clock_ahead_s for server in facts.servers if server.clock_ahead_s is not None]
    return statistics.median_low(known) if known else facts.clock_skew_s


def findings(facts: Facts) -> Iterator[Finding]:
    """What is wrong with the clocks of servers, of this machine, and of nodes and supervisors."""
    reference = servers_ahead_s(facts)
    if reference is None:
        return
    yield from _of_servers(facts, reference)
    if abs(reference) > SKEW_S:
        level: Level = "problem" if abs(reference) > MOST_SKEW_S else "warning"
        yield Finding(
            level,
            f"the server's clock is {_apart(reference)} this machine's: synchronise both (deadlines of callers without SDK, "
            "dates in log lines)",
        )
    yield from _of_members(facts.members, reference)


def _of_servers(facts: Facts, reference: float) -> Iterator[Finding]:
    known = {server.name: server.clock_ahead_s for server in facts.servers if server.clock_ahead_s is not None}
    what = "deadlines and timers of what it stores come early or late: synchronise it with the others (chrony, ntpd)"
    if len(known) < _ENOUGH:
        if known and max(known.values()) - min(known.values()) > SKEW_S:
            apart = max(known.values()) - min(known.values())
            yield Finding(
                "problem",
                f"the clocks of the servers {' and '.join(known)} differ by {apart:.1f} s; "
                "deadlines and timers of what they store come early or late: synchronise them (chrony, ntpd)",
            )
        return
    for name, ahead in known.items():
        if abs(ahead - reference) > SKEW_S:
            yield Finding("problem", f"the clock of the server {name} is {_apart(ahead - reference)} the other servers': {what}")


def _of_members(members: list[MemberFacts], reference: float) -> Iterator[Finding]:
    for member in members:
        who = f"{member.role} {member.id}"
        if member.clock_ahead_s is not None and abs(member.clock_ahead_s - reference) > SKEW_S:
            yield Finding(
                "warning",
                f"the clock of the machine of {who} is {_apart(member.clock_ahead_s - reference)} the servers': its log lines "
                "are misdated (deadlines go by the servers' clock): synchronise it (chrony, ntpd)",
            )
        if member.server_ahead_s is not None and abs(member.server_ahead_s - reference) > SKEW_S:
            yield Finding(
                "problem",
                f"{who} takes the time to be {_apart(member.server_ahead_s - reference)} what it is: within the last minute a "
                "server with a wrong clock has led a stream, or this process was suspended; see the servers' clocks",
            )
    older = [member.id for member in members if member.answers and member.clock_ahead_s is None]
    if older:
        yield Finding("warning", f"{some(older)}: of an older build, which measures deadlines by its own clock; upgrade it")


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}"
