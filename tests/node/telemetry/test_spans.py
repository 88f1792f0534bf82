"""What a node tells of spans: each request one trace with the right parents, told by the records that stand, only by these."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import msgspec
import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from agentmesh import Agent, Idle, Init, agent_tool, semconv, tool
from agentmesh.backend import Event, Response, Turn
from agentmesh.tools import ToolSpec
from agentmesh.trace.context import is_sampled
from agentmesh.trace.spans import ToldSpan
from agentmesh_node.backends.scripted import Fail
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.open_spans import Additions
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.loop import ToolLoop
from agentmesh_node.tools.loop_steps import ModelAnswer
from live.agents import Log, noted
from rules import scene
from rules.scene import PATIENCE_S, Scene, do, open_gate, play, told

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SECRET = "which nobody may read"


class Sink:
    """Takes the spans that nodes export."""

    def __init__(self) -> None:
        self.additions = Additions(lambda: 1.0)
        self.spans: list[ToldSpan] = []
        self.added: dict[str, dict[str, Any]] = {}

    def tell(self, spans: tuple[ToldSpan, ...]) -> None:
        assert SECRET not in msgspec.json.encode(spans).decode()
        for span in spans:
            added = self.additions.take(span.id)
            if added is not None:
                self.added[span.id] = added.attributes
        self.spans += spans
        assert len({span.id for span in self.spans}) == len(self.spans), "no span twice"

    def named(self, name: str) -> list[ToldSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str, agent: str | None = None) -> ToldSpan:
        (span,) = [span for span in self.named(name) if agent in (None, span.agent)]
        return span

    def line(self, span: ToldSpan) -> list[str]:
        """The names of a span and of those above it."""
        above = [other for other in self.spans if other.id == span.parent]
        return [span.name, *(self.line(above[0]) if above else [])]

    def assert_whole(self, *roots: str) -> None:
        """No parent is missing, and none is in another trace; `roots` are ids of spans that others have told."""
        known = {span.id: span for span in self.spans}
        for span in self.spans:
            if span.parent and span.parent not in roots:
                assert span.parent in known, f"the parent of {span.name} of {span.agent} is missing"
                assert known[span.parent].trace == span.trace
                assert f"{span.trace}-{span.parent}" not in span.links, "what is the parent is no link"


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    tracing.set_span_export(made)
    yield made
    tracing.set_span_export(None)


@contextmanager
def calling(headers: dict[str, str]) -> Iterator[None]:
    """A caller's own context."""
    token = otel_context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        otel_context.detach(token)


@pytest.mark.case(550)
def test_an_ask_is_a_message_and_an_attempt_in_the_trace_of_its_caller(sink: Sink) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        with calling(CONTEXT):
            asked = await scene.mesh.ask("a", SECRET)
        await scene.until(lambda: sink.named("invoke_agent a"), "its span")
        process, attempt = sink.one("process mesh.inbox.{agent}"), sink.one("invoke_agent a")
        assert (process.trace, process.parent, attempt.trace, attempt.parent) == (TRACE, CALLER, TRACE, process.id)
        assert process.attributes[semconv.REF] == asked.ref
        assert (attempt.service, attempt.node, attempt.attributes[semconv.ATTEMPT_END]) == ("Doll", "n1", "ok")
        assert process.start <= attempt.start <= attempt.end <= process.end
        again = await scene.mesh.ask("a", SECRET)
        await scene.until(lambda: len(sink.spans) == 4, "the spans of the second ask")
        second = sink.spans[-1]
        assert (second.attributes[semconv.REF], second.trace != TRACE) == (again.ref, True), "it begins a trace of its own"
        assert second.links == (f"{TRACE}-{attempt.id}",), "and links to the turn before"
        sink.assert_whole(CALLER)

    play(story)


@pytest.mark.case(551)
def test_a_tell_its_answer_and_a_chained_prompt_are_one_trace(sink: Sink) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "worker")
        with calling(CONTEXT):
            work = do(told("worker", "work", "t"), ["then", {"decision": "prompt", "text": "and now"}])
            await scene.mesh.ask("boss", work)
        await scene.until(
            lambda: any(e == {"answer": "t"} or "answer" in str(e) for e in scene.seen("boss").events), "the answer"
        )
        await scene.until(lambda: len(sink.named("invoke_agent boss")) == 2, "the chained prompt's span")
        await scene.until(lambda: sink.named("process mesh.peer-notify.{agent}"), "the answer's handling")
        first, chained = sink.named("invoke_agent boss")
        send, worker = sink.one("send mesh.peer-inbox.{agent}"), sink.one("invoke_agent worker")
        assert {span.trace for span in sink.spans} == {TRACE}
        assert send.parent == chained.parent == first.id
        assert sink.line(worker) == [
            "invoke_agent worker",
            "process mesh.peer-inbox.{agent}",
            "send mesh.peer-inbox.{agent}",
            "invoke_agent boss",
            "process mesh.inbox.{agent}",
        ]
        assert worker.attributes[semconv.CALLER_NAME] == "boss"
        assert sink.one("process mesh.peer-notify.{agent}").parent == send.id, "the answer stands below the question"
        sink.assert_whole(CALLER)

    play(story, nodes=("n1", "n2"))


