"""The in-memory server answers as nats-server does: the same random operations to both, and equal answers."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentmesh.edge.frames import parse_headers
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message, NoResponders, Transport
from agentmesh.errors import MeshError
from agentmesh.subjects import Subjects
from sim.loop import Process, SimLoop, run_sim
from sim.net import Network, SimTransport
from sim.server import Faults
from support import Server, connected, run

pytestmark = pytest.mark.processes

S = Subjects()
OPERATIONS = 400
LIMIT = 5
"""Bound of a mail lane here: reached all the time."""
SUBJECTS = {
    "mail": [S.inbox("a"), S.inbox("b"), S.notify("a"), S.lane("peer-inbox", "a"), S.lane("peer-notify", "b")],
    "journal": [S.journal("a"), S.journal("b")],
    "result": [S.result("a", "1"), S.result("a", "2"), S.result("b", "1")],
    "registry": [S.registry_key("agents.a"), S.registry_key("agents.b"), S.registry_key("nodes.n1")],
    "dead": [S.dead("a")],
    "timer": [S.timer("a", "t1"), S.timer("a", "t2"), S.due("a")],
}
PATTERNS = ["mesh.*.a", "mesh.*.b", "mesh.>", "mesh.result.a.*", "$KV.mesh-registry.agents.*", "$KV.mesh-registry.>", ">"]
_VOLATILE = ("Nats-Time-Stamp",)

type Answer = Any
type Play = Callable[[Transport], Coroutine[Any, Any, list[Answer]]]


# --- one session --------------------------------------------------------------------------------------------------
class Session:
    """Random operations on one server; what they choose depends on the seed and on earlier answers only."""

    def __init__(self, transport: Transport, seed: int) -> None:
        self._t = transport
        self._dice = random.Random(seed)
        self._last: dict[str, int] = {}
        self._ids: list[str] = []
        self.answers: list[Answer] = []
        self.copies: list[Answer] = []

    async def play(self) -> list[Answer]:
        for pattern in ("mesh.live.>", "mesh.done.>", "mesh.registry.>"):
            await self._t.subscribe(pattern, lambda message: self.copies.append(_shown(message)))
        await ensure(self._t, S, mailbox_limit=LIMIT)
        await self._t.flush()
        for _ in range(OPERATIONS):
            act = self._dice.choices(
                (self._publish, self._leader_get, self._one, self._batch, self._multi, self._purge, self._delete, self._info),
                (12, 3, 2, 3, 3, 1, 1, 1),
            )[0]
            self.answers.append(await act())
        await self._t.flush()
        return [*self.answers, ("republished", sorted(map(str, self.copies)))]

    def _role(self) -> Any:
        return self._dice.choice(sorted(SUBJECTS))

    async def _publish(self) -> Answer:
        dice = self._dice
        subject = dice.choice(SUBJECTS[self._role()])
        headers: dict[str, str] = {"Mesh-Test": str(len(self.answers))}
        expected = dice.choice((None, None, 0, -1, self._last.get(subject, 0), self._last.get(subject, 0)))
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(max(0, expected if expected >= 0 else dice.randint(0, 99)))
        if dice.random() < 0.3:
            headers["Nats-Msg-Id"] = f"id{dice.randint(1, 40)}"
        if dice.random() < 0.1:
            headers["Nats-Rollup"] = "sub"
        if (
            expected is None and "Nats-Rollup" not in headers and dice.random() < 0.2
        ):  # which of two faults is named is the server's affair
            headers["Nats-TTL"] = dice.choice(("3600", "0", "x"))
        body = dice.randbytes(dice.randint(0, 30)).hex().encode()
        reply = await self._t.request(subject, body, headers=headers, timeout=5)
        ack = json.loads(reply.data)
        if "seq" in ack and "error" not in ack and "duplicate" not in ack:
            self._last[subject] = ack["seq"]
        return "publish", subject, headers, ack.get("seq"), ack.get("duplicate", False), ack.get("error")

    async def _leader_get(self) -> Answer:
        role = self._role()
        seq = self._dice.randint(0, 60)
        body = self._dice.choice(
            (
                {"last_by_subj": self._dice.choice([*SUBJECTS[role], *PATTERNS])},
                {"seq": seq, "next_by_subj": self._dice.choice([*SUBJECTS[role], *PATTERNS])},
                {"seq": max(1, seq)},
            )
        )
        reply = await self._t.request(f"$JS.API.STREAM.MSG.GET.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        got = json.loads(reply.data)
        message = got.get("message")
        if message is not None:
            headers = parse_headers(base64.b64decode(message.get("hdrs", "")))[1]
            got = (message["subject"], message["seq"], message.get("data", ""), headers)
        return "leader get", role, body, got if isinstance(got, tuple) else got["error"]

    async def _one(self) -> Answer:
        role = self._role()
        body = self._dice.choice(
            (
                {"last_by_subj": self._dice.choice(SUBJECTS[role])},
                {"seq": self._dice.randint(1, 60)},
                {"seq": self._dice.randint(1, 60), "next_by_subj": self._dice.choice(SUBJECTS[role])},
            )
        )
        reply = await self._t.request(f"$JS.API.DIRECT.GET.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        return "direct get", role, body, _shown(reply)

    async def _batch(self) -> Answer:
        role = self._role()
        body: dict[str, Any] = {
            "seq": self._dice.randint(1, 60),
            "next_by_subj": self._dice.choice([*SUBJECTS[role], *PATTERNS]),
            "batch": self._dice.choice((1, 2, 5, 256)),
        }
        return "batch", role, body, await self._many(role, body)

    async def _multi(self) -> Answer:
        role = self._role()
        chosen = self._dice.sample([*SUBJECTS[role], *PATTERNS], self._dice.randint(1, 3))
        return "multi", role, chosen, await self._many(role, {"multi_last": chosen})

    async def _many(self, role: Any, body: dict[str, Any]) -> Answer:
        replies = await self._t.request_many(f"$JS.API.DIRECT.GET.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        return [_shown(reply) for reply in replies]

    async def _purge(self) -> Answer:
        role = self._role()
        body: dict[str, Any] = {"filter": self._dice.choice([*SUBJECTS[role], *PATTERNS[:-1]])}
        if self._dice.random() < 0.8:
            body["seq"] = self._dice.randint(2, 60)
        reply = await self._t.request(f"$JS.API.STREAM.PURGE.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        answer = json.loads(reply.data)
        return "purge", role, body, answer.get("purged"), answer.get("error")

    async def _delete(self) -> Answer:
        role = self._role()
        body = {"seq": self._dice.randint(1, 60), "no_erase": True}
        reply = await self._t.request(f"$JS.API.STREAM.MSG.DELETE.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        answer = json.loads(reply.data)
        return "delete", role, body, answer.get("success"), answer.get("error")

    async def _info(self) -> Answer:
        role = self._role()
        body = {"subjects_filter": self._dice.choice([*SUBJECTS[role], *PATTERNS])}
        reply = await self._t.request(f"$JS.API.STREAM.INFO.{S.stream(role)}", json.dumps(body).encode(), timeout=5)
        state = json.loads(reply.data)["state"]
        return "info", role, body, state["messages"], state["first_seq"], state["last_seq"], state.get("subjects") or {}


def _shown(message: Message) -> Answer:
    headers = {k: v for k, v in message.headers.items() if k not in _VOLATILE and k != "Description"}
    subject = "reply" if message.subject.startswith("_INBOX.") else message.subject
    return subject, message.status, message.data.decode(), sorted(headers.items())


# --- both servers -------------------------------------------------------------------------------------------------
def _real(server: Server, play: Play) -> list[Answer]:
    async def main() -> list[Answer]:
        async with connected(server.url) as transport:
            return await play(transport)

    return run(main(), timeout=60)


class _Late(Faults):
    def lateness(self) -> float:
        return 0.1


def _simulated(play: Play) -> list[Answer]:
    async def main(loop: SimLoop) -> list[Answer]:
        process = Process(loop, "p")
        network = Network(loop, random.Random(1))
        network.server.faults = _Late()
        transport = SimTransport(network, process, "p")

        async def inside() -> list[Answer]:
            await transport.open()
            return await play(transport)

        return await process.spawn(inside())

    return run_sim(main)


def _compare(play: Play) -> None:
    with Server() as server:
        real = _real(server, play)
    simulated = _simulated(play)
    for index, (wanted, found) in enumerate(zip(real, simulated, strict=True)):
        assert found == wanted, f"answer {index} differs"


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_get_the_answers_of_the_real_server(seed: int) -> None:
    _compare(lambda transport: Session(transport, seed).play())


def test_expired_keys_leave_markers_and_schedules_fire_as_on_the_real_server() -> None:
    async def play(t: Transport) -> list[Answer]:
        seen: list[Answer] = []
        for pattern in ("mesh.live.>", "mesh.registry.>"):
            await t.subscribe(pattern, lambda message: seen.append(_shown(message)))
        await ensure(t, S)
        await t.flush()
        key = S.registry_key("nodes.n1")
        await t.request(key, b"lease", headers={"Nats-TTL": "1"}, timeout=5)
        await t.request(S.registry_key("nodes.n2"), b"", headers={"Nats-TTL": "1", "KV-Operation": "PURGE"}, timeout=5)
        soon = {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": S.due("a"), "Mesh-Origin": "1.2.3"}
        refused = await t.request(S.timer("a", "t0"), b"x", headers={**soon, "Nats-Schedule-Target": "elsewhere"}, timeout=5)
        for body in (b"first", b"second"):  # the second replaces the first
            await t.request(S.timer("a", "t1"), body, headers=soon, timeout=5)
        late = {**soon, "Nats-Schedule": "@at 2120-01-01T00:00:00Z"}
        await t.request(S.timer("a", "t2"), b"never", headers=late, timeout=5)
        for _ in range(100):
            if len(seen) >= 5:
                break
            await asyncio.sleep(0.05)
        body = json.dumps({"multi_last": [S.registry_key("nodes.n2")]}).encode()
        for _ in range(100):  # a marker goes without a sign
            if len(await t.request_many(f"$JS.API.DIRECT.GET.{S.stream('registry')}", body, timeout=5)) == 1:
                break
            await asyncio.sleep(0.05)
        answers: list[Answer] = [sorted(map(str, seen)), json.loads(refused.data).get("error", {}).get("err_code")]
        for role in ("registry", "timer"):
            body = json.dumps({"multi_last": [">"]}).encode()
            replies = await t.request_many(f"$JS.API.DIRECT.GET.{S.stream(role)}", body, timeout=5)
            answers.append([_shown(reply) for reply in replies])
        return answers

    _compare(play)


def test_core_messages_reach_whom_they_reach_on_the_real_server() -> None:
    async def play(t: Transport) -> list[Answer]:
        got: list[Answer] = []
        for name, pattern, queue in (
            ("plain", "x.*", ""),
            ("deep", "x.>", ""),
            ("q", "x.*", "group"),
            ("q", "x.a", "group"),
            ("gone", "x.a", ""),
        ):

            def note(message: Message, name: str = name) -> None:
                got.append((name, message.subject))

            subscription = await t.subscribe(pattern, note, queue=queue)
            if name == "gone":
                await subscription.unsubscribe()
        await t.flush()
        for subject in ("x.a", "x.b", "x.a.b", "x", "y"):
            await t.publish(subject, b"1")
        await t.flush()
        answers: list[Answer] = [sorted(got)]
        for subject in ("y", "mesh.inbox.a", "$JS.API.STREAM.INFO.NONE", "$JS.API.DIRECT.GET.NONE"):
            try:
                reply = await t.request(subject, b"{}", timeout=5)
                answers.append((subject, json.loads(reply.data)["error"]["err_code"]))
            except (NoResponders, MeshError) as error:
                answers.append((subject, type(error).__name__))
        return answers

    _compare(play)
