"""A turn pays by a `once` tool and ends without its answer: what it did is shown to the next one, and nobody is paid twice."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from agentmesh.agent import Agent, Idle, Init, Prompt
from agentmesh.backend import Event, Response
from agentmesh.errors import MeshError
from agentmesh.subjects import Subjects
from agentmesh.tools import Done, ToolCall, tool
from agentmesh.wire import Outcome
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal, Tool
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from support import Server, eventually, run

LONG_S = 100
BOUND_S = 4.0
"""Time for a turn that is to outlive it: the model is held back until it has."""
PEOPLE = ("ann", "bob", "cat")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    importlib.import_module("anthropic")  # two seconds, which no turn shall be charged
    with FakeMessages() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        yield server


class Till:
    """What was paid, by key, and a payment that does not come back."""

    paid: ClassVar[dict[str, str]] = {}
    fired: ClassVar[Counter[str]] = Counter()
    hangs: ClassVar[bool] = False
    """Whether the payment to cat does not come back, once; that to ann comes back when it has begun."""
    begun: ClassVar[asyncio.Event]


@pytest.fixture(autouse=True)
def _till() -> None:
    Till.paid, Till.fired, Till.hangs, Till.begun = {}, Counter(), False, asyncio.Event()


async def went_through(key: str) -> Done | None:
    return Done(f"receipt {key}") if key in Till.paid else None


@tool(effect="once", reconcile=went_through)
async def pay(to: str, call: ToolCall) -> str:
    """Pay."""
    Till.fired[call.key] += 1
    Till.paid[call.key] = to
    if to == "cat" and Till.hangs:
        Till.hangs = False
        Till.begun.set()
        await asyncio.Event().wait()
    elif Till.hangs:
        await Till.begun.wait()
    return f"paid {to}"


class Payer(Agent[dict[str, Any]]):
    """Its options say whether it tries a failed turn again, and on which event its own code breaks."""

    backend = "anthropic"
    tools: ClassVar[tuple[Any, ...]] = (pay,)
    max_attempts = 2

    async def init_agent(self, options: dict[str, Any]) -> Init[dict[str, Any]]:
        state = {"again": options.get("again", 0), "breaks": options.get("breaks"), "told": ""}
        return Init(state, backend={"model": "m", "attempts": 1})

    def handle_stream_event(self, event: Event, state: dict[str, Any]) -> dict[str, Any]:
        if event.kind == "text" and state["breaks"] == "stream" and event.data["text"].startswith("all"):
            raise RuntimeError("the stream")
        if event.kind == "tool_result" and state["breaks"] == "result" and Till.begun.is_set():
            Till.begun.clear()
            raise RuntimeError("the first result")
        return state

    async def handle_response(self, ref: str, response: Response, state: dict[str, Any]) -> Any:
        if state["breaks"] == "always" and response.text == "all paid":
            raise RuntimeError("my own code")
        return Idle(state)

    async def handle_error(self, ref: str, error: MeshError, state: dict[str, Any]) -> Any:
        if state["again"] > 0:
            return Prompt("try again", {**state, "again": state["again"] - 1})
        return Idle(state)


def calls_in(call: Call) -> dict[str, str]:
    """Who was paid, or nearly, as the messages of a request tell it: results by name, whole exchanges only."""
    names = {}
    results = {}
    for message in call.messages:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_use":
                names[block["id"]] = block["input"]["to"]
            elif block["type"] == "tool_result":
                results[names[block["tool_use_id"]]] = block["content"]
    return results


def paying(last: Item | Callable[[], Item] = "all paid") -> Callable[[Call], Item]:
    """A model that pays each of three, one after the other, and ends with `last`. A payment that may have been made it makes
    again. Other prompts than `pay` and `try again` are answered by what it knows."""

    def script(call: Call) -> Item:
        done = calls_in(call)
        if not call.prompt.startswith(("pay", "try again")):
            return json.dumps([done, call.prompt])
        told = {one for one in PEOPLE if f'pay({{"to":"{one}"}}): ok' in call.prompt}
        missing = [one for one in PEOPLE if one not in told and not done.get(one, "").startswith(("paid", "receipt"))]
        if missing:
            return Answer(tools=(Tool("pay", {"to": missing[0]}, f"c{call.number}"),))
        return last() if callable(last) else last

    return script


async def ask(mesh: LocalMesh, prompt: str) -> Outcome:
    return await mesh.client.ask_outcome("payer", prompt, timeout=PATIENCE_S)


async def known(mesh: LocalMesh, prompt: str = "what did you do?") -> tuple[dict[str, str], str]:
    """What the model knows of payments: from whole exchanges, and from its prompt."""
    outcome = await ask(mesh, prompt)
    assert outcome.ok, outcome.error
    results, text = json.loads(outcome.text or "")
    return results, text


ENDS = ("interrupt", "watchdog", "wall time", "stream", "always", "overloaded", "too_long", "bad_request", "refused")
REFUSALS: dict[str, Item] = {
    "overloaded": Refusal(status=529),
    "too_long": Refusal(status=400, message="prompt is too long: 300000 tokens > 200000 maximum"),
    "bad_request": Refusal(status=400),
    "refused": Answer(text="no", stop_reason="refusal"),
}


@pytest.mark.case(380)
@pytest.mark.case(381)
@pytest.mark.case(384)
@pytest.mark.parametrize("end", ENDS)
def test_the_next_turn_knows_what_was_done(server: Server, subjects: Subjects, fake: FakeMessages, end: str) -> None:
    """Three are paid; then the turn ends in another way than by its answer."""

    def last() -> Item:
        if end in ("interrupt", "watchdog", "wall time"):
            fake.closing.wait(LONG_S)
        return REFUSALS.get(end, "all paid")

    fake.play(paying(last))

    async def main() -> None:
        async with local_mesh(server, subjects, "n1", "n2", serves={"Payer": Payer}, snapshot_records=3) as mesh:
            budget = {"wall_s": BOUND_S} if end == "wall time" else None
            watchdog = BOUND_S if end == "watchdog" else None
            await mesh.client.start_agent("payer", kind="Payer", options={"breaks": end}, watchdog_s=watchdog, budget=budget)
            asked = asyncio.create_task(ask(mesh, "pay them"))
            if end == "interrupt":
                await eventually(lambda: len(fake.calls) == 4, PATIENCE_S, "the last model call")
                assert await mesh.client.interrupt("payer")
            outcome = await asked
            assert not outcome.ok
            assert outcome.tools == {"pay": {"ok": 3}}
            if end != "always":  # its turn has no record of its own
                (turn,) = await mesh.client.history("payer", content=True)
                assert turn.tools == {"pay": {"ok": 3}}
                assert turn.note is not None and all(f'"{one}"' in turn.note for one in PEOPLE)
            await mesh.nodes[(await mesh.client.status("payer")).node].drain()
            results, text = await known(mesh)
            if end in ("too_long", "bad_request", "refused"):
                assert results == {} and all(f'pay({{"to":"{one}"}}): ok: paid {one}' in text for one in PEOPLE)
                assert len(text.encode()) < 4096 + 100
            else:
                assert results == {one: f"paid {one}" for one in PEOPLE}
            for number in range(2):
                again, _ = await known(mesh, f"and now, {number}?")
                assert again == results, "the session has it"
            assert Counter(Till.paid.values()) == Counter(PEOPLE)

    run(main(), LONG_S)


@pytest.mark.case(381)
@pytest.mark.parametrize("reason", ["too_long", "bad_request", "refused"])
@pytest.mark.parametrize("hated", ["ann", "Note of the mesh", "pay them", "tool_result"])
def test_no_failure_makes_the_next_one_certain(
    *, server: Server, subjects: Subjects, fake: FakeMessages, reason: str, hated: str
) -> None:
    """The model refuses all messages in which a text stands, whichever form they have; five prompts behind are answered."""
    pays = paying(lambda: REFUSALS[reason])

    def script(call: Call) -> Item:
        if not call.prompt.startswith("pay") and hated in json.dumps(call.messages):
            return REFUSALS[reason]
        return pays(call)

    fake.play(script)

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Payer": Payer}) as mesh:
            await mesh.client.start_agent("payer", kind="Payer")
            outcome = await ask(mesh, "pay them")
            assert outcome.error is not None and outcome.error.details["reason"] == reason
            for number in range(5):
                assert (await ask(mesh, f"question {number}")).ok
            first, *_ = await mesh.client.history("payer", content=True)
            assert first.note is not None and '"ann"' in first.note, "the history has it still"

    run(main(), LONG_S)


@pytest.mark.case(381)
def test_exchanges_that_the_model_refuses_are_shown_by_their_note(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    """An interrupted turn's exchanges, of which the API refuses the form."""
    pays = paying(lambda: Answer(text="late", delay_s=30) if not fake.closing.wait(30) else "")

    def script(call: Call) -> Item:
        if not call.prompt.startswith("pay") and "tool_use" in json.dumps(call.messages):
            return Refusal(status=400)
        return pays(call)

    fake.play(script)

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Payer": Payer}) as mesh:
            await mesh.client.start_agent("payer", kind="Payer")
            asked = asyncio.create_task(ask(mesh, "pay them"))
            await eventually(lambda: len(fake.calls) == 4, PATIENCE_S, "the last model call")
            await mesh.client.interrupt("payer")
            await asked
            results, text = await known(mesh)
            assert results == {} and 'pay({"to":"cat"}): ok' in text

    run(main(), LONG_S)