# --- tools ----------------------------------------------------------------------------------------------------------------
@tool(effect="pure")
async def look() -> str:
    """Look."""
    with trace.get_tracer("mine").start_as_current_span("a span of the tool's own") as span:
        seen.append(f"{span.get_span_context().span_id:016x}")
    trace.get_current_span().set_attribute("looked", True)
    return SECRET


@tool(effect="pure")
def fail() -> str:
    """Fail."""
    seen.append(f"{trace.get_current_span().get_span_context().span_id:016x}")
    raise ValueError(SECRET)


seen: list[str] = []


class Lines:
    """A model that asks for each tool in turn, then answers."""

    provider = "fake"
    name = "lines"

    def prompt(self, text: str, turn: Turn) -> Any:
        return ["user", text]

    def results(self, results: Sequence[Result]) -> Any:
        return ["results"]

    def noted(self, message: Any, note: str) -> Any:
        return message

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        done = sum(message[0] == "model" for message in history)
        calls: tuple[Call, ...] = ()
        if done == 0:
            calls = (Call("c1", "look", {}), Call("c2", "fail", {}))
        elif done == 1:
            calls = (Call("c3", "ask_worker", {"prompt": SECRET}),)
        yield ModelAnswer(
            ["model", done], SECRET, calls=calls, stop="end", model="lines-1", usage={"input_tokens": 3, "output_tokens": 2}
        )


class Asker(Agent[Log]):
    """Its model has tools, and another agent as one."""

    tools = (look, fail, agent_tool("worker", timeout_s=30))

    @staticmethod
    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:
        async for event in ToolLoop(Lines(), Toolbox(Asker())).run([], prompt, turn):
            yield event

    def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log())

    def handle_response(self, ref: str, response: Response, state: Log) -> Idle[Log]:
        return Idle(state)


@pytest.mark.case(552)
def test_models_tools_and_the_agents_that_they_ask_stand_below_the_attempt(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    monkeypatch.setitem(scene.KINDS, "Asker", Asker)

    async def story(scene: Scene) -> None:
        await scene.start("asker", kind="Asker")
        await scene.start("worker")
        with calling(CONTEXT):
            await scene.mesh.ask("asker", "go")
        await scene.until(lambda: sink.named("invoke_agent asker"), "its span")
        attempt = sink.one("invoke_agent asker")
        chats = sink.named("chat lines")
        looked, failed, asked = (sink.one(f"execute_tool {name}") for name in ("look", "fail", "ask_worker"))
        assert [span.parent for span in (*chats, looked, failed, asked)] == [attempt.id] * 6
        assert chats[0].attributes[semconv.INPUT_TOKENS] == 3
        assert {span.attributes[semconv.PROVIDER] for span in chats} == {"fake"}
        assert (failed.error != "", looked.error) == (True, "")
        assert asked.attributes[semconv.TRANSFER_TARGET] == "worker"
        assert sink.line(sink.one("invoke_agent worker"))[:4] == [
            "invoke_agent worker",
            "process mesh.peer-inbox.{agent}",
            "send mesh.peer-inbox.{agent}",
            "execute_tool ask_worker",
        ]
        assert set(seen) == {looked.id, failed.id}, "their own ids were current, in threads too"
        assert sink.added[looked.id] == {"looked": True}
        assert {span.trace for span in sink.spans} == {TRACE}
        sink.assert_whole(CALLER)

    play(story)


# --- what user code sees ----------------------------------------------------------------------------------------------------
class Curious(Agent[Log]):
    """Notes what is current in its callbacks, and adds to it."""

    script: ClassVar[Any] = staticmethod(lambda prompt: Fail("no") if prompt == "fail" else prompt)

    def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log())

    def handle_response(self, ref: str, response: Response, state: Log) -> Idle[Log]:
        self._add()
        return Idle(noted(state, prompts=response.text))

    async def handle_event(self, event: Any, state: Log) -> Idle[Log]:
        self._add()
        return Idle(noted(state, events=event))

    def _add(self) -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("added by", "a callback")
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        seen.append(carrier["traceparent"])
        logging.getLogger("agentmesh.node").info("a line of the agent")


