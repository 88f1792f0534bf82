"""The triage example over three nodes, of which one is killed in the middle of turns: one trace, whole,
and the same once more by a rebuild."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh import semconv
from agentmesh.edge.publish import store
from agentmesh.subjects import Subjects
from commands import mesh_command
from fakes.otlp import OtlpReceiver
from fakes.otlp_values import Received
from live.mesh import AGENTS as RECORDERS
from live.mesh import PATIENCE_S
from live.span_tree import attempts, compared, drawn, orphans, repeated
from live.traced import COORDINATOR, NOT_BEFORE_THE_END_MS, QUESTION, TracedMesh, start_triage, traced_mesh
from support import Server, eventually, run

pytestmark = pytest.mark.slow

LONG_S = 110
NODES = ("n1", "n2", "n3")
READERS = tuple(f"{COORDINATOR}.{service}" for service in ("auth", "checkout", "search"))
CALLER = "00f067aa0ba902b7"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

type Told = Callable[[TracedMesh], Awaitable[set[str]]]


async def ask(traced: TracedMesh, agent: str, prompt: str, *, headers: dict[str, str] | None = None) -> str:
    """Put a prompt into an agent's inbox, as a client of any language does; its ref."""
    mesh = traced.mesh
    stored = await store(mesh.transport, mesh.subjects.inbox(agent), prompt.encode(), headers=headers)
    return str(stored.seq)


async def answer(traced: TracedMesh, agent: str, ref: str) -> str:
    """Its answer."""
    mesh = traced.mesh

    async def done() -> bool:
        return (await mesh.client.poll(agent, ref, timeout=PATIENCE_S)).done

    await eventually(done, PATIENCE_S, f"the answer of {agent}")
    outcome = (await mesh.client.poll(agent, ref, timeout=PATIENCE_S)).outcome
    assert outcome is not None
    return outcome.text or str(outcome.error)


async def rebuilt(traced: TracedMesh, receiver: OtlpReceiver) -> list[Received]:
    """What a rebuild writes to the collector, whose data is lost."""
    receiver.wipe()
    mesh = traced.mesh
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    where = ("--nats", mesh.server.url, "--root", mesh.subjects.root)
    done = await mesh_command(("trace", "rebuild", "--otlp", receiver.endpoint, *where), env)
    assert done.returncode == 0, done.stdout + done.stderr
    return receiver.spans


def check(spans: list[Received], died: set[str], *, above: str = "") -> None:
    """What must hold of the spans of one request."""
    tree = drawn(spans)
    assert len({span.trace_id for span in spans}) == 1, tree
    assert orphans(spans, {above}) == [], tree
    assert repeated(spans) == [], tree
    lost = {span.span_id: span for span in attempts(spans) if span.attributes[semconv.ATTEMPT_END] == "lost"}
    assert set(lost) == died, f"{died} have died:\n{tree}"
    well = Counter(span.parent for span in attempts(spans) if span.attributes[semconv.ATTEMPT_END] == "ok")
    assert all(well[span.parent] == 1 for span in lost.values()), f"an attempt beside it went well:\n{tree}"
    assert {span.status for span in lost.values()} <= {"ERROR"}


def shape(spans: list[Received]) -> None:
    """The tree that the example makes, whatever has died."""
    by_id = {span.span_id: span for span in spans}
    tree = drawn(spans)
    assert {span.service for span in spans} == {"Triage", "Reader"}, tree
    plan, synthesis = [span for span in attempts(spans, COORDINATOR) if span.attributes[semconv.ATTEMPT_END] == "ok"]
    (root,) = [span for span in spans if span.parent not in by_id]
    assert (root.kind, root.attributes[semconv.AGENT_NAME]) == ("CONSUMER", COORDINATOR), tree
    assert plan.parent == root.span_id, tree
    assert {plan.attributes[semconv.TURN], synthesis.attributes[semconv.TURN]} == {1, 2}
    for reader in READERS:
        (well,) = [span for span in attempts(spans, reader) if span.attributes[semconv.ATTEMPT_END] == "ok"]
        process = by_id[well.parent]
        send = by_id[process.parent]
        assert (process.kind, send.kind, send.parent) == ("CONSUMER", "PRODUCER", plan.span_id), tree
        assert send.attributes[semconv.AGENT_NAME] == COORDINATOR, tree
        assert not {link.span_id for link in process.links} & {process.parent}, "a parent is no link"
    assert (synthesis.parent in by_id) and synthesis.links, tree


