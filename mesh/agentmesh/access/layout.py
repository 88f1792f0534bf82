"""The accounts of a mesh: its processes in one, callers in another, and what passes between the two.

A list of subjects in one account does not confine a caller; an account does (docs/security.md). Callers reach what is
exported to them and nothing else, and the server tells who they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agentmesh.access.roles import API, control_subject
from agentmesh.subjects import WAYS, Subjects

SYSTEM = "SYS"
THRESHOLD = "24h"
"""How long the server remembers where the answers to a request from another account go: else two to four minutes."""


class Crossing(msgspec.Struct, frozen=True):
    """One service that the mesh's account exports and the callers' account imports."""

    exported: str
    """The subject as the mesh's processes hear it."""
    local: str
    """The subject as callers send it."""


def mesh_account(subjects: Subjects) -> str:
    """The name of the account of the mesh's processes."""
    return subjects.root.upper()


def callers_account(subjects: Subjects) -> str:
    """The name of the callers' account."""
    return f"{subjects.root.upper()}_CALLERS"


def crossings(subjects: Subjects, ops: Sequence[str]) -> tuple[Crossing, ...]:
    """All services that callers are given.

    Args:
        ops: the control requests that some caller may send.
    """
    asked = [Crossing(subjects.caller(way, ">"), subjects.way(way, ">")) for way in WAYS]
    controls = [control_subject(subjects, op, ">") for op in ops]
    specs = f"{API}.DIRECT.GET.{subjects.stream('registry')}.{subjects.registry_key('agents.>')}"
    return (*asked, *(Crossing(subject, subject) for subject in (*controls, specs)))


STREAMS_OUT = ("_INBOX.>",)
"""What of the mesh's account callers hear: outcomes and live events, each at its own inbox."""
