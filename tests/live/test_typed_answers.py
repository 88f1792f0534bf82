"""Typed answers end to end: what callers, agents and clients of other languages see of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh import Agent, Answer, Defer, Idle, Init, Response
from agentmesh.edge.registry import decode_spec
from agentmesh.errors import BadAnswer, BadRequest, MeshError
from agentmesh.registry_values import Spec
from agentmesh.structured import answer_of
from agentmesh.subjects import Subjects, spec_key
from live.mesh import LocalMesh, local_mesh
from support import Server, run

PAGE = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()


class Plan(msgspec.Struct):
    """A plan."""

    steps: list[str]
    days: int = 1


@dataclass
class Shape:
    """What a caller makes of a plan."""

    steps: list[str]


class Other(msgspec.Struct):
    price: float


class Planner(Agent[list[str]]):
    """Answers with what it is told, once its model was told so often that it does not fit."""

    answer_type = Plan

    @staticmethod
    def script(prompt: str) -> Any:
        if prompt.startswith("Your last answer"):
            return '```json\n{"days": 2, "steps": ["again"]}\n```'
        return prompt

    async def init_agent(self, options: Any) -> Init[list[str]]:
        return Init([])

    async def handle_response(self, ref: str, response: Response[Plan], state: list[str]) -> Any:
        assert isinstance(response.answer, Plan)
        state.append(f"{response.answer.days}: {', '.join(response.answer.steps)}")
        return Defer(state) if response.answer.steps == ["later"] else Idle(state)

    async def handle_error(self, ref: str, error: MeshError, state: list[str]) -> Idle[list[str]]:
        state.append(error.code)
        return Idle(state)

    async def handle_event(self, event: Any, state: list[str]) -> Idle[list[str]]:
        match event:
            case {"reply": ref, "text": text}:
                self.reply(ref, text)
            case {"reply": ref}:
                self.reply(ref, answer=Plan(["done"], 3))
        return Idle(state)


class Stubborn(Planner):
    """Never answers as it should."""

    @staticmethod
    def script(prompt: str) -> Any:
        return "I would rather not."


class Boss(Agent[list[str]]):
    """Asks the planner, and reads its answer."""

    async def init_agent(self, options: Any) -> Init[list[str]]:
        return Init([])

    async def handle_response(self, ref: str, response: Response, state: list[str]) -> Any:
        self.tell("planner", response.text, tag="plan")
        return Idle(state)

    async def handle_event(self, event: Any, state: list[str]) -> Any:
        assert isinstance(event, Answer)
        plan = answer_of(event.outcome, Plan)
        return Idle([*state, f"{plan.days} days"])


KINDS: dict[str, type[Agent[Any]]] = {kind.__name__: kind for kind in (Planner, Stubborn, Boss)}
GOOD = '{"steps": ["a", "b"], "more": null}'


async def state_of(mesh: LocalMesh, agent: str) -> Any:
    return (await mesh.client.status(agent, content=True)).agent_state


@pytest.mark.case(761)
@pytest.mark.case(767)
def test_an_answer_arrives_typed_at_the_agent_and_at_its_caller(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=KINDS) as mesh:
            await mesh.client.start_agent("planner", kind="Planner")
            plain = await mesh.client.ask("planner", GOOD)
            assert (plain.text, plain.answer) == ('{"steps":["a","b"],"days":1}', None)
            assert (await mesh.client.ask("planner", GOOD, answer_type=Plan)).answer == Plan(["a", "b"])
            assert (await mesh.client.ask("planner", GOOD, answer_type=Shape)).answer == Shape(["a", "b"])
            with pytest.raises(BadAnswer, match=r"no Other: .*price") as raised:
                await mesh.client.ask("planner", GOOD, answer_type=Other)
            polled = await mesh.client.poll("planner", raised.value.details["ref"])
            assert polled.outcome is not None and polled.outcome.ok, "the answer stands"
            with pytest.raises(BadRequest, match="answer_type: int cannot be"):
                await mesh.client.ask("planner", GOOD, answer_type=int)
            assert await state_of(mesh, "planner") == ["1: a, b"] * 4

    run(main())


@pytest.mark.case(763)
def test_a_misfit_is_told_and_then_an_error_that_all_see(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=KINDS) as mesh:
            await mesh.client.start_agent("planner", kind="Planner")
            assert (await mesh.client.ask("planner", "no plan", answer_type=Plan)).answer == Plan(["again"], 2)
            async with mesh.client.stream("planner", "no plan") as turn:
                assert (await turn.response()).text == '{"steps":["again"],"days":2}'
                assert turn.text == '```json\n{"days": 2, "steps": ["again"]}\n```', "the text of the misfit is void"
            await mesh.client.start_agent("mule", kind="Stubborn")
            outcome = await mesh.client.ask_outcome("mule", "go")
            assert outcome.error is not None
            assert (outcome.error.code, outcome.error.details["text"]) == ("bad_answer", "I would rather not.")
            assert await state_of(mesh, "mule") == ["bad_answer"]
            with pytest.raises(BadAnswer, match="the answer is no Plan"):
                await mesh.client.ask("mule", "go")
            kinds = [record.kind for record in await mesh.records("planner")]
            assert kinds.count("step") == 2, "one before each second prompt"

    run(main())


@pytest.mark.case(766)
def test_a_reply_to_a_deferred_request_is_of_the_type_too(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=KINDS) as mesh:
            await mesh.client.start_agent("planner", kind="Planner")
            asked = [asyncio.create_task(mesh.client.ask("planner", '{"steps": ["later"]}', answer_type=Plan)) for _ in range(3)]

            async def refs() -> list[str] | None:
                opened = (await mesh.client.status("planner")).open
                return [request.ref for request in opened] if len(opened) == 3 else None

            while (found := await refs()) is None:
                await mesh.told()
            first, second, third = found
            with pytest.raises(BadRequest, match="this text does not fit"):
                await mesh.client.reply("planner", first, "never mind")
            await mesh.client.notify("planner", {"reply": second, "text": "never mind"})
            await mesh.client.notify("planner", {"reply": second, "text": '{"steps": []}'})
            await mesh.client.notify("planner", {"reply": third})
            await mesh.client.reply("planner", first, '{"steps": ["x"]}')
            answers = [(await task).answer for task in asked]
            assert sorted(answers, key=lambda plan: plan.steps) == [Plan([]), Plan(["done"], 3), Plan(["x"])]

    run(main())


@pytest.mark.case(767)
def test_an_agent_reads_anothers_answer_as_a_value(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=KINDS) as mesh:
            for name in ("planner", "boss"):
                await mesh.client.start_agent(name, kind=name.capitalize())
            await mesh.client.ask("boss", '{"steps": [], "days": 9}')
            await mesh.saw("event_received", "boss")

            async def told() -> bool:
                return bool(await state_of(mesh, "boss") == ["9 days"])

            while not await told():
                await mesh.told()

    run(main())


@pytest.mark.case(761)
def test_the_page_shows_an_agent_that_runs(server: Server, subjects: Subjects) -> None:
    code = PAGE.partition("## Typed answers")[2].partition("```python\n")[2].partition("```")[0]
    page: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "agent.md", "exec", dont_inherit=True), page)
    page["Planner"].backend = "scripted"

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Planner": page["Planner"]}) as mesh:
            await mesh.client.start_agent("planner", kind="Planner")
            answer = await mesh.client.ask("planner", '{"steps": [{"what": "read", "minutes": 5}]}', answer_type=page["Plan"])
            assert answer.answer.steps == [page["Step"]("read", 5)]
            assert await state_of(mesh, "planner") == 5

    run(main())


@pytest.mark.case(765)
def test_the_spec_has_the_schema_and_an_older_build_does_not_lose_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=KINDS) as mesh:
            for name in ("planner", "boss"):
                await mesh.client.start_agent(name, kind=name.capitalize())
            key = spec_key("planner")

            async def spec() -> Spec:
                entry = await mesh.registry.get(key)
                assert entry is not None
                return decode_spec(entry)

            found = {entry.name: entry.spec for entry in await mesh.client.list_agents()}
            schema = found["planner"].answer_schema
            assert schema is not None and schema["required"] == ["steps"] and schema["description"] == "A plan."
            assert found["boss"].answer_schema is None
            # A build that does not know the field may write the spec anew without it: the owner puts it back.
            entry = await mesh.registry.get(key)
            assert entry is not None and entry.value is not None
            old = {name: value for name, value in json.loads(entry.value).items() if name != "answer_schema"}
            await mesh.registry.update(key, json.dumps(old).encode(), entry.revision)

            async def again() -> bool:
                return (await spec()).answer_schema == schema

            while not await again():
                await mesh.told()

    run(main())