@pytest.mark.case(535)
@pytest.mark.case(537)
@pytest.mark.parametrize("context", [False, True], ids=["derived", "given"])
def test_a_node_killed_in_its_first_turn_is_a_lost_attempt_in_one_trace_that_can_be_rebuilt(
    server: Server, subjects: Subjects, tmp_path: Path, *, context: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"} if context else None

    async def main(receiver: OtlpReceiver) -> None:
        async with traced_mesh(server, subjects, tmp_path, receiver, *NODES) as traced:
            await start_triage(traced.mesh)
            ref = await ask(traced, COORDINATOR, QUESTION, headers=headers)
            await traced.began_by([COORDINATOR])
            assert receiver.spans == [], "its node has exported nothing"
            died = await traced.kill_host_of(COORDINATOR)
            assert len(died) == 1
            traced.open("plan", "read", "synthesis")
            assert "60 errors" in await answer(traced, COORDINATOR, ref)
            await traced.told_of(died)
            await traced.end()
            spans = receiver.spans
            check(spans, {fact.span for fact in died}, above=CALLER if context else "")
            shape(spans)
            assert ({span.trace_id for span in spans} == {TRACE}) is context
            again = await rebuilt(traced, receiver)
            assert repeated(again) == []
            assert compared(again) == compared(spans)

    with OtlpReceiver() as receiver:
        run(main(receiver), LONG_S)


@pytest.mark.case(536)
@pytest.mark.case(537)
def test_attempts_that_die_in_the_middle_of_a_trace_are_there_once_each(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main(receiver: OtlpReceiver) -> None:
        async with traced_mesh(server, subjects, tmp_path, receiver, *NODES) as traced:
            await start_triage(traced.mesh)
            traced.open("plan")
            ref = await ask(traced, COORDINATOR, QUESTION)
            await traced.began_by(READERS)
            await traced.ended(COORDINATOR, sent=3)
            died = await traced.kill_host_of(READERS[0])
            assert died
            traced.open("read", "synthesis")
            assert "60 errors" in await answer(traced, COORDINATOR, ref)
            await traced.told_of(died)
            await traced.end()
            spans = receiver.spans
            check(spans, {fact.span for fact in died})
            shape(spans)
            again = await rebuilt(traced, receiver)
            assert repeated(again) == []
            assert compared(again) == compared(spans)

    with OtlpReceiver() as receiver:
        run(main(receiver), LONG_S)


@pytest.mark.case(536)
@pytest.mark.case(537)
def test_owners_that_die_one_behind_the_other_are_an_attempt_each(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    """The second one dies as soon as its attempt is known. Perhaps it has told of the first one's by then, and perhaps not; or it
    has stored that and not exported it, as any record's spans: then the rebuild brings it to the collector."""

    async def main(receiver: OtlpReceiver) -> None:
        async with traced_mesh(server, subjects, tmp_path, receiver, *NODES) as traced:
            await start_triage(traced.mesh)
            ref = await ask(traced, COORDINATOR, QUESTION)
            died = []
            for number in (1, 2):
                await eventually(lambda number=number: len(traced.began) == number, PATIENCE_S, f"attempt {number}")
                died += await traced.kill_host_of(COORDINATOR)
            traced.open("plan", "read", "synthesis")
            assert "60 errors" in await answer(traced, COORDINATOR, ref)
            await traced.told_of(died[:1], exported=False)
            await traced.told_of(died[1:])  # its next owner lives
            await traced.end()
            spans = receiver.spans
            sent = {span.span_id for span in attempts(spans) if span.attributes[semconv.ATTEMPT_END] == "lost"}
            check(spans, {fact.span for fact in died} & sent)
            again = await rebuilt(traced, receiver)
            check(again, {fact.span for fact in died})
            assert len(died) == 2
            shape(again)
            assert compared(spans).items() <= compared(again).items()

    with OtlpReceiver() as receiver:
        run(main(receiver), LONG_S)


@pytest.mark.case(537)
def test_a_rebuild_has_what_a_killed_node_had_committed_and_not_exported(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main(receiver: OtlpReceiver) -> None:
        async with traced_mesh(server, subjects, tmp_path, receiver, *NODES, export_ms=NOT_BEFORE_THE_END_MS) as traced:
            await start_triage(traced.mesh)
            traced.open("plan")
            ref = await ask(traced, COORDINATOR, QUESTION)
            await traced.began_by(READERS)
            assert receiver.spans == []
            died = await traced.kill_host_of(COORDINATOR)
            traced.open("read", "synthesis")
            assert "60 errors" in await answer(traced, COORDINATOR, ref)
            await traced.told_of(died, exported=False)
            await traced.end()
            sent = receiver.spans
            again = await rebuilt(traced, receiver)
            check(again, {fact.span for fact in died if fact.agent != COORDINATOR})  # that one's turn was over
            shape(again)
            there = compared(again)
            assert compared(sent).items() <= there.items(), "as the collector had it"
            assert len(there) > len(sent), "and more"

    with OtlpReceiver() as receiver:
        run(main(receiver), LONG_S)


@pytest.mark.case(538)
def test_over_grpc_too(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main(receiver: OtlpReceiver) -> None:
        async with traced_mesh(server, subjects, tmp_path, receiver, "n1", "n2", agents=str(RECORDERS)) as traced:
            await traced.mesh.client.start_agent("recorder", kind="Recorder", timeout=PATIENCE_S)
            ref = await ask(traced, "recorder", f"gate:{gate} hello")
            await traced.began_by(["recorder"])
            died = await traced.kill_host_of("recorder")
            await asyncio.to_thread(gate.touch)
            assert await answer(traced, "recorder", ref) == "hello"
            await traced.told_of(died)
            await traced.end()
            spans = receiver.spans
            check(spans, {fact.span for fact in died})
            assert [span.kind for span in sorted(spans, key=lambda span: span.start)] == ["CONSUMER", "INTERNAL", "INTERNAL"]

    with OtlpReceiver(grpc=True) as receiver:
        run(main(receiver), LONG_S)
