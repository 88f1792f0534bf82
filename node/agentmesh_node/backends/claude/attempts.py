"""Where an attempt at a turn begins: at the committed session, or where a lost owner had got to.

Each attempt at a turn writes a session of its own, a fork, and names it in a step before it begins. So no two processes ever
append to one transcript, and only the journal decides which transcript counts (docs/design/008-claude-sessions.md).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agentmesh.backend import Turn
from agentmesh_node.backends.claude.transcript import Standing, standing

NAMES = uuid.UUID("7c0e6f0e-64cd-4a3c-9a55-0f5f6c1d2a90")
"""Namespace of the ids of prompts."""
MOST_LOST = 5
"""Most owners in a row that may be lost before the model has given anything."""
NOTHING = Standing([], None, ())


class Source(NamedTuple):
    """The session that an attempt goes on from."""

    session: str | None
    """The session that is forked; None for an empty one."""
    standing: Standing
    """How far an earlier attempt got."""


def prompt_id(turn: Turn, life: str, base: str | None) -> str:
    """The uuid of the turn's prompt in every transcript that has it: the same in each attempt, another in each turn."""
    return str(uuid.uuid5(NAMES, "/".join((turn.agent, life, turn.steps.key, turn.ref, str(turn.number), base or ""))))


def attempts(steps: Sequence[Any]) -> list[str]:
    """The sessions of earlier attempts at this turn, oldest first."""
    return [step["session"] for step in steps if _is(step, "session")]


def lost(steps: Sequence[Any]) -> int:
    """How many attempts in a row gave nothing before this one."""
    count = 0
    for step in steps:
        count = count + 1 if _is(step, "session") else 0
    return count


def marked(steps: Sequence[Any]) -> str | None:
    """The newest entry up to which the turn is committed."""
    return next((step["entry"] for step in reversed(steps) if _is(step, "kept")), None)


def begins(session: str) -> dict[str, Any]:
    """The step that says which session an attempt writes."""
    return {"step": "session", "session": session}


def _is(step: Any, kind: str) -> bool:
    return isinstance(step, Mapping) and step.get("step") == kind


async def source(base: str | None, earlier: Sequence[str], prompt: str, load: Any) -> tuple[Source, list[Any] | None]:
    """The session to go on from, and its transcript if it was loaded: the newest attempt in which the model gave something.

    Args:
        load: `async` function that returns the main transcript of a session id.
    """
    for session in reversed(earlier):
        entries = await load(session)
        found = standing(entries or (), prompt)
        if found.begun:
            return Source(session, found), entries
    return Source(base, NOTHING), None
