"""Whole turns of a typed agent whose model sends mutated streams: each ends in one way, and a later owner finds the same.

The answers are JSON that fits, JSON that does not, and what models put around it, sent as Chat Completions and then mutated.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from random import Random
from typing import Annotated, Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Event, Stream, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh.tools import ToolSpec
from agentmesh.unicode import encode, well_formed
from agentmesh_node.backends.api.body import read
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.backends.openai.failures import translated
from agentmesh_node.backends.shapes import shaped
from agentmesh_node.tools import Toolbox
from agentmesh_node.tools.loop import ToolLoop
from agentmesh_node.tools.loop_steps import ModelAnswer
from agentmesh_node.turns.typed_answers import MisfitStep, TypedBackend
from fuzz import mutations
from fuzz.readers import MOST_BYTES, Body, Ended
from fuzz.recordings import Recording


class Step(msgspec.Struct):
    what: str
    minutes: Annotated[int, msgspec.Meta(ge=1)] = 1


class Plan(msgspec.Struct):
    steps: list[Step]
    cost: float = 0.0
    extra: Any = None


PLAN = AnswerType(Plan)
TEXTS = (
    '{"steps": []}',
    '{"steps": [{"what": "go", "minutes": 5}], "cost": 1.5}',
    '```json\n{"steps": [{"what": "\\u00e9\\ud83d\\ude00"}]}\n```',
    'Here:\n```\n{"steps": [], "extra": [1, {"a": null}]}\n```\nWell?',
    '{"steps": [{"what": "go", "minutes": 0}]}',
    '{"steps": [], "cost": 1e400}',
    '{"steps": [], "steps": []}',
    '{"steps": "none"}',
    "I would rather not.",
    "",
    '{"steps": [], "extra": ' + "[" * 150 + "]" * 150 + "}",
)


class Typed(Agent[Any]):
    answer_type = Plan


def sent(text: str, random: Random) -> Recording:
    """A text as a stream of Chat Completions, in pieces of any length."""
    frames, at = [], 0
    while at < len(text):
        size = random.choice((1, 3, 8, 40))
        frames.append(_frame({"content": text[at : at + size]}))
        at += size
    return Recording("typed", (_frame({"role": "assistant"}), *frames, _frame({}, "stop"), b"data: [DONE]\n\n"))


def answer_of_model(random: Random) -> tuple[Recording, list[bytes], list[str]]:
    """An answer as a stream, its frames, perhaps after mutations, and the names of these."""
    recording = sent(random.choice(TEXTS), random)
    if random.random() < 0.4:
        return recording, list(recording.frames), []
    return recording, *mutations.mutated(recording, random)


def _frame(delta: Mapping[str, Any], stop: str | None = None) -> bytes:
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": stop}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class Model:
    """Answers with streams, in order; another owner's goes on behind those that were read."""

    provider = name = "fuzz"

    def __init__(self, streams: Sequence[list[bytes]]) -> None:
        self._streams = streams
        self.asked = 0

    def prompt(self, text: str, turn: Turn) -> Any:
        return ["user", text]

    def results(self, results: Sequence[Any]) -> Any:
        return ["results", *(result.text for result in results)]

    def noted(self, message: Any, note: str) -> Any:
        return [*message, note]

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        place = sum(1 for message in history if not isinstance(message, list))
        self.asked += 1
        try:
            stream = Body(self._streams[place % len(self._streams)])
            async for part in read(stream, ChatReader(8192), silence_s=60, most_bytes=MOST_BYTES):
                yield part
        except BackendError:
            raise
        except Exception as error:
            known = translated(error, ())
            if known is None:
                raise
            raise known from None


class Looped:
    """A backend with the tool loop."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def start_session(self) -> Any:
        return []

    async def resume_session(self, session: Any) -> Any:
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        history = list(session)
        return Stream(ToolLoop(self.model, Toolbox(Typed())).run(history, prompt, turn), history)

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        return session

    async def terminate_session(self, session: Any) -> None: ...


class Bare(Looped):
    """One without steps: each prompt is one answer."""

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        history = [*session, ["user", prompt]]
        return Stream(self._events(history), history)

    async def _events(self, history: list[Any]) -> AsyncGenerator[Event]:
        try:
            async for part in self.model.answer(history, ()):
                if isinstance(part, ModelAnswer):
                    history.append(part.message)
                    yield Event.usage(output_tokens=1)
                    yield Event.result(part.text)
                else:
                    yield part
        except BackendError as error:
            yield Event.error(str(error.details["reason"]), message=error.message)


async def typed(chunks: list[bytes], random: Random) -> Ended:
    """A turn of a typed agent, whose model's first answer is this stream."""
    frames, _ = answer_of_model(random)[1:]
    streams = [chunks, list(mutations.chunks(frames, random))]
    kind = random.choice((Looped, Bare))
    first, events, steps = await _turn(kind, streams, ())
    assert first.model.asked <= 2, "it is told once"
    for upto in range(len(steps) + 1):
        later, again, _ = await _turn(kind, streams, steps[:upto])
        ends = [well_formed(last[-1].data.get("text")) for last in (again, events)]
        assert ends[0] == ends[1], "a later owner comes to the same end"
        assert later.model.asked <= first.model.asked
        if kind is Bare and MisfitStep.among(steps[:upto]) is not None:
            assert later.model.asked <= 1, "the first answer is not asked for again"
    last = events[-1]
    return Ended("result" if last.kind == "result" else str(last.data["reason"]), len(events) > 1)


async def _turn(
    kind: type[Looped], streams: Sequence[list[bytes]], taken: tuple[Any, ...]
) -> tuple[Looped, list[Event], tuple[Any, ...]]:
    steps = UnjournaledSteps(tuple(msgspec.json.decode(encode(taken))), "t")
    backend = kind(Model(streams))
    stream = await TypedBackend(backend, PLAN).prompt([], "plan", Turn("a", "1", 1, steps=steps, answer_type=PLAN))
    events = [event async for event in stream.events]
    assert [event.terminal for event in events].count(True) == 1
    for event in events:
        shaped(event)
    last = events[-1]
    assert last.terminal
    if last.kind == "result":
        assert PLAN.fitting(last.data["text"]) == last.data["text"], "the canonical form"
    return backend, events, steps.taken
