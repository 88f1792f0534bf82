"""Reports of who talks to whom and of what became of a request, from facts on a stream that strangers may write to."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from agentmesh import semconv, wire
from agentmesh.edge.journal_reader import RECORD, Contents
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, NotFound, StreamMissing
from agentmesh.ledger_entries import Traced, TurnInfo
from agentmesh.records import Record, encode_record
from agentmesh.registry_values import NodeLease, Spec
from agentmesh.subjects import Subjects, node_key, spec_key
from agentmesh.trace.spans import Began, Spans, ToldSpan, encode_fact
from agentmesh_client.directory import Directory
from agentmesh_client.rebuild import write_spans
from agentmesh_client.traces import Traces
from fakes.otlp import OtlpReceiver
from support import Server, connected, run

TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4736"
NOW = 1_764_500_000.0


def told(
    op: str, agent: str, number: int, parent: int = 0, *, trace: str = TRACE, at: float = 0.0, **attributes: Any
) -> ToldSpan:
    named = {getattr(semconv, name.upper()): value for name, value in attributes.items()}
    return ToldSpan(
        trace=trace, id=f"{number:016x}", parent=f"{parent:016x}" if parent else "", name=f"{op} {agent}", op=op,  # type: ignore[arg-type]
        start=NOW + at, end=NOW + at + 1, agent=agent, service=agent.capitalize(), node="n1", attributes=named,
    )  # fmt: skip


ASK = (
    told("process", "desk", 1, lane="inbox", ref="7"),
    told("invoke_agent", "desk", 2, 1, attempt_end="lost", attempt=1, turn=1, ref="7"),
    told("invoke_agent", "desk", 3, 1, at=1, attempt_end="ok", attempt=2, turn=1, ref="7"),
    told("send", "desk", 4, 3, at=1, to="log", lane="peer-notify"),
)
HEARD = (told("process", "log", 5, 4, at=1, lane="peer-notify", caller_name="desk", ref="8"),)


class Facts:
    """A mesh without processes, whose stream has facts."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self.transport, self.subjects = transport, subjects
        registry = Registry(transport, subjects)
        self.traces = Traces(transport, subjects, Directory(transport, subjects, registry), registry, now=self.now)

    def now(self) -> float:
        # The server stamps messages by the true time.
        return dt.datetime.now(dt.UTC).timestamp()

    async def node(self, name: str, facts: str) -> None:
        lease = NodeLease(boot=name, kinds=("Desk",), facts=facts)
        await store(self.transport, self.subjects.registry_key(node_key(name)), wire.encode(lease))

    async def agent(self, name: str) -> None:
        spec = Spec(kind=name.capitalize(), incarnation="life", status="running")
        await store(self.transport, self.subjects.registry_key(spec_key(name)), wire.encode(spec))

    async def turn(self, name: str, number: int) -> None:
        """A committed turn of an agent whose node publishes no facts of records."""
        attempt, message = f"{name:0>14}{number:02}", f"{name:0>13}m{number:02}"
        traced = Traced(
            trace=TRACE, span=attempt, parent=message, process=message, lane="inbox", stored=NOW, began=NOW, boot="b"
        )  # fmt: skip
        info = TurnInfo(number=number, ref=str(number), started=NOW, ended=NOW + 1, node="n1", generation=1, trace=traced)
        record = Record(kind="turn", id="r", at=NOW, incarnation="life", epoch=1, generation=1, node="n1", boot="b", turn=info)
        await store(self.transport, self.subjects.journal(name), encode_record(record), headers={RECORD: "r"})

    async def tell(self, *spans: ToldSpan, agent: str | None = None) -> None:
        subject = self.subjects.trace(agent or spans[0].agent, "spans")
        await store(self.transport, subject, encode_fact(Spans(spans=spans)))

    async def began(self, began: Began) -> None:
        await store(self.transport, self.subjects.trace(began.agent, "began"), encode_fact(began))


@asynccontextmanager
async def facts_of(server: Server, subjects: Subjects) -> AsyncIterator[Facts]:
    async with connected(server.url) as transport:
        await ensure(transport, subjects)
        yield Facts(transport, subjects)


LONG = dt.timedelta(days=3650)


def test_the_graph_is_made_of_the_facts(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "all")
            await mesh.tell(*ASK)
            await mesh.tell(*HEARD)
            await mesh.tell(*ASK)  # repeated by the next owner
            report = await mesh.traces.graph(since=LONG)
            assert {(edge.source, edge.target): edge.messages for edge in report.graph.edges} == {
                ("client", "desk"): 1,
                ("desk", "log"): 1,
            }
            assert (report.source.facts, report.source.stream, report.source.journals) == ({"all": 1}, True, 0)
            report = await mesh.traces.graph(since=LONG, by="kind")
            assert [(edge.source, edge.target) for edge in report.graph.edges] == [("Desk", "Log"), ("client", "Desk")]
            assert (await mesh.traces.graph(since=60.0)).graph.edges == ()

    run(main())