@pytest.mark.case(382)
@pytest.mark.parametrize("end", ["watchdog", "wall time", "overloaded", "too_long", "stream"])
def test_another_try_of_a_request_pays_nobody_again(server: Server, subjects: Subjects, fake: FakeMessages, end: str) -> None:
    """All are paid, and the model's next answer does not come back, twice."""
    tries = iter([True, True])

    def last() -> Item:
        if next(tries, False):
            if end in ("watchdog", "wall time"):
                fake.closing.wait(LONG_S)
            return REFUSALS.get(end, "all paid")
        return "done"

    fake.play(paying(last))

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Payer": Payer}) as mesh:
            budget = {"wall_s": BOUND_S} if end == "wall time" else None
            watchdog = BOUND_S if end == "watchdog" else None
            options = {"breaks": end, "again": 4}
            await mesh.client.start_agent("payer", kind="Payer", options=options, watchdog_s=watchdog, budget=budget)
            await ask(mesh, "pay them")
            assert Counter(Till.paid.values()) == Counter(PEOPLE), "each has one key"
            assert set(Till.fired.values()) == {1}, "and each was paid once"

    run(main(), LONG_S)


def two_at_once(pays: Callable[[Call], Item]) -> Callable[[Call], Item]:
    """A model that begins with two payments, of which one does not come back."""

    def script(call: Call) -> Item:
        return (
            Answer(tools=(Tool("pay", {"to": "ann"}, "a"), Tool("pay", {"to": "cat"}, "b"))) if call.number == 0 else pays(call)
        )

    return script


