"""A stand-in for what hosts agents: enough of an owner and of a supervisor to show what the client does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.edge import streams
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Entry, Registry, View, decode_spec
from agentmesh.edge.transport import Message, Subscription, Transport
from agentmesh.errors import MeshError
from agentmesh.registry_values import Placement, Spec
from agentmesh.subjects import LANES, Subjects, placement_key, spec_key
from agentmesh.wire import ErrorBody, Mail, Outcome
from agentmesh_client import Mesh, connect
from support import Server, connected

type Answer = Callable[[Mail], str | MeshError]


class Owner:
    """Answers an agent's prompts and control requests, as an owner does; nothing else of an owner is here."""

    def __init__(self, transport: Transport, subjects: Subjects, agent: str, answer: Answer | None = None) -> None:
        self._transport = transport
        self._subjects = subjects
        self._agent = agent
        self._answer = answer or (lambda mail: f"echo: {mail.prompt.prompt if mail.prompt else ''}")
        self._subscription: Subscription | None = None
        self.replies: dict[str, Mapping[str, Any] | None] = {}
        """Replies to control requests by `op`; None answers nothing."""
        self.requests: list[dict[str, Any]] = []
        self.mail: list[Mail] = []
        self.headers: list[Mapping[str, str]] = []
        self.silent = False
        """Store outcomes, but send no reply: what a lost core message looks like."""
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._prompts: asyncio.Queue[Mail] = asyncio.Queue()
        self._turns: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Owner:
        self._turns = asyncio.create_task(self._work())
        self._subscription = await self._transport.subscribe(self._subjects.copies(self._agent), self._on_message)
        await self._transport.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait((self._turns,))

    async def _work(self) -> None:
        while True:
            mail = await self._prompts.get()
            await self.go_on.wait()
            await self.finish(mail)

    async def _on_message(self, message: Message) -> None:
        lane, _ = self._subjects.parse_copy(message.subject) or ("", "")
        if lane == "control":
            await self._control(message)
            return
        mail = wire.decode_mail(
            LANES[lane], int(message.headers["Nats-Sequence"]), message.data, message.headers, root=self._subjects.root
        )
        self.mail.append(mail)
        self.headers.append(message.headers)
        if lane == "inbox":
            self._prompts.put_nowait(mail)

    async def _control(self, message: Message) -> None:
        request = msgspec.json.decode(message.data)
        self.requests.append(request)
        reply = self.replies.get(request["op"], {"error": {"code": "bad_request", "message": "not scripted"}})
        if reply is not None:
            await self._transport.publish(message.reply, wire.encode({"v": 1, **reply}))

    async def finish(self, mail: Mail) -> None:
        """Store the outcome of a prompt, and tell its caller."""
        said = self._answer(mail)
        common: dict[str, Any] = {"agent": self._agent, "ref": mail.ref, "turn": len(self.mail), "node": "n1"}
        if isinstance(said, str):
            outcome = Outcome(ok=True, text=said, usage={"output_tokens": 2}, duration_ms=3, session_id="s1", **common)
        else:
            outcome = Outcome(ok=False, error=ErrorBody.of(said), **common)
        body = wire.encode_outcome(outcome)
        with contextlib.suppress(WrongLastSequence):
            await store(self._transport, self._subjects.result(self._agent, mail.ref), body, expected=0)
        if mail.reply_to is not None and not self.silent:
            await self._transport.publish(mail.reply_to, body)


class Placer:
    """A stand-in for supervisor and node: takes up wanted agents, ends those that are being stopped."""

    def __init__(self, registry: Registry, decide: Callable[[Spec], Spec] | None = None) -> None:
        self._registry = registry
        self._decide = decide or (lambda spec: msgspec.structs.replace(spec, status="running"))
        self._changes: asyncio.Queue[Entry] = asyncio.Queue()
        self._view = View(registry, ["agents.>"], self._changes.put_nowait)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Placer:
        await self._view.start()
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._view.close()

    async def _work(self) -> None:
        while True:
            entry = await self._changes.get()
            if entry.value is None:
                continue
            spec = decode_spec(entry)
            new = spec
            if spec.status == "wanted":
                new = self._decide(spec)
            elif spec.status == "stopping":
                new = msgspec.structs.replace(spec, status="stopped")
            if new == spec:
                continue
            if new.status == "running":
                await place(self._registry, entry.key.partition(".")[2], spec.incarnation)
            with contextlib.suppress(WrongLastSequence):
                await self._registry.update(entry.key, wire.encode(new), entry.revision)


async def place(registry: Registry, agent: str, incarnation: str, node: str = "n1") -> None:
    """Write the placement of an agent."""
    key = placement_key(node, agent)
    value = wire.encode(Placement(incarnation=incarnation))
    old = await registry.get(key)
    if old is None:
        await registry.create(key, value)
    else:
        await registry.update(key, value, old.revision)


class World:
    """One mesh on a test's server, seen from both sides."""

    def __init__(self, mesh: Mesh, transport: Transport, subjects: Subjects) -> None:
        self.mesh = mesh
        self.transport = transport
        self.subjects = subjects
        self.registry = Registry(transport, subjects)

    def owner(self, agent: str, answer: Answer | None = None) -> Owner:
        """An owner of `agent`; it acts while it is entered."""
        return Owner(self.transport, self.subjects, agent, answer)

    def placer(self, decide: Callable[[Spec], Spec] | None = None) -> Placer:
        """A supervisor and a node; they act while it is entered."""
        return Placer(self.registry, decide)

    async def write_spec(self, agent: str, **fields: Any) -> Spec:
        """Put a spec into the registry, whatever was there."""
        spec = Spec(**{"kind": "Coder", "incarnation": "life1", "status": "running", **fields})
        old = await self.registry.get(spec_key(agent))
        if old is None:
            await self.registry.create(spec_key(agent), wire.encode(spec))
        else:
            await self.registry.update(spec_key(agent), wire.encode(spec), old.revision)
        return spec

    async def spec(self, agent: str) -> Spec:
        """The spec as it stands."""
        entry = await self.registry.get(spec_key(agent))
        assert entry is not None, f"{agent} has no spec"
        return decode_spec(entry)


@contextlib.asynccontextmanager
async def world(server: Server, subjects: Subjects, *, mailbox_limit: int = 1000) -> AsyncIterator[World]:
    """A fresh mesh on `server`, with a client and a connection for the hosting side."""
    async with connected(server.url, name="host") as transport:
        await streams.ensure(transport, subjects, mailbox_limit=mailbox_limit)
        async with connect(server.url, root=subjects.root) as mesh:
            yield World(mesh, transport, subjects)
