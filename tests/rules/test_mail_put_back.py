"""Mail that was put back to an older state than the results: nobody gets somebody else's answer
(docs/design/020-outcomes-name-their-message.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.edge.transport import UNANSWERED, Message
from agentmesh.errors import AgentFailed, AskTimeout, NotFound, StoreLost
from agentmesh.wire import MSG_ID, Outcome, decode_outcome
from rules.scene import PATIENCE_S, Scene, open_gate, play

pytestmark = pytest.mark.slow

BY = pytest.mark.parametrize("by", [1, 1000])
OLD = "who are you?"
NEW = "gate:new anybody?"
ANSWER = "anybody?"


class PutBack:
    """A mesh whose agent `a1` has answered OLD, and whose streams are then put back to what they were before that."""

    def __init__(self, scene: Scene, *, journals: bool, named: bool) -> None:
        """
        Args:
            journals: all streams but that of results are put back; else only that of mail.
            named: the results are those of this build, which say whom they answer.
        """
        self.scene, self.named = scene, named
        self.subjects = scene.world.subjects
        streams = scene.server.streams
        roles = set(streams) - {self.subjects.stream("result")}
        self._streams = {name: streams[name] for name in (roles if journals else {self.subjects.stream("mail")})}
        self.ref = ""

    async def happen(self, by: int, *, alive: bool = False) -> None:
        """Answer OLD, store so many messages in all, and put the store back. With `alive`, the node lives on."""
        scene, world = self.scene, self.scene.world
        await scene.start("a1", "other")
        await scene.mesh.ask("a1", "hello", timeout=PATIENCE_S)
        await asyncio.sleep(5.0)
        backups = {name: stream.backup() for name, stream in self._streams.items()}
        outcome = await scene.mesh.ask_outcome("a1", OLD, timeout=PATIENCE_S)
        self.ref = outcome.ref
        for _ in range(by - 1):
            await store(scene.mesh.transport, self.subjects.inbox("nobody"), b"hello")
        await asyncio.sleep(5.0)
        if not self.named:
            await self._forget_names(outcome)
        processes = () if alive else ("n1", "s1")
        for name in processes:
            world.kill(name)
        world.net.stop_server()
        for name, stream in self._streams.items():
            stream.restore(backups[name])
        await asyncio.sleep(5.0)
        world.net.start_server()
        await scene.until(lambda: scene.mesh.transport.connected, "the client is connected again")
        for name in processes:
            world.restart(name)

    async def _forget_names(self, outcome: Outcome) -> None:
        """Make the stored outcome one of the build before."""
        subject = self.subjects.result("a1", self.ref)
        await purge(self.scene.mesh.transport, self.subjects.stream("result"), subject)
        plain = msgspec.structs.replace(outcome, msg_id=None, stored=None)
        await store(self.scene.mesh.transport, subject, msgspec.json.encode(plain))

    def results(self) -> list[str | None]:
        """The texts of all outcomes that are stored under the old ref."""
        subject = self.subjects.result("a1", self.ref)
        return [decode_outcome(m.data).text for m in self.scene.stored("result") if m.subject == subject]

    async def control(self, **request: Any) -> dict[str, Any]:
        """What the agent's owner replies, once it has one."""
        for _ in range(50):
            try:
                body = msgspec.json.encode(request)
                reply = await self.scene.mesh.transport.request(self.subjects.control("a1"), body, timeout=5.0)
            except UNANSWERED:
                await asyncio.sleep(1.0)
            else:
                return dict(msgspec.json.decode(reply.data))
        raise AssertionError("the agent has no owner")


def put_back(
    story: Callable[[PutBack], Awaitable[None]], *, journals: bool, named: bool = True, nodes: tuple[str, ...] = ("n1",)
) -> None:
    async def in_scene(scene: Scene) -> None:
        await story(PutBack(scene, journals=journals, named=named))

    in_scene.__name__ = story.__name__
    play(in_scene, nodes=nodes)


NAMED = pytest.mark.parametrize("named", [True, False], ids=["this build's", "the build before's"])


