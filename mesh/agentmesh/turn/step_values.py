"""Inputs and commands of the turn machine for steps and waits inside a turn (agentmesh.turn.steps). Plain values."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from agentmesh.budget import Limits
from agentmesh.ledger_entries import Inner
from agentmesh.wire import ErrorBody, Outcome, PromptBody


# --- inputs -------------------------------------------------------------------------------------------------------
class TakeStep(msgspec.Struct, frozen=True):
    """The prompt task of turn `turn` has taken a step; `StepTaken` answers `token`."""

    turn: int
    token: str
    value: Raw
    inner: Inner | None = None
    """The call that it has the result of."""


class AskAgent(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt task of turn `turn` waits for another agent's outcome; `WaitOver` brings it."""

    turn: int
    wait: str
    agent: str
    prompt: PromptBody
    deadline: float
    budget: Limits | None = None
    trace: dict[str, str] = {}


class Circled(msgspec.Struct, frozen=True):
    """This wait is part of a circle. It is proven: the agent that it waits for waits, perhaps through others, for this one."""

    wait: str
    origin: str


class WaitLost(msgspec.Struct, frozen=True):
    """The agent that this wait is for does not get to it: the wait ends with `error`, and its question is withdrawn."""

    wait: str
    origin: str
    error: ErrorBody


# --- commands -----------------------------------------------------------------------------------------------------
class StepTaken(msgspec.Struct, frozen=True):
    """The step that came with `token` is committed, and the turn has `steps` now; or it cannot be, because of `error`."""

    token: str
    steps: int
    error: ErrorBody | None = None


class WaitOver(msgspec.Struct, frozen=True):
    """The running turn's wait of that name has its outcome, and the journal has it."""

    wait: str
    outcome: Outcome
