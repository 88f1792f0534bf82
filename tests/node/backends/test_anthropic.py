"""The anthropic backend against a real HTTP server that speaks the Messages API: requests, answers, the process, spans."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentmesh.backend import Turn
from agentmesh.errors import BackendError
from agentmesh.records import Inner
from agentmesh.steps import UnjournaledSteps
from agentmesh.trace.context import TraceContext
from agentmesh.wire import Attachment
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.anthropic.clients import CLIENTS, secrets
from agentmesh_node.telemetry.inner_calls import InnerCalls, inner_of_step
from agentmesh_node.telemetry.tracing import Here, Tracing
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal, Tool
from node.backends.anthropic_chat import KEY, Chat, serving, talk
from node.backends.conversation import Doubling, Plain
from support import run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with serving(monkeypatch) as server:
        yield server


# --- requests ---------------------------------------------------------------------------------------------------------
def test_a_request_is_what_the_options_say(fake: FakeMessages) -> None:
    talk(
        cls=Doubling,
        system="Be brief.",
        max_tokens=99,
        temperature=0.5,
        top_k=3,
        stop_sequences=["END"],
        thinking={"type": "adaptive"},
        tool_choice={"type": "auto"},
        metadata={"user_id": "u"},
        server_tools=[{"type": "web_search_20250305", "name": "web_search"}],
        cache="1h",
        betas=["some-beta"],
        compact_at=60_000,
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
    )
    (call,) = fake.calls
    body = call.body
    assert body.pop("messages") == [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    own, server = body.pop("tools")
    assert (own["name"], own["description"]) == ("double", "Double a number.")
    assert own["input_schema"]["properties"] == {"number": {"type": "integer", "description": "any"}}
    assert server["name"] == "web_search"
    assert body == {
        "model": "test-model", "max_tokens": 99, "stream": True, "system": "Be brief.", "temperature": 0.5, "top_k": 3,
        "stop_sequences": ["END"], "thinking": {"type": "adaptive"}, "tool_choice": {"type": "auto"},
        "metadata": {"user_id": "u"}, "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "context_management": {"edits": [
            {"type": "clear_tool_uses_20250919"},
            {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 60_000}},
        ]},
    }  # fmt: skip
    assert call.headers["anthropic-beta"] == "some-beta,context-management-2025-06-27,compact-2026-01-12"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert "traceparent" not in call.headers


def test_caching_is_on_unless_it_is_switched_off(fake: FakeMessages) -> None:
    talk()
    talk(cache=False)
    assert [call.body.get("cache_control") for call in fake.calls] == [{"type": "ephemeral"}, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modell": "x"}, "modell"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"base_url": "https://elsewhere"}, "base_url"),
        ({"api_key": "sk"}, "api_key"),
        ({"script": ["a"]}, "script"),
        ({"compact_at": 5}, "compact_at"),
        ({"context_management": {"edits": ["clear"]}}, "cannot be used"),
    ],
)
def test_options_that_are_unknown_or_misshapen_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        AnthropicBackend(Plain(), options)
    assert caught.value.details == {"reason": "bad_options", "retryable": False}


def test_attachments_go_ahead_of_the_prompt(fake: FakeMessages) -> None:
    def file(name: str, content: bytes) -> Attachment:
        return Attachment(filename=name, content=base64.b64encode(content).decode())

    events = talk("look", file("cat.png", b"\x89PNG"), file("a.pdf", b"%PDF"), file("notes.md", b"# Notes"))
    assert events[-1].kind == "result"
    image, pdf, notes, text = fake.calls[0].messages[0]["content"]
    assert image["source"] == {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}
    assert (pdf["type"], pdf["source"]["media_type"], pdf["title"]) == ("document", "application/pdf", "a.pdf")
    assert notes["source"] == {"type": "text", "media_type": "text/plain", "data": "# Notes"}
    assert text == {"type": "text", "text": "look"}

    (refused,) = talk("look", file("program.exe", b"\xff\xfe\x00"))
    assert refused.data["reason"] == "bad_attachment"
    assert len(fake.calls) == 1

    talk("", file("cat.png", b"\x89PNG"))
    assert [block["type"] for block in fake.calls[1].messages[0]["content"]] == ["image"], "the API refuses an empty text"


def test_a_conversation_is_sent_whole_with_thinking_and_tool_calls(fake: FakeMessages) -> None:
    fake.play([Answer(thinking="hm", text="let me", tools=(Tool("double", {"number": 2}, "c1"),)), "four", "you are welcome"])

    async def check() -> None:
        async with Chat(Doubling) as chat:
            await chat.say("two times two?")
            await chat.say("thanks")

    run(check())
    assert fake.calls[-1].messages == [
        {"role": "user", "content": [{"type": "text", "text": "two times two?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2lnbmF0dXJl"},
                {"type": "text", "text": "let me"},
                {"type": "tool_use", "id": "c1", "name": "double", "input": {"number": 2}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "4"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "four"}]},
        {"role": "user", "content": [{"type": "text", "text": "thanks"}]},
    ]


def test_a_failed_tool_is_an_error_result(fake: FakeMessages) -> None:
    fake.play([Answer(tools=(Tool("double", {"number": "two"}, "c1"),)), "sorry"])
    talk(cls=Doubling)
    (block,) = fake.calls[-1].results
    assert (block["tool_use_id"], block["is_error"]) == ("c1", True)
    assert "Expected `int`" in block["content"]


# --- answers ----------------------------------------------------------------------------------------------------------
def test_text_and_thinking_come_as_they_are_made_then_usage_and_result(fake: FakeMessages) -> None:
    fake.play([Answer(thinking="well", text="hello, world", chunk=7, cache_read=3, cache_write=2)])
    events = talk()
    assert [(e.kind, e.data.get("text")) for e in events] == [
        ("thinking", "well"), ("text", "hello, "), ("text", "world"), ("usage", None), ("result", "hello, world"),
    ]  # fmt: skip
    assert events[-2].data == {
        "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_write_input_tokens": 2,
        "model": "test-model",
    }  # fmt: skip
    assert events[-1].data == {"text": "hello, world", "stop_reason": "end_turn", "model": "test-model"}


def test_an_answer_is_streamed_not_gathered(fake: FakeMessages) -> None:
    """The first delta is read while the server still holds the rest back."""
    read = threading.Event()

    def script(call: Call) -> Item:
        return Answer(text="first second", chunk=6, delay_s=0.0 if read.is_set() else 0.2)

    fake.play(script)

    async def check() -> None:
        async with Chat() as chat:
            session = await chat.backend.start_session()
            stream = await chat.backend.prompt(session, "go", Turn("a", "1", 1))
            kinds = []
            async for event in stream.events:
                kinds.append(event.kind)
                if event.data.get("text") == "first ":
                    read.set()
            assert kinds == ["text", "text", "usage", "result"]

    run(check())


@pytest.mark.parametrize(
    ("answer", "reason", "keeps"),
    [
        (Answer(stop_reason="refusal", stop_details={"type": "refusal", "category": "bio"}), "refused", False),
        (Answer(text="x", stop_reason="model_context_window_exceeded"), "too_long", False),
        (Answer(tools=(Tool("double", {"number": 1}),), stop_reason="max_tokens"), "max_tokens", True),
    ],
)
def test_a_stop_that_is_no_answer_is_an_error(fake: FakeMessages, answer: Answer, reason: str, keeps: bool) -> None:
    fake.play([Answer(tools=(Tool("double", {"number": 1}),)), answer])

    async def check() -> None:
        async with Chat(Doubling) as chat:
            last = (await chat.say("go"))[-1]
            assert (last.kind, last.data["reason"], last.data["retryable"]) == ("error", reason, False)
            assert len(chat.session["messages"]) == (3 if keeps else 0)

    run(check())
    assert len(fake.calls) == 2, "it is not tried again"


def test_text_that_was_cut_off_is_a_result_that_says_so(fake: FakeMessages) -> None:
    fake.play([Answer(text="and then", stop_reason="max_tokens")])
    assert talk()[-1].data == {"text": "and then", "stop_reason": "max_tokens", "model": "test-model"}


def test_a_pause_of_the_api_is_not_the_end_of_the_turn(fake: FakeMessages) -> None:
    fake.play([Answer(text="searching... ", stop_reason="pause_turn"), "found"])
    assert talk()[-1].data["text"] == "searching... found"
    assert [m["role"] for m in fake.calls[1].messages] == ["user", "assistant"]


@pytest.mark.parametrize("blank", [Answer(), Answer(text="\n\n")])
def test_an_answer_of_nothing_is_not_sent_back(fake: FakeMessages, blank: Answer) -> None:
    """The API refuses messages without content, and texts of white space alone."""
    fake.play([Answer(text="\n\n", tools=(Tool("double", {"number": 2}, "c1"),)), blank, "here"])

    async def check() -> None:
        async with Chat(Doubling) as chat:
            said = await chat.say("two times two?")
            assert (said[-1].kind, said[-1].data["text"]) == ("result", "")
            assert (await chat.say("are you there?"))[-1].data["text"] == "here"

    run(check())
    assert [(m["role"], [b["type"] for b in m["content"]]) for m in fake.calls[-1].messages] == [
        ("user", ["text"]),
        ("assistant", ["tool_use"]),
        ("user", ["tool_result"]),
        ("user", ["text"]),
    ]


def test_a_summary_by_the_api_replaces_the_history(fake: FakeMessages) -> None:
    summary = {"type": "compaction", "content": "they greeted", "encrypted_content": "e30="}
    fake.play(["hello", Answer(blocks=(summary,), text="go on"), "done"])

    async def check() -> None:
        async with Chat(compact_at=50_000) as chat:
            for prompt in ("one", "two", "three"):
                assert (await chat.say(prompt))[-1].kind == "result"

    run(check())
    assert fake.calls[-1].messages == [
        {"role": "assistant", "content": [summary, {"type": "text", "text": "go on"}]},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]


def test_the_key_and_the_headers_that_the_environment_adds_are_secrets(fake: FakeMessages) -> None:
    added = {"ANTHROPIC_CUSTOM_HEADERS": "x-gateway: gateway-secret-1\nx-team: a"}
    assert secrets(CLIENTS.make(), added) == (KEY, "gateway-secret-1")


# --- the process ------------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_the_sdk_is_imported_by_the_first_prompt_and_not_on_the_loop() -> None:
    """Two seconds of import must not freeze a node's loop: it ticks all the while."""
    program = """
import asyncio, sys
from agentmesh.agent import Agent
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.anthropic.clients import CLIENTS
from agentmesh_node.backends.api.clients import Lease
from agentmesh_node.telemetry.inner_calls import InnerCalls, inner_of_step
from agentmesh_node.telemetry.tracing import Here, Tracing
assert "anthropic" not in sys.modules
backend = AnthropicBackend(Agent(), {})

async def main():
    session = await backend.resume_session(await backend.start_session())
    assert "anthropic" not in sys.modules
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    lease = Lease(CLIENTS)
    await lease.client()
    ticking.cancel()
    await lease.give_back()
    assert "anthropic" in sys.modules
    return ticks

print(asyncio.run(main()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env={"ANTHROPIC_API_KEY": KEY}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_cancelling_a_turn_ends_its_request(fake: FakeMessages) -> None:
    fake.play([Answer(text="well, " * 3000, delay_s=0.05)])

    async def check() -> None:
        async with Chat() as chat:
            session = await chat.backend.start_session()
            stream = await chat.backend.prompt(session, "go", Turn("a", "1", 1))
            began = asyncio.Event()

            async def read() -> None:
                async with aclosing(stream.events) as events:  # type: ignore[type-var]
                    async for _ in events:
                        began.set()

            reader = asyncio.ensure_future(read())
            await began.wait()
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            fake.play(["again"])
            assert (await chat.say("hello"))[-1].data["text"] == "again"

    run(check())


# --- telemetry --------------------------------------------------------------------------------------------
def test_model_calls_and_tools_are_told_by_the_mesh_and_not_by_the_sdk(
    fake: FakeMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda scope, *_, **__: provider.get_tracer(scope))
    fake.play([Answer(tools=(Tool("double", {"number": 2}, "c1"),), cache_read=3, cache_write=2), Refusal(status=400)])
    context = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    calls = InnerCalls(context, lambda: 1.0)
    entered = Tracing().enter(context, {}, Here("a", "Doubling", calls))
    steps: list[Inner | None] = []

    async def noting(self: UnjournaledSteps, step: Any) -> None:
        steps.append(inner_of_step())

    monkeypatch.setattr(UnjournaledSteps, "take", noting)
    talk(cls=Doubling)
    Tracing().leave(entered)
    assert exporter.get_finished_spans() == (), "the SDK's own tracing is off"
    first, ran = (inner for inner in steps if inner is not None)
    (failed,) = calls.without_step
    assert (first.op, first.name, first.attributes["gen_ai.provider.name"]) == ("chat", "test-model", "anthropic")
    assert (first.attributes["gen_ai.usage.input_tokens"], first.attributes["gen_ai.usage.output_tokens"]) == (15, 5)
    assert (ran.op, ran.name, ran.attributes["gen_ai.tool.call.id"]) == ("execute_tool", "double", "c1")
    assert (failed.op, failed.error) == ("chat", "bad_request")