# --- everything but the results is older: agents work ---------------------------------------------------------------
@pytest.mark.case(270)
@pytest.mark.case(271)
@pytest.mark.parametrize("key", [None, "order-7"])
@NAMED
@BY
def test_an_ask_waits_for_its_own_answer(by: int, named: bool, key: str | None) -> None:
    async def story(mesh: PutBack) -> None:
        await mesh.happen(by)
        asking = asyncio.ensure_future(mesh.scene.mesh.ask("a1", NEW, timeout=PATIENCE_S, idempotency_key=key))
        await asyncio.sleep(15.0)  # results are looked up meanwhile, and the old one is found
        assert not asking.done()
        open_gate("new")
        response = await asking
        assert (response.ref, response.text) == (mesh.ref, ANSWER)
        await asyncio.sleep(1.0)
        assert mesh.results() == [OLD, ANSWER], "its own stands behind the other"
        found = (await mesh.scene.mesh.poll("a1", mesh.ref)).outcome
        assert found is not None and found.text == ANSWER

    put_back(story, journals=True, named=named)


@pytest.mark.case(272)
@NAMED
@BY
@pytest.mark.parametrize("msg_id", ["a1.order-7", None])
def test_a_poll_is_pending_until_the_message_under_that_ref_has_its_own_outcome(by: int, named: bool, msg_id: str | None) -> None:
    async def story(mesh: PutBack) -> None:
        await mesh.happen(by)
        client, subject = mesh.scene.mesh, mesh.subjects.inbox("a1")
        stored = await store(client.transport, subject, NEW.encode(), headers={MSG_ID: msg_id} if msg_id else None)
        assert str(stored.seq) == mesh.ref
        assert (await client.poll("a1", mesh.ref)).status == "pending", "before an owner has seen it, too"
        assert (await mesh.control(op="poll", ref=mesh.ref))["status"] == "pending"
        await asyncio.sleep(10.0)
        assert (await client.poll("a1", mesh.ref)).status == "pending"
        assert (await mesh.control(op="poll", ref=mesh.ref))["status"] == "pending"
        open_gate("new")
        await mesh.scene.until(lambda: len(mesh.results()) == 2, "it is answered")
        outcome = (await client.poll("a1", mesh.ref)).outcome
        assert outcome is not None and outcome.text == ANSWER and outcome.msg_id == msg_id
        assert (await mesh.control(op="poll", ref=mesh.ref))["outcome"]["text"] == ANSWER
        await purge(client.transport, mesh.subjects.stream("mail"), subject)
        assert (await client.poll("a1", mesh.ref)).outcome == outcome

    put_back(story, journals=True, named=named)


@pytest.mark.case(270)
@NAMED
@BY
def test_a_repeated_id_gets_the_answer_to_its_own_message(by: int, named: bool) -> None:
    async def story(mesh: PutBack) -> None:
        await mesh.happen(by)
        client = mesh.scene.mesh
        told = await client.tell("a1", NEW, idempotency_key="order-7")
        assert told == mesh.ref
        asks = [asyncio.ensure_future(client.ask("a1", NEW, timeout=PATIENCE_S, idempotency_key="order-7")) for _ in range(2)]
        heard: list[Message] = []
        await client.transport.subscribe("_INBOX.plain", heard.append)
        await mesh.scene.until(lambda: "n1" in mesh.scene.world.nodes, "the node is there")
        await asyncio.sleep(5.0)
        for _ in range(2):
            ask = {MSG_ID: "a1.order-7"}
            await client.transport.publish(mesh.subjects.ask("a1"), NEW.encode(), headers=ask, reply="_INBOX.plain")
        await asyncio.sleep(15.0)
        assert not heard and not any(ask.done() for ask in asks)
        open_gate("new")
        assert [(await ask).text for ask in asks] == [ANSWER, ANSWER]
        await mesh.scene.until(lambda: len(heard) == 2, "the gateway answers both")
        assert [decode_outcome(message.data).text for message in heard] == [ANSWER, ANSWER]

    put_back(story, journals=True, named=named)


