"""A client whose process has a tracer: a span for each request and one for its message, above what the agent tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from agentmesh import semconv
from agentmesh.errors import MeshError, NotFound
from agentmesh_client.cli.main import go_on_in_trace
from agentmesh_client.client_spans import PROVIDER
from rules.scene import Scene, do, play

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECRET = "what nobody may read"


class Traced:
    """The spans that this process has made."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans() if span.name == name]
        return span


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    traced = Traced()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: traced.provider)
    yield traced
    traced.provider.shutdown()


def sent(scene: Scene, number: int = -1) -> dict[str, str]:
    """The headers of a prompt that was sent."""
    return dict(scene.history("mail", scene.world.subjects.inbox("a"))[number].headers)


@pytest.mark.case(558)
def test_an_ask_is_a_call_and_a_message_and_the_message_names_its_own_span(tracer: Traced) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        with tracer.provider.get_tracer("mine").start_as_current_span("of the user"):
            await scene.mesh.ask("a", SECRET)
            assert trace.get_current_span().get_span_context() is not None
        user, call, send = tracer.named("of the user"), tracer.named("invoke_agent a"), tracer.named("send mesh.inbox.{agent}")
        assert (call.parent, send.parent) == (user.context, call.context)
        assert (call.kind, send.kind) == (SpanKind.CLIENT, SpanKind.PRODUCER)
        assert sent(scene)["traceparent"].split("-")[1:3] == [f"{send.context.trace_id:032x}", f"{send.context.span_id:016x}"]
        assert (call.attributes or {})[semconv.PROVIDER] == PROVIDER
        assert (send.attributes or {})[semconv.DESTINATION] == scene.world.subjects.inbox("a")
        assert all(SECRET not in span.to_json() for span in tracer.spans())

    play(story)


@pytest.mark.case(558)
def test_a_call_that_ends_with_an_error_bears_its_code_alone(tracer: Traced) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        with pytest.raises(MeshError):
            await scene.mesh.ask("a", do(["raise", {"message": SECRET}]))
        assert (tracer.named("invoke_agent a").attributes or {})[semconv.ERROR_TYPE] == "failed"
        with pytest.raises(NotFound):
            await scene.mesh.ask("nobody", SECRET)
        assert (tracer.named("invoke_agent nobody").attributes or {})[semconv.ERROR_TYPE] == "not_found"
        assert len([span for span in tracer.spans() if span.name.startswith("send")]) == 1, "nothing was sent to nobody"
        assert all(SECRET not in span.to_json() for span in tracer.spans())

    play(story)


def test_mail_and_watched_turns_are_spans_too(tracer: Traced) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.tell("a", "hello")
        await scene.mesh.notify("a", {"b": 1})
        async with scene.mesh.stream("a", "hello") as turn:
            before = trace.get_current_span()
            async for _ in turn:
                pass
            assert before is trace.INVALID_SPAN, "the block has its caller's context"
        names = sorted(span.name for span in tracer.spans())
        assert names == ["invoke_agent a", "send mesh.inbox.{agent}", "send mesh.inbox.{agent}", "send mesh.notify.{agent}"]

    play(story)


@pytest.mark.case(558)
def test_without_a_tracer_no_context_is_made_up_and_one_that_is_there_goes_on() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "hello")
        assert "traceparent" not in sent(scene)
        given = {"traceparent": GIVEN}
        token = otel_context.attach(propagate.extract(given))
        await scene.mesh.ask("a", "hello")
        otel_context.detach(token)
        assert sent(scene)["traceparent"] == given["traceparent"]

    play(story)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"TRACEPARENT": GIVEN, "TRACESTATE": "mesh=3-1700000000"}, "mesh=3-1700000000"),
        ({"TRACEPARENT": "nonsense"}, None),
    ],
)
def test_a_command_goes_on_in_the_trace_of_the_process_that_has_started_it(environ: dict[str, str], found: str | None) -> None:
    async def main() -> dict[str, str]:
        go_on_in_trace(environ)
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    carrier = asyncio.run(main())
    assert carrier == ({} if found is None else {"traceparent": environ["TRACEPARENT"], "tracestate": found})
