"""Callers in an account of their own use nothing but the gateway's four subjects, imported (cases 620 to 623)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Response
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.identity import Chain, Party, as_meta
from agentmesh.subjects import WAYS, Subjects
from agentmesh.tools import ToolCall, agent_tool, tool
from agentmesh.trace.tree import walk
from fakes.messages import Answer, FakeMessages, Tool
from live.mesh import local_mesh
from node.tools.mcp.serving import stdio
from support import Server, eventually, run

pytestmark = pytest.mark.processes
SUBJECTS = Subjects("mesh")


def _imported() -> str:
    services = "\n".join(f'{{ service: "mesh.caller.{way}.>", threshold: "1h" }}' for way in WAYS)
    imports = "\n".join(
        f'{{ service: {{ account: MESH, subject: "mesh.caller.{way}.>" }}, to: "mesh.{way}.>", share: true }}' for way in WAYS
    )
    users = "\n".join(f'{{ user: "{name}", password: "p" }}' for name in ("shop", "bank"))
    return (
        f'accounts {{\n MESH {{ jetstream: enabled\n exports: [\n{services}\n{{ stream: "_INBOX.>" }}\n]\n'
        ' users: [ { user: "mesh", password: "p" } ] }\n'
        f' CALLERS {{ imports: [\n{imports}\n{{ stream: {{ account: MESH, subject: "_INBOX.>" }} }}\n]\n'
        f" users: [\n{users}\n] }}\n }}"
    )


@pytest.fixture(scope="module")
def imported() -> Iterator[Server]:
    with Server(config=_imported()) as made:
        yield made


def url(server: Server, user: str) -> str:
    return server.url.replace("//", f"//{user}:p@")


class _Mesh:
    """A server, as the mesh's own user sees it."""

    def __init__(self, server: Server) -> None:
        self.url = url(server, "mesh")