@pytest.mark.case(553)
def test_callbacks_run_in_the_span_of_their_attempt_or_of_their_event(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    monkeypatch.setitem(scene.KINDS, "Curious", Curious)

    async def story(scene: Scene) -> None:
        await scene.start("c", kind="Curious")
        with calling(CONTEXT):
            await scene.mesh.ask("c", "hello")
            await scene.mesh.notify("c", {"a": 1})
        await scene.until(lambda: len(sink.spans) == 3, "the spans")
        spans = (sink.one("invoke_agent c"), sink.one("process mesh.notify.{agent}"))
        assert seen == [f"00-{TRACE}-{span.id}-01" for span in spans]
        assert [sink.added[span.id] for span in spans] == [{"added by": "a callback"}] * 2

    play(story)


# --- owners that die, or are cut off ------------------------------------------------------------------------------------------
@pytest.mark.case(554)
def test_an_owner_that_is_fenced_exports_nothing_of_the_turn_that_never_took_effect(sink: Sink) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        first = scene.node_of("a")
        sent = await scene.mesh.tell("a", "gate:g hello")
        await scene.until(lambda: scene.owner("a").core is not None and scene.owner("a").core.active is not None, "its turn")  # type: ignore[union-attr]
        frozen = scene.world.process(first)
        frozen.freeze()
        await scene.until(lambda: scene.node_of("a") != first, "another owner")
        open_gate("g")
        await scene.until(lambda: sent in scene.results("a"), "the answer")
        frozen.thaw()
        await scene.until(lambda: [s.node for s in sink.named("invoke_agent a") if not s.error] != [], "the span of the turn")
        ended = [span for span in sink.named("invoke_agent a") if span.attributes[semconv.ATTEMPT_END] == "ok"]
        assert [span.node for span in ended] == [scene.node_of("a")]

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(555)
def test_each_attempt_of_a_prompt_that_crashes_is_a_span_with_its_own_end(sink: Sink) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        with calling(CONTEXT):
            await scene.mesh.ask_outcome("a", do(["raise", {"message": SECRET}]), timeout=PATIENCE_S)
        await scene.until(lambda: sink.named("process mesh.inbox.{agent}"), "the end of the message")
        attempts, process = sink.named("invoke_agent a"), sink.one("process mesh.inbox.{agent}")
        assert len(attempts) == 3
        assert {span.parent for span in attempts} == {process.id}
        assert [span.attributes[semconv.ATTEMPT] for span in attempts] == [1, 2, 3]
        assert all(span.error for span in attempts)
        assert process.error != ""

    play(story)


# --- which are sampled -----------------------------------------------------------------------------------------------------
@pytest.mark.case(556)
def test_what_nobody_has_decided_is_sampled_by_the_trace_s_id_alone(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")

    async def story(scene: Scene) -> None:
        await scene.start("a")
        for _ in range(30):
            await scene.mesh.ask("a", "hello")
        for flags in ("00", "01"):
            with calling({"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}):
                await scene.mesh.ask("a", f"flags {flags}")
        await scene.until(lambda: any(span.trace == TRACE for span in sink.named("invoke_agent a")), "the sampled one")
        attempts = sink.named("invoke_agent a")
        undecided = [span for span in attempts if span.trace != TRACE]
        assert 3 < len(undecided) < 27
        assert all(is_sampled(span.trace, 0.5) for span in undecided)
        assert len([span for span in attempts if span.trace == TRACE]) == 1, "the caller's decision counts"

    play(story)


# --- bad input ----------------------------------------------------------------------------------------------------------------
ODD = (
    {"traceparent": "nonsense"},
    {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
    {"traceparent": f"fe-{TRACE}-{CALLER}-ff-more"},
    {**CONTEXT, "tracestate": "=,=,mesh=1,mesh=2," + "x" * 600},
    {**CONTEXT, "tracestate": ",".join(f"k{number}=v" for number in range(60))},
    {**CONTEXT, "baggage": ",".join(f"k{number}=v" for number in range(200))},
    {**CONTEXT, "baggage": "k=" + "v" * 9000},
    {**CONTEXT, "baggage": ";=%zz,\u00e9=1,=,a=b;p"},
    {"baggage": "only=baggage"},
)


@pytest.mark.case(557)
def test_no_context_of_a_sender_costs_a_turn(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> None:
        from agentmesh.edge.publish import store

        await scene.start("a", "b")
        transport = scene.world.nodes["n1"].services.transport
        for number, headers in enumerate(ODD):
            prompt = do(told("b", f"from a {number}"))
            stored = await store(transport, scene.world.subjects.inbox("a"), prompt.encode(), headers=headers)
            await scene.until(lambda ref=str(stored.seq): ref in scene.results("a"), "the answer")  # type: ignore[misc]
        await scene.until(lambda: len(sink.named("invoke_agent b")) == len(ODD), "all that was sent on")
        assert len(sink.named("invoke_agent a")) == len(ODD)
        sink.assert_whole(CALLER)

    play(story)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []
