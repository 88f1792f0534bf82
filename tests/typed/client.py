"""What a type checker infers of the client's calls, and what it refuses. Never run: `make lint` checks it.

mypy is strict about ignores that are not needed: each one below is an error that it must find.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, assert_type

from agentmesh.wire import Outcome
from agentmesh_client import LiveTurn, Mesh, PromptOptions, Response, attachment


async def prompts(mesh: Mesh, soon: dt.datetime) -> None:
    assert_type(await mesh.ask("coder", "hello"), Response)
    assert_type(await mesh.ask("coder", "hello", timeout=5, deadline=soon, idempotency_key="k", budget={"usd": 1}), Response)
    assert_type(await mesh.ask_outcome("coder", "hello", metadata={"a": 1}, on_accepted=print), Outcome)
    assert_type(await mesh.tell("coder", "hello", attachments=[attachment("a.txt", b"a")], metadata=None), str)
    async with mesh.stream("coder", "hello", deadline=None) as turn:
        assert_type(turn, LiveTurn)


@dataclass
class Plan:
    steps: list[str]


async def typed(mesh: Mesh) -> None:
    answer = await mesh.ask("planner", "hello", answer_type=Plan, timeout=5)
    assert_type(answer, Response[Plan])
    assert_type(answer.answer.steps, list[str])
    print(answer.answer.days)  # type: ignore[attr-defined]
    assert_type((await mesh.ask("planner", "hello")).answer, Any)
    await mesh.ask("planner", "hello", answer_type=Plan([]))  # type: ignore[arg-type]


async def wrong(mesh: Mesh) -> None:
    await mesh.ask("coder", "hello", metdata={})  # type: ignore[call-arg]
    await mesh.ask("coder", "hello", deadline=5)  # type: ignore[arg-type]
    await mesh.ask("coder", "hello", on_accepted=print)  # type: ignore[call-arg]
    await mesh.tell("coder", "hello", budget="1 USD")  # type: ignore[arg-type]
    mesh.stream("coder", "hello", idempotency_key=7)  # type: ignore[arg-type]
    await mesh.ask("coder", "hello", 5)  # type: ignore[call-arg]


async def patient(mesh: Mesh, prompt: str) -> Response:
    """A program's own way to ask."""
    common: PromptOptions = {"metadata": {"from": "patient"}}
    common["idempotent"] = True  # type: ignore[typeddict-unknown-key]
    return await mesh.ask("coder", prompt, timeout=3600, **common)