async def told(t: NatsTransport, way: str, body: bytes, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return msgspec.json.decode((await t.request(f"mesh.{way}.coder", body, headers=named, timeout=60)).data)


@pytest.mark.case(622)
@pytest.mark.case(620)
@pytest.mark.case(625)
def test_a_caller_needs_the_four_imported_subjects_and_its_ids_are_its_own(imported: Server, tmp_path: Path) -> None:
    folder = tmp_path

    async def main() -> None:
        async with local_mesh(_Mesh(imported), SUBJECTS) as mesh:
            await mesh.client.start_agent("coder", kind="Puppet", timeout=60)
            shop, bank = [await connect(url(imported, name), name=name) for name in ("shop", "bank")]
            try:
                answer = await told(shop, "ask", b"one", Nats_Msg_Id="coder.order-7")
                assert answer["text"] == "one" and answer["msg_id"] == "coder.order-7"
                other = await told(bank, "ask", b"two", Nats_Msg_Id="coder.order-7")
                assert other["text"] == "two" and other["ref"] != answer["ref"]
                assert await told(shop, "ask", b"one", Nats_Msg_Id="coder.order-7") == answer
                forged = '{"acc":"CALLERS","user":"shop"}'
                again = await told(bank, "ask", b"two", Nats_Msg_Id="coder.order-7", Nats_Request_Info=forged)
                assert again == other, "a header of the caller's own is replaced by the server's"

                got: list[Any] = []
                inbox = shop.new_inbox()
                await shop.subscribe(inbox, lambda message: got.append(json.loads(message.data)))
                await shop.flush()
                ref = (await told(shop, "tell", b"three", Mesh_Reply_To=inbox))["ref"]
                await eventually(lambda: got, what="the outcome at the caller's own inbox")
                assert got[0]["text"] == "three" and got[0]["ref"] == ref
                polled = await told(shop, "poll", json.dumps({"ref": ref}).encode())
                assert polled["status"] == "completed" and polled["outcome"] == got[0]
                assert "ref" in await told(shop, "event-to", b'{"n":1}')

                # With a key a request is its caller's alone, also while others may ask the agent; running, and answered.
                gate = folder / "gate"
                mine = {"Mesh_Key": secrets.token_urlsafe(24)}
                ref = (await told(shop, "tell", f"gate:{gate} four".encode(), **mine))["ref"]
                await told(shop, "tell", b"waits", **mine)
                for key in ({}, {"Mesh_Key": secrets.token_urlsafe(24)}):
                    for name, at in ((f"{ref}", bank), (f"{int(ref) + 1}", bank)):
                        refused = await told(at, "poll", json.dumps({"ref": name}).encode(), **key)
                        assert refused["error"]["code"] == "not_permitted", refused
                    cancel = json.dumps({"op": "cancel", "ref": ref, "tree": True}).encode()
                    named = {name.replace("_", "-"): value for name, value in key.items()}
                    answer = await mesh.transport.request(SUBJECTS.control("coder"), cancel, headers=named, timeout=30)
                    assert json.loads(answer.data)["error"]["code"] == "not_permitted"
                assert (await told(shop, "poll", json.dumps({"ref": ref}).encode(), **mine))["status"] == "pending"
                gate.touch()
                found: dict[str, Any] = {}

                async def done() -> bool:
                    found.update(await told(shop, "poll", json.dumps({"ref": ref}).encode(), **mine))
                    return bool(found["status"] == "completed")

                await eventually(done, what="the outcome")
                assert "not_permitted" in str(await told(bank, "poll", json.dumps({"ref": ref}).encode()))
            finally:
                await shop.close()
                await bank.close()
            await mesh.client.stop("coder", timeout=60)

    run(main(), timeout=110)


@pytest.mark.case(680)
@pytest.mark.case(681)
@pytest.mark.case(682)
def test_tools_agents_and_servers_of_tools_know_whose_request_it_is(
    imported: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Chain] = {}

    @tool(effect="pure")
    async def look(call: ToolCall) -> None:
        """Look."""
        seen[call.agent] = call.chain

    class Model(Agent[None]):
        backend = "anthropic"
        tools = (look, agent_tool("coder"), stdio(tmp_path / "notes"))

        async def init_agent(self, options: dict[str, Any]) -> Init[None]:
            return Init(None, backend={"attempts": 1, "max_wait_s": 0.1})

        async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
            return Idle(state)

    async def main(fake: FakeMessages) -> None:
        async with local_mesh(_Mesh(imported), SUBJECTS, serves={"Model": Model}) as mesh:
            for name in ("boss", "coder"):
                await mesh.client.start_agent(name, kind="Model", timeout=60)
            fake.play([
                Answer(tools=(Tool("look", {}, "c1"), Tool("ask_coder", {"prompt": "look"}, "c2"))),
                Answer(tools=(Tool("look", {}, "c3"), Tool("shop__whose", {}, "c4"))),
                "seen",
                "done",
            ])  # fmt: skip
            shop = await connect(url(imported, "shop"), name="shop")
            try:
                asked = await shop.request("mesh.ask.boss", b"who asks?", timeout=90)
            finally:
                await shop.close()
            answer = json.loads(asked.data)
            assert answer.get("text") == "done", answer
            await mesh.told()
            begun = {name: mesh.seen("prompt_start", name)[0]["chain"] for name in ("boss", "coder")}
            report = await mesh.client.traces.trace(f"boss/{answer['ref']}")
            graph = (await mesh.client.traces.graph()).graph
            for name in ("boss", "coder"):
                await mesh.client.stop(name, timeout=60)
        user, boss, coder = (
            Party(kind="user", name="shop", account="CALLERS"),
            *(Party(kind="agent", name=name) for name in ("boss", "coder")),
        )
        assert seen == {"boss": (user,), "coder": (user, boss)}
        (of_server,) = [one for one in fake.calls[2].results if one["tool_use_id"] == "c4"]
        assert json.loads(of_server["content"]) == as_meta((user, boss, coder)) == [*begun["coder"], *as_meta((coder,))]
        assert begun["boss"] == as_meta((user,))
        chains = {branch.agent: branch.chain for _, branch in walk(report.branches) if branch.op == "process"}
        assert chains == {"boss": "user shop of CALLERS", "coder": "user shop of CALLERS -> agent boss"}
        assert ("user shop of CALLERS", "boss") in {(edge.source, edge.target) for edge in graph.edges}

    with FakeMessages() as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        run(main(fake), timeout=110)


@pytest.mark.case(635)
@pytest.mark.case(636)
@pytest.mark.case(637)
def test_whose_request_it_is_nobody_else_can_say(imported: Server) -> None:
    forged = {
        "Mesh_Chain": '[{"kind":"user","name":"shop","account":"CALLERS"}]',
        "Nats_Request_Info": '{"acc":"CALLERS","user":"shop"}',
        "nats_request_info": '{"acc":"CALLERS","user":"shop"}',
        "Mesh_From": "boss",
    }

    async def main() -> None:
        async with local_mesh(_Mesh(imported), SUBJECTS) as mesh:
            await mesh.client.start_agent("coder", kind="Guarded", timeout=60)
            shop, bank = [await connect(url(imported, name), name=name) for name in ("shop", "bank")]
            try:
                for headers in ({}, forged):
                    assert (await told(shop, "ask", b"one", **headers))["text"] == "one"
                    refused = await told(bank, "ask", b"two", **headers)
                    assert refused["error"]["code"] == "not_permitted" and "user bank of CALLERS" in refused["error"]["message"]
                    inside = await told(mesh.transport, "ask", b"three", **headers)
                    assert inside["error"]["code"] == "not_permitted" and "no user is known" in inside["error"]["message"]
                    straight = {name.replace("_", "-"): value for name, value in headers.items()}
                    got: list[Any] = []
                    inbox = mesh.transport.new_inbox()
                    await mesh.transport.subscribe(inbox, lambda message, got=got: got.append(json.loads(message.data)))  # type: ignore[misc]
                    straight["Mesh-Reply-To"] = inbox
                    await mesh.transport.request(SUBJECTS.inbox("coder"), b"four", headers=straight, timeout=30)
                    await eventually(lambda got=got: got, what="the refusal")
                    assert got[0]["error"]["code"] == "not_permitted"
                ref = (await told(shop, "tell", b"five"))["ref"]
                assert "ref" in await told(bank, "event-to", b"6")
                polled: dict[str, Any] = {}

                async def done() -> bool:
                    polled.update(await told(shop, "poll", json.dumps({"ref": ref}).encode()))
                    return bool(polled["status"] == "completed")

                await eventually(done, what="the outcome")
                assert polled["outcome"]["text"] == "five"
            finally:
                await shop.close()
                await bank.close()
            await mesh.client.stop("coder", timeout=60)

    run(main(), timeout=110)
