"""The mesh's writes by hand: what the protocol alone makes of an ask.

The caller stores mail and waits for its reply. The other side takes the mail from where the server republishes it, appends a
record behind the newest one, replies, stores the outcome and posts the facts: the messages of an ask, as many and as large. There
is no turn machine, no agent's code, no backend, no client library; nothing is recovered, and nothing is left out that is written.

Both sides use the mesh's connection layer (`agentmesh.edge`) and not nats-py's own: that takes about twice as much of a
core for each message, and would hide what the rest of the mesh adds.

The other side runs in a process of its own: `python by_hand.py URL REPLICAS`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

import msgspec

from agentmesh import wire
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message
from agentmesh.subjects import Subjects

SUBJECTS = Subjects("hand")
BODY = b"hello"
LIFE = "0123456789abcdef0123"
"""As long as an incarnation."""
RECORD_BYTES = 633
"""A record of the benchmark `journal`."""
FACTS = ("state_changed", "prompt_start", "prompt_stop", "state_changed")
FACT = b'{"v":1,"fact":"%b"}' % (b"x" * 112)
"""As long as a fact is on the average."""
SNAPSHOT_EVERY = 256
"""Records of an agent; the next one replaces them all."""
PURGE_EVERY = 500
"""Mail of an agent that is removed at a time: its lane holds 1,000."""


class ByHand:
    """The caller's side."""

    def __init__(self, transport: NatsTransport) -> None:
        self._t = transport
        self._inbox = transport.new_inbox()
        self._nonce = self._inbox.rpartition(".")[2]
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[wire.Outcome]] = {}

    async def start(self) -> None:
        """Listen for replies."""
        await self._t.subscribe(f"{self._inbox}.*", self._on_reply)

    async def ask(self, agent: str) -> None:
        """Store one prompt as mail, and wait for its outcome."""
        number = next(self._numbers)
        reply = f"{self._inbox}.{number}"
        answer = self._waiting[reply] = asyncio.get_running_loop().create_future()
        headers = {wire.FOR: LIFE, wire.REPLY_TO: reply}
        await store(self._t, SUBJECTS.inbox(agent), BODY, headers=headers, msg_id=f"{agent}.{self._nonce}{number:x}")
        assert (await answer).text == BODY.decode()

    def _on_reply(self, message: Message) -> None:
        self._waiting.pop(message.subject).set_result(wire.decode_outcome(message.data))


class _Hand:
    """The other side."""

    def __init__(self, transport: NatsTransport) -> None:
        self._t = transport
        self._newest: dict[str, int] = {}
        """Sequence of each agent's newest record: the fence."""
        self._counts: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: Message) -> None:
        """Answer the prompt in a republished piece of mail."""
        task = asyncio.Task(self._answer(message), loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Message) -> None:
        agent, ref = message.subject.rpartition(".")[2], message.headers["Nats-Sequence"]
        count = self._counts[agent] = self._counts.get(agent, 0) + 1
        outcome = wire.Outcome(agent=agent, ref=ref, ok=True, text=message.data.decode(), duration_ms=0, turn=count, node="n1")
        body = wire.encode_outcome(outcome)
        record = msgspec.json.encode({"outcome": outcome, "rest": "x" * (RECORD_BYTES - len(body) - 16)})
        appended = await store(
            self._t,
            SUBJECTS.journal(agent),
            record,
            headers={RECORD: f"{count:016x}"},
            expected=self._newest.get(agent, 0),
            rollup=count % SNAPSHOT_EVERY == 0,
        )
        self._newest[agent] = appended.seq
        await self._t.publish(message.headers[wire.REPLY_TO], body)
        self._t.post_all((SUBJECTS.event(agent, kind), FACT) for kind in FACTS)
        await store(self._t, SUBJECTS.result(agent, ref), body, expected=0)
        if count % PURGE_EVERY == 0:
            await purge(self._t, SUBJECTS.stream("mail"), SUBJECTS.inbox(agent), below=int(ref) + 1)


async def serve(url: str, replicas: int) -> None:
    """The other side, for ever."""
    transport = await connect(url, name="by-hand")
    await ensure(transport, SUBJECTS, replicas=replicas)
    await transport.subscribe(SUBJECTS.lane("live.inbox", "*"), _Hand(transport).take)
    await transport.flush()
    print("by hand ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
