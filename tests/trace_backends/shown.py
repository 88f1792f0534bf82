"""What Arize Phoenix and Jaeger, as they are shipped, show of a mesh: `make test-backends`. Not among all tests: they are large.

One run is exported to a receiver, which hands each request on to both as it came. In it the triage example loses a node in the
middle of its readers' turns, and agents with a model and tools ask and notify each other, one of them over a kill too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentmesh import semconv
from agentmesh.subjects import Subjects
from commands import mesh_command
from fakes.messages import Answer, Call, FakeMessages, Item, Tool
from fakes.otlp import OtlpReceiver
from fakes.otlp_values import Received
from live.asking import asked
from live.mesh import PATIENCE_S, ProcessMesh
from live.span_tree import drawn, orphans
from live.traced import AGENTS as TRIAGE
from live.traced import COORDINATOR, QUESTION, start_triage, traced_mesh
from support import Server, eventually, run
from trace_backends import planners, servers
from trace_backends.installed import lacks_jaeger, lacks_phoenix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_phoenix = pytest.mark.skipif(bool(lacks_phoenix()), reason=lacks_phoenix())
needs_jaeger = pytest.mark.skipif(bool(lacks_jaeger()), reason=lacks_jaeger())

LONG_S = 300
SDK = ("anthropic", "agentmesh_node.backends.anthropic.backend")
KINDS = {"planner": "Planner", "critic": "Critic", "clerk": "Clerk"}
CLIENT = semconv.service_name("client")


class Run(NamedTuple):
    """What one run has left."""

    spans: list[Received]
    graph: dict[str, Any]
    """What `mesh graph --by kind -o json` has said."""
    died: set[str]
    """The ids of the attempts that died."""


class Back(NamedTuple):
    """The back ends that are installed here."""

    phoenix: servers.Phoenix | None
    jaeger: servers.Jaeger | None

    def forward(self) -> tuple[str, ...]:
        """Where requests are handed on to."""
        return tuple(server.otlp for server in (self.phoenix, self.jaeger) if server is not None)


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Back]:
    directory = tmp_path_factory.mktemp("backends")
    with contextlib.ExitStack() as stack:
        phoenix = None if lacks_phoenix() else stack.enter_context(servers.phoenix(directory))
        jaeger = None if lacks_jaeger() else stack.enter_context(servers.jaeger(directory))
        yield Back(phoenix, jaeger)


@pytest.fixture(scope="module")
def played(server: Server, back: Back, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run."""
    reached, opened = threading.Event(), threading.Event()

    def script(call: Call) -> Item:
        if call.prompt.startswith("Is it good"):
            reached.set()
            opened.wait(LONG_S)
            return Answer(text="It will do.", input_tokens=30, output_tokens=7)
        match call.answers:
            case 0:
                return Answer(
                    text="I look.", tools=(Tool("get_weather", {"city": "Paris"}, "w1"),), input_tokens=100, cache_read=20
                )
            case 1:
                return Answer(tools=(Tool("ask_critic", {"prompt": "Is it good?"}, "a1"),))
        return Answer(text="Go out.")

    with OtlpReceiver(forward=back.forward()) as receiver, FakeMessages(script) as fake:
        env = {"ANTHROPIC_BASE_URL": fake.url, "ANTHROPIC_API_KEY": "sk-ant-none"}
        logs = tmp_path_factory.mktemp("run")
        main = _play(
            server=server, subjects=Subjects("shown"), logs=logs, receiver=receiver, env=env, reached=reached, opened=opened
        )
        graph, died = run(main, LONG_S)
        assert receiver.not_forwarded == []
        print(f"\n{drawn(receiver.spans)}")
        return Run(receiver.spans, graph, died)


async def _play(
    *,
    server: Server,
    subjects: Subjects,
    logs: Path,
    receiver: OtlpReceiver,
    env: dict[str, str],
    reached: threading.Event,
    opened: threading.Event,
) -> tuple[dict[str, Any], set[str]]:
    """Two questions at once, and the kill of a node that has a part in each; what the graph is then, and which attempts died."""
    files = f"{TRIAGE},{planners.__file__}"
    async with traced_mesh(server, subjects, logs, receiver, "n1", "n2", "n3", agents=files, env=env, modules=SDK) as traced:
        mesh = traced.mesh
        client_env = {**os.environ, **receiver.environ}

        def ask(agent: str, prompt: str) -> asyncio.Task[str]:
            return asyncio.create_task(asked(server.url, subjects.root, agent, prompt, client_env))

        await start_triage(mesh)
        for name, kind in KINDS.items():
            await mesh.client.start_agent(name, kind=kind, timeout=PATIENCE_S)
        question, plan = ask(COORDINATOR, QUESTION), ask("planner", "Shall I go out?")
        traced.open("plan")
        await traced.began_by([f"{COORDINATOR}.{service}" for service in ("checkout", "search", "auth")])
        await eventually(reached.is_set, PATIENCE_S, "the critic's model call")
        await traced.began_by(["critic"])
        await traced.ended(COORDINATOR, sent=3)
        died = await traced.kill_host_of("critic")
        opened.set()
        traced.open("read", "synthesis")
        assert "60 errors" in await question
        assert await plan == "Go out."
        await mesh.saw("event_received", "clerk")
        await traced.told_of(died)
        await traced.end()
        return await graph_by_kind(mesh), {fact.span for fact in died}


