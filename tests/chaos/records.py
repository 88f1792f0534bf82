"""The tapes of a run, and the evidence on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from agentmesh.edge.api import call_api
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.stream_configs import stream_configs
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message
from agentmesh.ledger import apply
from agentmesh.records import Ledger, Record, decode_record
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, decode_outcome
from chaos.tape import Tape
from judge.evidence import Evidence, Letter, Operation, letter_of, outcome_of

REPLICAS = 3
_JOURNAL_COPIES = "chaos.journal.>"
"""Where the journal's stream republishes to. A mesh does not do that by itself; here its stream is made with it beforehand."""


class Recorder:
    """Records the journal's, the mail's and the results' streams of a mesh, and what callers are told."""

    def __init__(self, urls: Sequence[str], subjects: Subjects, clock: Callable[[], float], *, replicas: int = REPLICAS) -> None:
        self._urls = urls
        self._subjects = subjects
        self._clock = clock
        self._replicas = replicas
        self._stack = contextlib.AsyncExitStack()
        self._told: dict[tuple[str, bytes], Outcome] = {}
        self._ledgers: dict[str, Ledger | None] = {}
        self._newest: dict[str, Record] = {}
        self._applied = 0
        self.ears: list[NatsTransport] = []
        """A connection to each server, past whatever is cut."""

    async def start(self) -> None:
        """Make the mesh's streams, and record from now on."""
        for index, url in enumerate(self._urls):
            ear = await connect(url, name=f"recorder-{index}", connect_timeout=20.0)
            self._stack.push_async_callback(ear.close)
            self.ears.append(ear)
        s = self._subjects
        await self._make_streams()
        self.journal = await self._tape(s.stream("journal"), s.journal(">"), _JOURNAL_COPIES)
        self.mail = await self._tape(s.stream("mail"), s.mail_filter(">"), s.copies(">"))
        self.results = await self._tape(s.stream("result"), f"{s.root}.result.>", f"{s.root}.done.>")

    async def _tape(self, stream: str, filter: str, copies: str) -> Tape:
        tape = Tape(stream, filter, self.ears, self._clock)
        await tape.listen(copies)
        task = asyncio.create_task(tape.follow(), name=f"tape {stream}")

        async def end() -> None:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()

        self._stack.push_async_callback(end)
        return tape

    async def _make_streams(self) -> None:
        name = self._subjects.stream("journal")
        config = stream_configs(self._subjects, replicas=self._replicas, max_payload=self.ears[0].max_payload)[name]
        config["republish"] = {"src": self._subjects.journal(">"), "dest": _JOURNAL_COPIES}
        await call_api(self.ears[0], f"STREAM.CREATE.{name}", config, timeout=20.0)
        await ensure(self.ears[0], self._subjects, replicas=self._replicas)

    async def overhear(self, inbox: str) -> None:
        """Record what is told to the caller that listens under `inbox`."""
        for ear in self.ears:
            await ear.subscribe(f"{inbox}.*", self._heard)

    def _heard(self, message: Message) -> None:
        outcome = outcome_of(message.data)
        if outcome is not None:
            self._told.setdefault((message.subject, message.data), outcome)

    async def close(self) -> None:
        """Stop recording."""
        await self._stack.aclose()

    # --- what is there so far -------------------------------------------------------------------------------------
    def letters(self) -> list[Letter]:
        """All mail."""
        letters = []
        for message in self.mail.in_order():
            parsed = self._subjects.parse_lane(message.subject)
            assert parsed is not None, message.subject
            letters.append(letter_of(message.seq, *parsed, message.data, message.headers))
        return letters

    def answered(self) -> dict[tuple[str, str], float]:
        """When each request got its outcome, by agent and ref."""
        found: dict[tuple[str, str], float] = {}
        for seq, message in self.results.messages.items():
            outcome = decode_outcome(message.data)
            found[outcome.agent, outcome.ref] = self.results.heard_at[seq]
        return found

    def agents(self) -> dict[str, tuple[Record, Ledger | None]]:
        """The newest record of each agent, and its ledger."""
        head = len(self._subjects.journal(""))
        while (message := self.journal.messages.get(self._applied + 1)) is not None:
            self._applied += 1
            agent, record = message.subject[head:], decode_record(message.data)
            self._newest[agent] = record
            self._ledgers[agent] = apply(self._ledgers.get(agent), record, message.seq)
        return {agent: (record, self._ledgers[agent]) for agent, record in self._newest.items()}

    def evidence(self, operations: Sequence[Operation]) -> Evidence:
        """All of it, for the judge."""
        head = len(self._subjects.journal(""))
        journals: dict[str, list[tuple[int, Record]]] = defaultdict(list)
        for message in self.journal.in_order():
            journals[message.subject[head:]].append((message.seq, decode_record(message.data)))
        results = [decode_outcome(message.data) for message in self.results.in_order()]
        return Evidence(list(operations), self.letters(), dict(journals), results, list(self._told.values()))

    async def finish(self) -> list[str]:
        """Read what is missing. Returns what is wrong with the store or the recording."""
        wrong = []
        for tape in (self.journal, self.mail, self.results):
            holes = await tape.finish()
            wrong += tape.contradictions
            if holes:
                wrong.append(f"{len(holes)} messages of {tape.stream} were dropped before they could be recorded: {holes[:10]}")
        return wrong
