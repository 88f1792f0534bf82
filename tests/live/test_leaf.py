"""A hub with a mesh, and a leaf node: who reaches which mesh from where, and what is said where two of one root would mix."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.edge import mesh_domain
from agentmesh.edge.api import call_api
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.manage import stream_state
from agentmesh.edge.publish import Stored, store, store_soon
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import absent, audience, ensure
from agentmesh.errors import WrongDomain
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import encode
from agentmesh_client.cli import exits
from agentmesh_node.__main__ import main as command
from agentmesh_node.host.node import Node
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import NodeSettings
from client.test_cli import Shell
from live.mesh import PATIENCE_S, kinds, local_mesh
from support import Server, eventually, free_ports, run

pytestmark = pytest.mark.processes

HUB_API = "$JS.hub.API"


class Pair:
    """A hub, and a leaf node with a JetStream of its own."""

    def __init__(self, hub: Server, leaf: Server) -> None:
        self.hub = hub
        self.leaf = leaf

    async def linked(self, subjects: Subjects) -> None:
        """Return when what is published at the leaf node is heard at the hub."""
        async with joined(self.leaf, subjects) as t:

            async def heard() -> bool:
                return await audience(t, subjects, first_s=0.5, others_s=0.01) > 0

            await eventually(heard, PATIENCE_S, "the hub at the leaf node")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    (port,) = free_ports(1)
    with Server(name="hub", jetstream="domain: hub", config=f'leafnodes {{ listen: "127.0.0.1:{port}" }}') as hub:
        remote = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{port}" }} ] }}'
        with Server(name="leaf", jetstream="domain: leaf", config=remote) as leaf:
            yield Pair(hub, leaf)


@contextlib.asynccontextmanager
async def joined(server: Server, subjects: Subjects) -> AsyncIterator[NatsTransport]:
    """A connection for a mesh, once it knows the domain if there is one to know."""
    transport = await connect(server.url, name="test", mesh=subjects.stream("registry"))
    try:
        await eventually(lambda: not transport._learner.learning, PATIENCE_S, "an answer about the domain")
        yield transport
    finally:
        await transport.close()


async def messages(t: NatsTransport, subjects: Subjects) -> int:
    return (await stream_state(t, subjects.stream("mail"))).messages


@pytest.mark.case(264)
def test_clients_and_nodes_on_a_leaf_node_reach_the_mesh_of_the_hub(pair: Pair, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(pair.hub, subjects) as mesh:
            await mesh.client.start_agent("near", kind="Recorder")
            await pair.linked(subjects)
            transport = await connect(pair.leaf.url, name="n2", api=HUB_API, mesh=subjects.stream("registry"))
            liveness = LivenessThread(pair.leaf.url, api=HUB_API)
            settings = NodeSettings(node_id="n2", agents=kinds(), root=subjects.root, labels={"far": "yes"})
            node = Node(transport, pair.leaf.url, settings, liveness=liveness)
            try:
                await node.start()
                async with agentmesh_client.connect(pair.leaf.url, root=subjects.root, domain="hub") as client:
                    assert (await client.ask("near", "hello", timeout=PATIENCE_S)).text == "hello"
                    await client.start_agent("far", kind="Recorder", labels={"far": "yes"}, timeout=PATIENCE_S)
                    assert await client.whereis("far") == "n2"
                    assert (await client.ask("far", "hello", timeout=PATIENCE_S)).text == "hello"
                    assert {entry.name for entry in await client.list_agents()} == {"near", "far"}
                assert (await mesh.client.ask("far", "from the hub", timeout=PATIENCE_S)).text == "from the hub"
            finally:
                await node.close()
                await transport.close()

    run(main(), 110)


@pytest.mark.case(265)
def test_no_second_set_of_streams_is_made_within_hearing(
    pair: Pair, subjects: Subjects, capsys: pytest.CaptureFixture[str]
) -> None:
    async def hub() -> None:
        async with joined(pair.hub, subjects) as t:
            await ensure(t, subjects)
        await pair.linked(subjects)

    async def lost() -> int:
        async with joined(pair.leaf, subjects) as t:
            return len((await absent(t, subjects)).lost)

    run(hub())
    where = ["setup", "--nats", pair.leaf.url, "--root", subjects.root]
    for options in ([], ["--new"], ["--new", "--dry-run"]):
        assert command([*where, *options]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "another set of streams" in said.err and "--domain" in said.err and "--root" in said.err
    assert run(lost()) == 8
    assert command([*where, "--domain", "hub"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.case(265)
def test_doctor_finds_the_mesh_elsewhere_and_a_second_set(pair: Pair, subjects: Subjects) -> None:
    async def problems(*options: str) -> list[str]:
        shell = Shell(pair.leaf, subjects)
        out, _ = await shell.run("doctor", "-o", "json", *options, expect=exits.FAILED)
        return [finding["text"] for finding in json.loads(out)["findings"] if finding["level"] == "problem"]

    async def main() -> None:
        async with joined(pair.hub, subjects) as hub, joined(pair.leaf, subjects) as leaf:
            await ensure(hub, subjects)
            await pair.linked(subjects)
            assert [text for text in await problems() if "behind a leaf node: name it (--domain" in text]
            assert not [text for text in await problems("--domain", "hub") if "sets" in text or "domain" in text]
            await ensure(leaf, subjects)
            assert [text for text in await problems() if text.startswith("2 sets of this mesh's streams")]

    run(main(), 110)


@pytest.mark.case(266)
def test_an_acknowledgement_of_another_domain_is_an_error_and_is_not_repeated(pair: Pair, subjects: Subjects) -> None:
    async def main() -> None:
        async with joined(pair.hub, subjects) as hub, joined(pair.leaf, subjects) as leaf:
            for t in (hub, leaf):
                await ensure(t, subjects)
            await pair.linked(subjects)
            async with joined(pair.leaf, subjects) as t:
                assert t.domain == "leaf"
                await call_api(t, f"STREAM.DELETE.{subjects.stream('mail')}")
                with pytest.raises(WrongDomain) as caught:
                    await store(t, subjects.inbox("a"), b"x")
                assert caught.value.details == {
                    "stream": subjects.stream("mail"), "domain": "hub", "seq": 1, "wanted": "leaf",
                }  # fmt: skip
                results: list[Stored | Exception] = []
                assert store_soon(t, subjects.inbox("a"), b"x", results.append)
                await eventually(lambda: results, PATIENCE_S, "the verdict")
                assert isinstance(results[0], WrongDomain)
            await Registry(leaf, subjects).create(spec_key("a"), encode(Spec(kind="Coder", incarnation="life", status="running")))
            async with agentmesh_client.connect(pair.leaf.url, root=subjects.root) as client:
                await eventually(lambda: client.transport.domain == "leaf", PATIENCE_S, "the domain")
                with pytest.raises(WrongDomain, match="'hub'"):
                    await client.tell("a", "hello", timeout=60)
            assert await messages(hub, subjects) == 3, "each was stored there once"

    run(main(), 110)


@pytest.mark.case(267)
def test_a_domain_that_a_running_server_is_given_is_followed(subjects: Subjects) -> None:
    async def main(server: Server) -> None:
        async with joined(server, subjects) as made:
            await ensure(made, subjects)
        async with joined(server, subjects) as t:
            assert t.domain == ""
            await store(t, subjects.inbox("a"), b"before")
            server.jetstream, again = "domain: late", asyncio.Event()
            t.on_gap(again.set)
            await asyncio.to_thread(server.restart)
            await again.wait()
            await store(t, subjects.inbox("a"), b"after")
            assert t.domain == "late"
            t.domain = ""  # as if another server of the cluster had been given it, and nothing had told this connection
            results: list[Stored | Exception] = []
            assert store_soon(t, subjects.inbox("a"), b"soon", results.append)
            await eventually(lambda: results, PATIENCE_S, "the verdict")
            assert results == [Stored(3, duplicate=False)]
            assert t.domain == "late"

    with Server(durable=True) as server:
        run(main(server), 110)


def test_a_name_for_a_domain_stands_in_the_environment(pair: Pair, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(pair.hub, subjects) as hub:
            await ensure(hub, subjects)
        await pair.linked(subjects)
        shell = Shell(pair.leaf, subjects, tmp_path)
        shell.environ["MESH_DOMAIN"] = "hub"
        await shell.run("ps")

    run(main())


@pytest.mark.case(267)
def test_the_domain_of_a_mesh_that_is_yet_to_be_made_is_learned_later(
    pair: Pair, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_domain, "LEARN_S", 0.1)

    async def main() -> None:
        async with joined(pair.leaf, subjects) as t:
            assert t.domain is None
            await ensure(t, subjects)
            await eventually(lambda: t.domain == "leaf", PATIENCE_S, "the domain")

    run(main())