async def graph_by_kind(mesh: ProcessMesh) -> dict[str, Any]:
    """What the command says."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    where = ("--nats", mesh.server.url, "--root", mesh.subjects.root)
    done = await mesh_command(("graph", "--by", "kind", "-o", "json", *where), env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- Jaeger -----------------------------------------------------------------------------------------------------------
@needs_jaeger
def test_jaeger_draws_the_graph_that_mesh_graph_draws(back: Back, played: Run) -> None:
    assert back.jaeger is not None
    drawn_there = back.jaeger.dependencies()
    own_edges = {
        servers.Call(CLIENT if edge["source"] == "client" else edge["source"], edge["target"], edge["messages"])
        for edge in played.graph["graph"]["edges"]
    }
    print("\nJaeger's graph")
    for call in sorted(drawn_there):
        print(f"  {call.parent} -> {call.child}: {call.times}")
    assert drawn_there == own_edges
    assert {(call.parent, call.child) for call in drawn_there} == {
        (CLIENT, "Triage"), ("Triage", "Reader"), (CLIENT, "Planner"), ("Planner", "Critic"), ("Planner", "Clerk")
    }  # fmt: skip


@needs_jaeger
def test_jaeger_has_one_trace_for_each_request_and_no_parent_is_missing(back: Back, played: Run) -> None:
    assert back.jaeger is not None
    traces = {span.trace_id for span in played.spans}
    assert len(traces) == 2, "two questions"
    assert orphans(played.spans) == []
    for trace_id in traces:
        shown = back.jaeger.trace(trace_id)
        sent = [span for span in played.spans if span.trace_id == trace_id]
        assert sorted((span.name, span.span_id, span.parent) for span in shown) == sorted(
            (span.name, span.span_id, span.parent) for span in sent
        )
        ids = {span.span_id for span in shown}
        assert [span.name for span in shown if span.parent not in {"", *ids}] == []
        assert [warning for warning in back.jaeger.warnings(trace_id) if "parent" in warning or "duplicate" in warning] == []


@needs_jaeger
def test_jaeger_shows_each_attempt_that_died_once(back: Back, played: Run) -> None:
    assert back.jaeger is not None
    shown = [span for trace_id in {span.trace_id for span in played.spans} for span in back.jaeger.trace(trace_id)]
    died = [span for span in shown if span.attributes.get(semconv.ATTEMPT_END) == "lost"]
    assert Counter(span.span_id for span in died) == Counter(played.died)
    assert all(span.error for span in died)
    by_parent = Counter(span.parent for span in shown if span.attributes.get(semconv.ATTEMPT_END) == "ok")
    assert all(by_parent[span.parent] == 1 for span in died), "the attempt that went well stands beside it"


# --- Phoenix ----------------------------------------------------------------------------------------------------------
@needs_phoenix
def test_phoenix_shows_agents_models_and_tools_as_such(back: Back, played: Run) -> None:
    shown = in_phoenix(back, played)
    kinds = Counter((span.kind, span.name) for span in shown if span.kind in ("AGENT", "LLM", "TOOL"))
    died = Counter((span.kind, span.name) for span in shown if span.span_id in played.died)
    print("\nPhoenix")
    for (kind, name), count in sorted(kinds.items()):
        lost = died[kind, name]
        print(f"  {kind} {name}: {count}" + (f", of which {lost} was lost" if lost else ""))
    names = {name for kind, name in kinds if kind == "AGENT"}
    there = {"triage", "triage.checkout", "triage.search", "triage.auth", "planner", "critic"}
    assert {f"invoke_agent {name}" for name in there} <= names
    assert {name for kind, name in kinds if kind == "LLM"} == {f"chat {planners.MODEL}"}
    assert {name for kind, name in kinds if kind == "TOOL"} == {"execute_tool get_weather", "execute_tool ask_critic"}
    assert {span.span_id for span in shown} == {span.span_id for span in played.spans}


@needs_phoenix
def test_phoenix_shows_what_models_were_asked_and_used(back: Back, played: Run) -> None:
    chats = [span for span in in_phoenix(back, played) if span.kind == "LLM"]
    tokens = {
        (
            span.attributes["llm.model_name"],
            span.attributes["llm.token_count.prompt"],
            span.attributes["llm.token_count.completion"],
        )
        for span in chats
    }
    assert (planners.MODEL, 120, 5) in tokens, "cached tokens are among them"
    assert (planners.MODEL, 30, 7) in tokens
    tools = [span for span in in_phoenix(back, played) if span.kind == "TOOL"]
    assert {span.attributes["tool.name"] for span in tools} == {"get_weather", "ask_critic"}


@needs_phoenix
def test_phoenix_shows_each_attempt_that_died_once_and_as_an_error(back: Back, played: Run) -> None:
    died = [span for span in in_phoenix(back, played) if span.span_id in played.died]
    assert Counter(span.span_id for span in died) == Counter(played.died)
    assert {(span.kind, span.error) for span in died} == {("AGENT", True)}


def in_phoenix(back: Back, played: Run) -> list[servers.Shown]:
    """What it shows, when it has put away all that it got."""
    assert back.phoenix is not None
    phoenix = back.phoenix

    async def all_there() -> bool:
        return len(await asyncio.to_thread(phoenix.spans)) >= len(played.spans)

    run(eventually(all_there, PATIENCE_S, "all spans in Phoenix"), LONG_S)
    return phoenix.spans()
