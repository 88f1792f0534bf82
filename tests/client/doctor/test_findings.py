"""Names in a finding: a few of them, and how many there are besides."""

from __future__ import annotations

from agentmesh_client.doctor.findings import MOST_NAMED, some


def test_some_names_are_shown_and_the_others_counted() -> None:
    names = [f"a{number}" for number in range(MOST_NAMED + 2)]
    assert some(names[:2]) == "a0, a1"
    assert some(names[:MOST_NAMED]) == "a0, a1, a2, a3, a4"
    assert some(names) == "a0, a1, a2, a3, a4 and 2 more"
