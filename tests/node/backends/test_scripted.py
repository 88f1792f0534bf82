"""The scripted backend: what a script may be, and how its place is kept."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from agentmesh import Agent, Event
from agentmesh.backend import Backend, Response, Stream, Turn
from agentmesh.errors import BackendError
from agentmesh_node.backends.scripted import Delay, Fail, Raises, ScriptedBackend

TURN = Turn(agent="coder", ref="1", number=1)


def backend(script: Any = None, /, **options: Any) -> ScriptedBackend:
    """A backend of an agent whose class has `script`."""
    cls = type("Coder", (Agent,), {} if script is None else {"script": script})
    made: Backend = ScriptedBackend(cls(), options)  # the annotation has mypy check the contract
    assert isinstance(made, ScriptedBackend)
    return made


async def played(stream: Stream) -> list[Event]:
    return [event async for event in stream.events]


async def answers(made: ScriptedBackend, *prompts: str) -> list[str]:
    """The answers to `prompts`, each with the session of the turn before it; an immediate error as `!reason`."""
    session, texts = await made.start_session(), []
    for prompt in prompts:
        try:
            stream = await made.prompt(session, prompt, TURN)
        except BackendError as error:
            texts.append(f"!{error.details['reason']}")
            continue
        events = await played(stream)
        texts.append(Response.of(events, 0, None).text)
        session = made.update_session(stream.session, events[-1].data)
    return texts


def run_answers(made: ScriptedBackend, *prompts: str) -> list[str]:
    return asyncio.run(asyncio.wait_for(answers(made, *prompts), 120))


def test_without_a_script_it_says_what_it_hears() -> None:
    assert run_answers(backend(), "one", "two") == ["one", "two"]


@pytest.mark.case(108)
def test_a_list_is_used_in_order() -> None:
    script = ["first", [Event.text("sec"), Event.text("ond"), Event.result()], Fail("busy"), "last"]
    assert run_answers(backend(script), "a", "b", "c", "d") == ["first", "second", "!busy", "last"]


@pytest.mark.case(108)
def test_a_function_of_the_prompt_plain_async_or_a_method() -> None:
    async def later(prompt: str) -> str:
        await asyncio.sleep(0)
        return prompt[::-1]

    def of_the_agent(self: Agent[Any], prompt: str) -> str:
        return f"{type(self).__name__} heard {prompt}"

    assert run_answers(backend(lambda prompt: prompt.upper()), "a", "b") == ["A", "B"]
    assert run_answers(backend(later), "abc") == ["cba"]
    assert run_answers(backend(of_the_agent), "x") == ["Coder heard x"]


def test_an_async_generator_of_prompt_and_turn_yields_its_steps() -> None:
    ended: list[str] = []

    async def script(self: Agent[Any], prompt: str, turn: Turn) -> Any:
        try:
            for number in range(len(turn.steps.taken), 2):
                await turn.steps.take(number)
                yield Event.text(f"{prompt}{number}")
            yield {"kind": "result", "data": {"text": f"{type(self).__name__} {turn.agent} {turn.steps.taken}"}}
            yield Event.text("behind the end")
        finally:
            ended.append(prompt)

    async def main() -> None:
        made = backend(script)
        turn = Turn(agent="coder", ref="1", number=1)
        stream = await made.prompt(await made.start_session(), "p", turn)
        events = []
        async for event in stream.events:
            events.append(event)
            if event.terminal:
                break
        assert [event.data["text"] for event in events] == ["p0", "p1", "Coder coder (0, 1)"]
        await stream.events.aclose()  # type: ignore[attr-defined]
        assert ended == ["p"], "what the script has open is closed with the stream"

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.case(108)
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Fail("overloaded"), "overloaded"),
        (ValueError("no such model"), "no such model"),
        (ValueError, "ValueError"),
        (BackendError("later", details={"reason": "rate_limit"}), "rate_limit"),
        ({"kind": "fail", "data": {"reason": "quota", "retry_after_s": 3}}, "quota"),
        (42, "bad_script"),
        ([42], "bad_script"),
        ([{"kind": "song", "data": {}}], "bad_script"),
    ],
)
def test_an_immediate_error_bears_its_reason(item: Any, reason: str) -> None:
    assert run_answers(backend([item, "after"]), "a", "b") == [f"!{reason}", "after"]


def test_a_function_that_raises_is_an_immediate_error() -> None:
    def broken(prompt: str) -> str:
        raise KeyError(prompt)

    with pytest.raises(BackendError) as caught:
        asyncio.run(backend(broken).prompt({}, "x", TURN))
    assert caught.value.details == {"reason": "'x'"}
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.case(108)
def test_a_stream_that_raises_gives_what_came_before() -> None:
    async def scenario() -> None:
        plain = [{"kind": "text", "data": {"text": "so far"}}, {"kind": "raise", "data": {"message": "boom"}}]
        for script in ([Raises(OSError("boom"), Event.text("so far"))], [[Event.text("so far"), OSError("boom")]], [plain]):
            stream = await backend(script).prompt({"next": 0, "prompts": []}, "go", TURN)
            assert await anext(stream.events) == Event.text("so far")
            with pytest.raises((OSError, RuntimeError), match="boom"):
                await anext(stream.events)

    asyncio.run(scenario())


@pytest.mark.case(109)
def test_running_out_is_no_script_and_history_and_rest_can_be_seen() -> None:
    made = backend(["one", "two"])
    assert made.remaining() == 2
    assert run_answers(made, "a") == ["one"]
    assert made.remaining() == 1
    made = backend(["one"])
    assert run_answers(made, "a", "b", "c") == ["one", "!no_script", "!no_script"]
    assert made.remaining() == 0
    assert list(made.prompts) == ["a", "b", "c"]
    assert backend(str.upper).remaining() is None


@pytest.mark.case(110)
def test_ending_a_session_twice_is_harmless() -> None:
    async def scenario() -> None:
        made = backend(["one"])
        session = await made.start_session()
        await made.terminate_session(session)
        await made.terminate_session(session)

    asyncio.run(scenario())


def test_another_process_goes_on_at_the_session_s_place() -> None:
    async def scenario() -> None:
        script = ["one", "two", "three"]
        first = backend(script)
        stream = await first.prompt(await first.start_session(), "a", TURN)
        travelled = msgspec.json.decode(msgspec.json.encode(stream.session))
        second = backend(script)
        session = await second.resume_session(travelled)
        assert list(second.prompts) == ["a"]
        assert second.remaining() == 2
        events = await played(await second.prompt(session, "b", TURN))
        assert events[-1] == Event.result("two")

    asyncio.run(scenario())


@pytest.mark.case(90)
@pytest.mark.case(91)
def test_a_session_id_is_kept_until_another_comes() -> None:
    made = backend()
    session = asyncio.run(made.start_session())
    session = made.update_session(session, {"text": "x", "session_id": "s-1"})
    assert session["session_id"] == "s-1"
    assert made.update_session(session, {"text": "y"}) is session
    assert made.update_session(session, {"session_id": "s-2"})["session_id"] == "s-2"


@pytest.mark.case(93)
@pytest.mark.case(94)
def test_a_response_takes_the_result_s_text_else_the_deltas_and_the_last_usage() -> None:
    deltas = [Event.text("a"), Event.usage(input_tokens=1), Event.text("b"), Event.usage(input_tokens=2)]
    joined = Response.of([*deltas, Event.result()], 5, None)
    assert (joined.text, joined.usage) == ("ab", {"input_tokens": 2})
    assert Response.of([*deltas, Event.result("c")], 5, None).text == "c"
    assert Response.of([Event.result("c")], 5, None).usage is None


def test_plain_data_comes_from_the_options_before_the_class() -> None:
    made = backend(["of the class"], script=["of the spec", {"kind": "result", "data": {"text": "lone"}}])
    assert run_answers(made, "a", "b") == ["of the spec", "lone"]


def test_delays_are_waited_and_can_be_cancelled() -> None:
    async def scenario() -> None:
        made = backend(
            [[Delay(0.02), Event.result("x")], [{"kind": "delay", "data": {"s": 60}}, Event.result("never")]], delay_s=0.02
        )
        session = await made.start_session()
        begun = time.monotonic()
        assert await played(await made.prompt(session, "a", TURN)) == [Event.result("x")]
        assert time.monotonic() - begun >= 0.04
        stream = await made.prompt(session, "b", TURN)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(played(stream), 0.05)

    asyncio.run(scenario())


@pytest.mark.parametrize(("script", "options"), [(7, {}), ("text", {}), (None, {"delay_s": "1"}), (None, {"delay_s": -1})])
def test_what_is_no_script_cannot_start(script: Any, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        made = backend(script, **options)
        for call in (made.start_session(), made.resume_session({"next": 0, "prompts": []})):
            with pytest.raises(BackendError, match="scripted backend") as caught:
                await call
            assert caught.value.details["reason"] == "bad_script"

    asyncio.run(scenario())