@pytest.mark.case(382)
def test_another_try_goes_on_with_a_payment_that_was_in_flight(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(two_at_once(paying("done")))
    Till.hangs = True

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Payer": Payer}) as mesh:
            await mesh.client.start_agent("payer", kind="Payer", options={"breaks": "result", "again": 1})
            assert (await ask(mesh, "pay them")).text == "done"
            assert Counter(Till.paid.values()) == Counter(PEOPLE)
            assert set(Till.fired.values()) == {1}

    run(main(), LONG_S)


@pytest.mark.case(383)
def test_a_request_that_is_asked_anew_is_told_and_pays_under_keys_of_its_own(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play(two_at_once(paying("done")))
    Till.hangs = True

    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Payer": Payer}) as mesh:
            await mesh.client.start_agent("payer", kind="Payer", options={"breaks": "result"})
            first = await ask(mesh, "pay them")
            assert first.error is not None and first.error.code == "task_crashed"
            assert first.tools == {"pay": {"ok": 1, "interrupted": 1}}
            results, _ = await known(mesh)
            # The first one's result was told, and not committed yet. The tool knows what became of both.
            assert results["ann"].startswith(("paid", "receipt")) and results["cat"].startswith("receipt")
            second = await ask(mesh, "pay them")
            assert second.text == "done" and second.tools == {"pay": {"ok": 1}}
            assert Counter(Till.paid.values()) == Counter(PEOPLE)
            assert len({key.rpartition("/")[0] for key in Till.paid}) == 2

    run(main(), LONG_S)
