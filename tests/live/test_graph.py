"""The graph of who talks to whom is what agents have sent, whatever they were told to send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import roled
from agentmesh.subjects import Subjects
from agentmesh.trace.graph import CLIENT
from agentmesh_client import Mesh
from live.mesh import PATIENCE_S, local_mesh
from live.test_between_agents import do
from support import Server, eventually, run

AGENTS = ("a", "b", "c", "d")


class Message(NamedTuple):
    """What an agent is sent, and what it sends on because of it."""

    to: str
    what: Literal["tell", "notify"]
    then: tuple[Message, ...]


def messages() -> st.SearchStrategy[tuple[Message, ...]]:
    """Some messages, each of which may cause others."""
    one = st.builds(Message, st.sampled_from(AGENTS), st.sampled_from(["tell", "notify"]), st.just(()))

    def cause(inner: st.SearchStrategy[Message]) -> st.SearchStrategy[Message]:
        return st.builds(Message, st.sampled_from(AGENTS), st.sampled_from(["tell", "notify"]), _few(inner))

    return _few(st.recursive(one, cause, max_leaves=12))


def _few(inner: st.SearchStrategy[Message]) -> st.SearchStrategy[tuple[Message, ...]]:
    return st.lists(inner, max_size=3).map(tuple)


def calls(then: Iterable[Message]) -> list[Any]:
    """What a puppet must be told to send these."""
    return [
        ["tell", {"target": one.to, "prompt": do(*calls(one.then))}] if one.what == "tell"
        else ["notify", {"target": one.to, "event": {"do": calls(one.then)}}]
        for one in then
    ]  # fmt: skip


def sent(source: str, then: Iterable[Message]) -> Counter[tuple[str, str]]:
    """Who sends how much to whom, all in all."""
    found: Counter[tuple[str, str]] = Counter()
    for one in then:
        found[source, one.to] += 1
        found += sent(one.to, one.then)
    return found


async def edges(mesh: Mesh) -> Counter[tuple[str, str]]:
    report = await mesh.traces.graph()
    return Counter({(edge.source, edge.target): edge.messages for edge in report.graph.edges})


@pytest.mark.case(520)
@given(asked=messages())
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("facts", ["all", "attempts"])
def test_the_graph_of_a_random_workload_is_what_was_sent(server: Server, facts: str, asked: tuple[Message, ...]) -> None:
    wanted = sent(CLIENT, asked)

    async def main() -> None:
        subjects = Subjects(root=roled.next_root())  # a mesh for each example
        async with local_mesh(server, subjects, "n1", "n2", trace_facts=facts) as mesh:
            for agent in AGENTS:
                await mesh.client.start_agent(agent, kind="Puppet", timeout=PATIENCE_S)
            for one in asked:
                if one.what == "tell":
                    await mesh.client.tell(one.to, do(*calls(one.then)))
                else:
                    await mesh.client.notify(one.to, {"do": calls(one.then)})

            async def whole() -> bool:
                found = await edges(mesh.client)
                assert found <= wanted, "what nobody has sent"
                return found == wanted

            await eventually(whole, PATIENCE_S, f"{wanted}")

    run(main(), 120)
