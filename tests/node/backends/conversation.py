"""Conversations with a backend, for the tests of those that speak to an API."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Backend, Event, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh.tools import tool
from agentmesh.wire import Attachment
from support import run


@tool(effect="pure")
async def double(number: int) -> int:
    """Double a number.

    Args:
        number: any
    """
    return 2 * number


class Plain(Agent[Any]):
    pass


class Doubling(Agent[Any]):
    tools = (double,)


class Conversation:
    """An agent's backend and its session, over several turns. A subclass names the backend, and perhaps the type of answers."""

    made: type[Any]
    answer_type: AnswerType[Any] | None = None

    def __init__(self, cls: type[Agent[Any]] = Plain, **options: Any) -> None:
        self.agent = cls()
        self.options = {"model": "test-model", **options}
        self.backend: Backend = self.made(self.agent, self.options)
        self.session: Any = None
        self.number = 0

    async def say(self, prompt: str, *attachments: Attachment) -> list[Event]:
        if self.session is None:
            self.session = await self.backend.start_session()
        self.number += 1
        self.steps = UnjournaledSteps(key=f"t{self.number}")
        turn = Turn("a", str(self.number), self.number, attachments=attachments, steps=self.steps, answer_type=self.answer_type)
        stream = await self.backend.prompt(self.session, prompt, turn)
        events = [event async for event in stream.events]
        self.session = msgspec.json.decode(msgspec.json.encode(stream.session))
        return events

    async def change(self, **options: Any) -> None:
        """Go on with other options."""
        await self.release()
        self.options.update(options)
        self.backend = self.made(self.agent, self.options)
        self.session = await self.backend.resume_session(self.session)

    async def release(self) -> None:
        release: Any = getattr(self.backend, "release", None)
        await release()

    async def __aenter__(self) -> Conversation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


def one_turn(
    chat: type[Conversation], cls: type[Agent[Any]], prompt: str, *attachments: Attachment, **options: Any
) -> list[Event]:
    """The events of one turn."""

    async def within() -> list[Event]:
        async with chat(cls, **options) as talk:
            return await talk.say(prompt, *attachments)

    return run(within(), 60)