@pytest.mark.case(270)
@BY
def test_the_gateway_answers_with_what_was_asked(by: int) -> None:
    async def story(mesh: PutBack) -> None:
        await mesh.happen(by)
        await mesh.control(op="status")
        open_gate("new")
        reply = await mesh.scene.mesh.transport.request(mesh.subjects.ask("a1"), NEW.encode(), timeout=PATIENCE_S)
        outcome = decode_outcome(reply.data)
        assert (outcome.ref, outcome.text) == (mesh.ref, ANSWER)

    put_back(story, journals=True)


@pytest.mark.case(272)
def test_who_polls_with_an_id_is_refused_the_outcome_of_another_message() -> None:
    async def story(mesh: PutBack) -> None:
        await mesh.happen(1)
        client = mesh.scene.mesh
        open_gate("new")
        await client.ask("a1", NEW, timeout=PATIENCE_S, idempotency_key="mine")
        for _ in range(2):
            found = (await client.poll("a1", mesh.ref, idempotency_key="mine")).outcome
            assert found is not None and found.text == ANSWER
            with pytest.raises(NotFound, match="answers another message"):
                await client.poll("a1", mesh.ref, idempotency_key="yours")
            await purge(client.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox("a1"))

    put_back(story, journals=True)


# --- only the mail is older: agents stop -----------------------------------------------------------------------------
@pytest.mark.case(270)
@pytest.mark.case(273)
@pytest.mark.parametrize("alive", [True, False], ids=["the node lives on", "the node is started again"])
@NAMED
@BY
def test_an_agent_that_has_consumed_more_than_the_mail_holds_answers_nobody(by: int, named: bool, alive: bool) -> None:
    """Also where the new message has the very sequence that the agent has consumed last: it must not be taken for that one."""

    async def story(mesh: PutBack) -> None:
        await mesh.happen(by, alive=alive)
        client = mesh.scene.mesh
        open_gate("new")
        with pytest.raises((AgentFailed, StoreLost, AskTimeout)):
            await client.ask("a1", NEW, timeout=PATIENCE_S)
        assert mesh.results() == [OLD]
        spec = mesh.scene.spec("a1")
        assert spec.status == "failed" and spec.reason is not None and spec.reason.code == "store_lost"
        assert mesh.scene.world.nodes["n1"].not_ready() is not None

    put_back(story, journals=False, named=named)


@pytest.mark.case(273)
@pytest.mark.parametrize("regrown", [False, True])
def test_a_node_says_at_its_start_that_the_mail_is_older_than_the_results(
    caplog: pytest.LogCaptureFixture, regrown: bool
) -> None:
    async def story(mesh: PutBack) -> None:
        with caplog.at_level(logging.CRITICAL, "agentmesh.node"):
            await mesh.happen(3, alive=True)
            if regrown:
                await asyncio.sleep(120.0)
                caplog.clear()
                await mesh.scene.mesh.ask("other", "hello", timeout=PATIENCE_S)
                for _ in range(5):
                    await store(mesh.scene.mesh.transport, mesh.subjects.inbox("nobody"), b"hello")
                mesh.scene.world.kill("n1")
                mesh.scene.world.restart("n1")
            await asyncio.sleep(20.0)
        said = [record.getMessage() for record in caplog.records if "put back to an older state" in record.getMessage()]
        assert said and "docs/operations.md#a-store-that-was-put-back" in said[0]
        assert ("given again" in said[0]) == regrown

    put_back(story, journals=False)


def test_an_ordinary_mesh_is_not_suspected(caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a1")
        for _ in range(5):
            await scene.mesh.ask("a1", "hello", timeout=PATIENCE_S)
        await asyncio.sleep(200.0)  # the mail is purged
        for _ in range(2):
            scene.world.kill("n1")
            scene.world.restart("n1")
            await scene.mesh.ask("a1", "hello", timeout=PATIENCE_S)
            await asyncio.sleep(5.0)
            scene.world.net.stop_server()
            await asyncio.sleep(5.0)
            scene.world.net.start_server()
            await asyncio.sleep(5.0)
            await scene.mesh.ask("a1", "hello", timeout=PATIENCE_S)

    with caplog.at_level(logging.CRITICAL, "agentmesh.node"):
        play(story)
    assert not caplog.records
