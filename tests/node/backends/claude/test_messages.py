"""What Claude Code says in a run, from recorded ones, as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.budget import Prices, prices_from
from agentmesh_node.tools.turn_bounds import Driven, TurnBounds
from fuzz.recordings import recordings
from support import run

pytest.importorskip("claude_agent_sdk")

from claude_agent_sdk._internal.message_parser import parse_message

from agentmesh_node.backends.claude.messages import MessageReader, broken, heard
from agentmesh_node.backends.claude.process import parsed


class Ended:
    errors = ""

    def is_ready(self) -> bool:
        return False


def events(name: str, change: Callable[[bytes], bytes] = bytes, **options: Any) -> list[Event]:
    """The events of a recorded run."""
    (recording,) = [found for found in recordings("claude") if found.name == f"claude-{name}"]

    async def conversation() -> AsyncGenerator[Any]:
        for line in recording.frames:
            message = parsed(change(line))
            found = parse_message(message) if message is not None else None
            if found is not None:
                yield found

    async def within() -> list[Event]:
        driven = Driven(TurnBounds(None, 100, 100_000))
        return [event async for event in heard(conversation(), MessageReader("s", {}, **options), Ended(), driven)]

    return run(within())


def text_after_restarts(found: list[Event]) -> str:
    """As a live reader keeps it: a restart makes void what came since the last usage or result of a tool."""
    kept: list[str] = []
    whole = 0
    for event in found:
        if event.kind in ("usage", "tool_result"):
            whole = len(kept)
        elif event.kind == "text":
            if event.data.get("restart"):
                del kept[whole:]
            kept.append(event.data["text"])
    return "".join(kept)


@pytest.mark.case(407)
def test_an_answer_that_broke_off_is_void() -> None:
    found = events("retry")
    retries = [event.data["retry"] for event in found if "retry" in event.data]
    assert [(retry["reason"], retry["attempt"]) for retry in retries] == [("overloaded", 2)]
    assert text_after_restarts(found) == found[-1].data["text"]


@pytest.mark.case(405)
def test_a_prompt_that_is_too_long_is_called_so() -> None:
    last = events("toolong")[-1]
    assert (last.kind, last.data["reason"], last.data["retryable"]) == ("error", "too_long", False)


@pytest.mark.case(402)
def test_a_cut_answer_is_called_so_with_the_text_that_came_and_nothing_else() -> None:
    found = events("textmax")
    assert found[-1].data["reason"] == "max_tokens"
    assert found[-1].data["text"] == text_after_restarts(found) == "half of it" + 3 * "more of it"


@pytest.mark.case(406)
def test_the_wait_is_the_one_that_was_asked_for() -> None:
    last = events("limited")[-1]
    assert (last.data["reason"], last.data["retry_after_s"], last.data["status"]) == ("rate_limited", 5.0, 429)
    assert "{" not in last.data["message"]


@pytest.mark.case(409)
def test_an_operators_price_goes_before_claude_codes_own() -> None:
    def usd(prices: Prices) -> float:
        return float(next(event.data["cost_usd"] for event in reversed(events("text", prices=prices)) if event.kind == "usage"))

    assert usd(Prices()) > 0
    assert usd(prices_from({"claude-sonnet-5": {"input": 0, "output": 0}})) == 0
    assert usd(prices_from({"claude-sonnet-5": {"input": 1e6, "output": 0}})) == 10
    assert usd(prices_from({"other": {"input": 1e6, "output": 0}})) == usd(Prices())


@pytest.mark.case(409)
def test_a_turn_that_goes_on_beyond_its_bound_by_the_operators_price_ends() -> None:
    prices = prices_from({"claude-sonnet-5": {"input": 1e6, "output": 0}})
    last = events("tools", prices=prices, most_usd=5.0)[-1]
    assert (last.data["reason"], last.data["code"]) == ("budget_exceeded", "budget_exceeded")
    assert events("tools", prices=prices, most_usd=50.0)[-1].kind == "result"


@pytest.mark.case(403)
@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"model":"claude-sonnet-5"', b'"model":[]'),
        lambda line: line.replace(b'"text":"hello th"', b'"text":null'),
        lambda line: line.replace(b'"content":[', b'"content":[5,'),
        lambda line: line.replace(b'"usage":{', b'"usage":[1],"x":{'),
        lambda line: line.replace(b'"event":{', b'"event":7,"x":{'),
        lambda line: b"{not json\n",
    ],
)
def test_what_cannot_be_understood_is_bad_output(change: Callable[[bytes], bytes]) -> None:
    last = events("text", change)[-1]
    assert (last.kind, last.data["reason"], last.data["retryable"]) == ("error", "bad_output", True)


@pytest.mark.case(403)
def test_each_exception_of_the_sdk_has_a_reason() -> None:
    import claude_agent_sdk

    found = {}
    for name, cls in vars(claude_agent_sdk).items():
        if isinstance(cls, type) and issubclass(cls, Exception):
            error = cls.__new__(cls)
            Exception.__init__(error, "x")
            vars(error).update(
                {"exit_code": 1, "result": None, "subtype": None, "api_error_status": None, "terminal_reason": None}
            )
            event = broken(error, "")
            assert isinstance(event.data["retryable"], bool)
            found[name] = event.data["reason"]
    assert found["CLINotFoundError"] == "not_installed"
    assert found["ProcessError"] == found["CLIConnectionError"] == "crashed"
    assert found["CLIJSONDecodeError"] == found["ClaudeSDKError"] == "bad_output"


def test_a_run_without_a_result_is_bad_output() -> None:
    assert events("text", lambda line: b"\n" if b'"type":"result"' in line else line)[-1].data["reason"] == "bad_output"