@pytest.mark.case(521)
def test_what_a_stranger_puts_there_is_passed_over(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "all")
            for body in (b"", b"{}", b"\xff", b'{"spans":7}', b"[" * 2000):
                await store(mesh.transport, subjects.trace("desk", "spans"), body)
                await store(mesh.transport, subjects.trace("desk", "began"), body)
            await store(mesh.transport, f"{subjects.root}.trace.x", b"{}")
            await mesh.tell(*HEARD, agent="desk")  # in another agent's name
            await mesh.tell(*ASK)
            report = await mesh.traces.graph(since=LONG)
            assert {(edge.source, edge.target) for edge in report.graph.edges} == {("client", "desk"), ("desk", "log")}

    run(main())


@pytest.mark.case(522)
@pytest.mark.parametrize("ref", ["desk/7", "7", TRACE])
def test_a_request_is_found_by_its_ref_and_by_its_trace(server: Server, subjects: Subjects, ref: str) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "all")
            await mesh.tell(told("process", "desk", 9, trace=OTHER, lane="inbox", ref="6"))
            await mesh.tell(*ASK)
            await mesh.tell(*HEARD)
            report = await mesh.traces.trace(ref, since=LONG)
            assert report.trace == TRACE
            [top] = report.branches
            assert [(one.agent, one.ended) for one in top.below] == [("desk", "lost"), ("desk", "ok")]
            assert top.below[1].below[0].below[0].agent == "log"
            assert report.over

    run(main())


@pytest.mark.case(522)
def test_what_is_followed_ends_when_nothing_of_it_runs(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "all")
            await mesh.tell(*ASK)
            seen = []
            async for report in mesh.traces.follow("desk/7", since=LONG):
                seen.append(report.over)
                if len(seen) == 1:
                    await mesh.tell(*HEARD)
            assert seen == [False, True]

    run(main())


def test_a_journal_is_read_again_only_when_it_has_grown(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "attempts")
            for name in ("desk", "log"):
                await mesh.agent(name)
                await mesh.turn(name, 1)
            reads: list[str] = []
            read = mesh.traces._journal.read

            async def counted(name: str) -> Contents:
                reads.append(name)
                return await read(name)

            async def pause(seconds: float) -> None:
                pauses.append(list(reads))
                if len(pauses) == 2:
                    await mesh.turn("log", 2)

            pauses: list[list[str]] = []
            monkeypatch.setattr(mesh.traces._journal, "read", counted)
            monkeypatch.setattr(mesh.traces, "_pause", pause)
            async with aclosing(mesh.traces.watch_graph(since=LONG)) as reports:
                first = await anext(reports)
                assert [(edge.target, edge.messages) for edge in first.graph.edges] == [("desk", 1), ("log", 1)]
                assert (first.source.journals, sorted(reads)) == (2, ["desk", "log"])
                second = await anext(reports)
                assert [(edge.target, edge.messages) for edge in second.graph.edges] == [("desk", 1), ("log", 2)]
                assert len(pauses) == 2 and sorted(pauses[1]) == ["desk", "log"], "nothing has grown between the looks"
                assert reads[2:] == ["log"] and second.source.journals == 2

    run(main())


def test_errors_say_what_to_do(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.node("n1", "all")
            for ref in ("desk/", ""):
                with pytest.raises(BadRequest, match="AGENT/REF"):
                    await mesh.traces.trace(ref)
            with pytest.raises(NotFound, match="--since"):
                await mesh.traces.trace("desk/7")
            for since in (0, -1.0, float("nan"), dt.timedelta(seconds=-1)):
                with pytest.raises(BadRequest, match="since"):
                    await mesh.traces.graph(since=since)

    run(main())


@pytest.mark.case(521)
def test_a_mesh_that_keeps_no_facts_says_so(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.transport.request(f"$JS.API.STREAM.DELETE.{subjects.stream('trace')}", timeout=60)
            report = await mesh.traces.graph(since=LONG)
            assert (report.graph.edges, report.source.stream) == ((), False)
            with pytest.raises(StreamMissing, match="mesh setup"):
                await mesh.traces.spans()

    run(main())


@pytest.mark.parametrize("grpc", [False, True])
def test_a_rebuild_writes_what_was_told(server: Server, subjects: Subjects, grpc: bool) -> None:
    async def main(receiver: OtlpReceiver) -> None:
        async with facts_of(server, subjects) as mesh:
            await mesh.tell(*ASK)
            await mesh.tell(*HEARD)
            spans = await mesh.traces.spans(since=LONG)
            url = receiver.endpoint.replace("http://", "grpc://") if grpc else receiver.endpoint
            assert await write_spans(spans, url) == 5

    with OtlpReceiver(grpc=grpc) as receiver:
        run(main(receiver))
        found = {span.span_id: span for span in receiver.spans}
    assert len(found) == len(receiver.spans) == 5
    for span in (*ASK, *HEARD):
        written = found[span.id]
        assert (written.trace_id, written.parent, written.name, written.service) == (
            span.trace,
            span.parent,
            span.name,
            span.service,
        )
        assert span.attributes.items() <= written.attributes.items()


def test_a_collector_that_is_not_there_is_named() -> None:
    for url in ("127.0.0.1:4318", "ftp://x", "http://"):
        with pytest.raises(BadRequest, match="--otlp"):
            run(write_spans(ASK, url))
