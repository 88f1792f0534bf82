"""A synchronous world around the turn machine, for tests.

`Rig` plays the owner of one agent: it feeds inputs, performs commands, runs callbacks of a real `Agent` class, keeps a
journal (encoded and decoded as an owner would), a server that stores mail, and what callers and telemetry got. The test ends
prompt tasks, and may hold callbacks, commits and acknowledgements back to look between two steps.

After every committed record the journal is folded anew and compared with what the owner holds in memory; `step` must neither
raise nor change the core it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec
from msgspec import Raw, structs

from agentmesh import callback_context
from agentmesh import ledger as book
from agentmesh.agent import Agent, Idle, Init, overridden
from agentmesh.backend import Event, Response
from agentmesh.callback_results import NONE, Codec, raised_error
from agentmesh.records import NOTHING, Effect, Ledger, Open, Record, Resolve, SendMail, decode_record, encode_record, version_of
from agentmesh.turn import machine
from agentmesh.turn.draft import depth
from agentmesh.turn.values import (
    AnswerControl,
    Append,
    Arrived,
    AttemptSpans,
    Backoff,
    BackoffOver,
    Cancel,
    CancelCallback,
    Choice,
    Command,
    Committed,
    Config,
    Core,
    CutShort,
    EffectsDone,
    Emit,
    Input,
    Interrupt,
    KillTurn,
    Misbehaved,
    Perform,
    Phase,
    Raised,
    Resume,
    Returned,
    RunCallback,
    RunTurn,
    SetStatus,
    Start,
    Stop,
    Sweep,
    Swept,
    Tick,
    TurnAttempt,
    TurnEnded,
    Wake,
    Watchdog,
)
from agentmesh.wire import ErrorBody, Mail, Outcome, PromptBody


def spans_of(attempt: TurnAttempt) -> AttemptSpans:
    """What the spans of an attempt have, found beside it: the machine does not know that anybody has asked."""
    return attempt.find(attempt)


SESSION_HOOKS = ("start_session", "resume_session", "change_options", "terminate_session")


class Plain(Agent[list[Any]]):
    """An agent whose state is a list; `handle_response` appends the answer's text."""

    def init_agent(self, options: dict[str, Any]) -> Any:
        return Init([])

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        return Idle([*state, response.text])


def agent(**callbacks: Callable[..., Any]) -> type[Plain]:
    """A `Plain` agent with these callbacks (plain functions that take `self`)."""
    return type("Scripted", (Plain,), callbacks)


def error(code: str, message: str = "") -> ErrorBody:
    return ErrorBody(code=code, message=message)


_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode


def _image(core: Core) -> bytes:
    """All that a core holds, as bytes: what has changed in it shows. What its attempt has worked out is no change."""
    active = core.active
    if active is not None and active.attempt is not None:
        attempt = structs.replace(active.attempt, found=None)
        core = structs.replace(core, active=structs.replace(active, attempt=attempt))
    return _encode(core)


class Rig:
    """One agent's owner, its server and its callers. `hold` names hooks whose callbacks wait for `release`."""

    def __init__(self, cls: type[Agent[Any]] = Plain, *, hold: tuple[str, ...] = (), start: bool = True, **config: Any) -> None:
        self.cls = cls
        self.config = Config(name="coder", kind="Coder", hooks=overridden(cls), **config)
        self.codec = Codec(cls)
        self.hold = set(hold)
        self.auto_commit = True
        self.auto_done = True
        self.auto_restart = True
        self.now = 1000.0
        # The server: survives the owner.
        self.seq = 0
        self.journal_seq = 0
        self.mail: dict[tuple[str, int], Mail] = {}
        self.journal: list[tuple[int, bytes]] = []
        self.written: list[Record] = []
        """All records, also those that a snapshot has dropped."""
        self.outcomes: dict[str, Outcome] = {}
        self.performed: dict[str, Effect] = {}
        self.order: list[Effect] = []
        self.status: SetStatus | None = None
        self.halts = 0
        """Records that halted the agent."""
        # What was seen.
        self.calls: list[str] = []
        self.last_event: Any = None
        """What `handle_event` was called with last."""
        self.prompts: list[str] = []
        self.turns: list[RunTurn] = []
        self.emits: list[Emit] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.trail: list[str] = []
        self.wakes: list[float] = []
        self.backoffs: list[float] = []
        self.begun: dict[str, AttemptSpans] = {}
        """The attempts that have begun, by the ids of their spans, where turns are traced."""
        self.lost: set[str] = set()
        """Those that ran when their owner died."""
        self.generation = 0
        self._life = "life-1"
        self._ids = 0
        self._reset()
        if start:
            self.activate()

    def _reset(self) -> None:
        self.task: RunTurn | None = None
        self.held: deque[RunCallback] = deque()
        self.appending: Append | None = None
        self.undone: dict[str, Open] = {}
        self._queue: deque[Input] = deque()
        self._busy = False

    # --- owning -----------------------------------------------------------------------------------------------------
    def activate(self) -> None:
        """Become the owner: an `activated` record, `Start`, and all mail that is not consumed."""
        self.generation += 1
        ledger = self.folded()
        fresh = ledger is None or ledger.incarnation != self._life
        kept = ledger or Ledger(incarnation=self._life)
        base = Ledger(incarnation=self._life, positions=kept.positions, taken=kept.taken, origins=kept.origins)
        self._store(self._record("activated", snapshot=base if fresh else None))
        owned = self.folded()
        assert owned is not None
        self.core: Core = machine.new_core(self.config, owned)
        self.agent = self._instance()
        self.undone = dict(owned.effects)
        self.feed_backlog()
        self.feed(Start())
        if self.auto_done:
            self.do_effects()

    def kill(self, *, landed: bool = False) -> None:
        """The owner dies. With `landed`, a record on its way had reached the journal. Another takes over."""
        if landed and self.appending is not None:
            self._store(self._built(self.appending))
        if self.core.active is not None and self.core.active.attempt is not None:
            self.lost.add(spans_of(self.core.active.attempt).context.span_id)
        self._reset()
        self.activate()

    def new_life(self) -> None:
        """A fresh agent under the same name, after a tombstone."""
        self._life += "'"
        self._reset()
        self.activate()

    def feed_backlog(self) -> None:
        rest = tuple(m for m in self.mail.values() if not book.is_taken(self.core.ledger, m.lane, m.seq))
        if rest:
            self.feed(Arrived(rest))

    def folded(self) -> Ledger | None:
        """The ledger that the journal's bytes amount to. Rollups drop what is older."""
        records = [(seq, decode_record(body)) for seq, body in self.journal]
        return book.fold(records)[0]

    # --- inputs -----------------------------------------------------------------------------------------------------
    def feed(self, *items: Input) -> None:
        """Step through `items`, performing what they lead to."""
        self._queue.extend(items)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._busy = False

    def _step(self, item: Input) -> None:
        before, image = self.core, _image(self.core)
        self.core, commands = machine.advance(before, item, self.now)
        assert _image(before) == image, f"step changed its input at {item}"
        if isinstance(item, Committed):
            assert self.folded() == self.core.ledger, "the journal says something else than its owner"
        for command in commands:
            self._perform(command)

    def post(self, lane: str, **fields: Any) -> Mail:
        """Store mail on the server, without telling the owner."""
        self.seq += 1
        mail = Mail(lane=lane, seq=self.seq, **fields)
        self.mail[lane, self.seq] = mail
        return mail

    def prompt(self, text: str = "p", lane: str = "inbox", **fields: Any) -> str:
        """Send a prompt; returns its ref."""
        mail = self.post(lane, prompt=PromptBody(prompt=text), **fields)
        self.feed(Arrived((mail,)))
        return mail.ref

    def event(self, value: Any, lane: str = "notify", **fields: Any) -> Mail:
        mail = self.post(lane, event=value, **fields)
        self.feed(Arrived((mail,)))
        return mail

    def fire(self, timer_id: str, origin: str | None = None) -> None:
        """The server delivers a timer's tick."""
        origin = origin or self.core.ledger.timers[timer_id].origin
        self.event(None, "due", origin=origin, schedule=f"mesh.timer.coder.{timer_id}")

    def tick(self, at: float) -> None:
        self.now = at
        self.feed(Tick())

    def interrupt(self, token: str = "i", ref: str | None = None) -> Any:
        self.feed(Interrupt(token, ref))
        return self.answers.get(token)

    def resume(self, token: str = "r") -> Any:
        self.feed(Resume(token))
        return self.answers.get(token)

    def cancel(self, ref: str, token: str = "c") -> Any:
        self.feed(Cancel(ref, token))
        return self.answers.get(token)

    def stop(self, message: str = "") -> None:
        self.feed(Stop(error("stopped", message)))

    # --- the prompt task --------------------------------------------------------------------------------------------
    def running(self) -> RunTurn:
        assert self.task is not None, f"no prompt task runs; the agent is {self.core.phase}"
        return self.task

    def finish(self, text: str | None = None, *, session: Raw = NOTHING, **fields: Any) -> str:
        """The prompt task ends with an answer (default: its prompt in capitals). Returns the turn's ref."""
        task = self.running()
        said = task.prompt.upper() if text is None else text
        response = fields.pop("response", None) or Response(said, (Event.result(said),), duration_ms=7)
        self.task = None
        self.feed(TurnEnded(turn=task.number, response=response, session=session, **fields))
        return task.request.ref

    def fail(self, code: str = "backend_error", message: str = "", **fields: Any) -> str:
        """The prompt task ends with an error."""
        task = self.running()
        self.task = None
        self.feed(TurnEnded(turn=task.number, error=error(code, message), **fields))
        return task.request.ref

    def watchdog(self) -> None:
        self.feed(Watchdog(self.running().number))

    def drain(self, limit: int = 100) -> None:
        """Let everything that waits run to its end."""
        for _ in range(limit):
            if self.held:
                self.release()
            elif self.appending is not None:
                self.commit()
            elif self.task is not None:
                self.finish()
            else:
                return
        raise AssertionError("the agent does not come to rest")

    # --- commands ---------------------------------------------------------------------------------------------------
    def _note_attempt(self, command: RunCallback | RunTurn) -> None:
        attempt = command.attempt if isinstance(command, RunTurn) else command.of
        if isinstance(attempt, TurnAttempt):
            spans = spans_of(attempt)
            self.begun[spans.context.span_id] = spans

    def _perform(self, command: Command) -> None:
        if isinstance(command, RunCallback | RunTurn):
            self._note_attempt(command)
        match command:
            case RunCallback():
                self.calls.append(command.hook)
                if command.hook == "handle_event":
                    self.last_event = command.args[0]
                self.trail.append(command.hook)
                self.held.append(command)
                if command.hook not in self.hold:
                    self.release()
            case CancelCallback(after_s=0):
                self.cut()
            case RunTurn():
                assert self.task is None, "two prompt tasks at once"
                self.task = command
                self.turns.append(command)
                self.prompts.append(command.prompt)
                self.trail.append("run")
            case KillTurn():
                assert self.task is None or self.task.number == command.number  # it may have ended by itself
                self.task = None
                self.trail.append("kill")
            case Append():
                assert self.appending is None, "two records on their way"
                self.appending = command
                if self.auto_commit:
                    self.commit()
            case Perform():
                self.undone.update(command.effects)
                if self.auto_done:
                    self.do_effects()
            case _:
                self._note(command)

    def _note(self, command: Command) -> None:
        match command:
            case Emit():
                self.emits.append(command)
                self.trail.append("emit " + command.kind)
            case AnswerControl():
                assert command.token not in self.answers, "a control request was answered twice"
                self.answers[command.token] = command.body
            case Wake():
                self.wakes.append(command.at)
            case Backoff():
                self.backoffs.append(command.seconds)
                self.agent = self._instance()
                if self.auto_restart:
                    self.feed(BackoffOver())
            case SetStatus():
                self.status = command
                self.trail.append("status " + command.status)
            case Sweep():
                self.feed_backlog()
                self.feed(Swept())

    def _instance(self) -> Agent[Any]:
        agent = self.cls()
        agent.__dict__["_name"] = "coder"
        return agent

    def release(self) -> None:
        """Run the oldest callback that is held back, and feed its end."""
        self.feed(self._call(self.held.popleft()))

    def cut(self) -> None:
        """Cancel the callback that is held back, and feed its end; one that has ended by itself is left alone."""
        if self.held:
            self.held.popleft()
            self.feed(CutShort())

    def _call(self, command: RunCallback) -> Input:
        hook = command.hook
        if hook in SESSION_HOOKS:
            return self._session(getattr(self.agent, hook, None), command)
        args = tuple(a.exception() if isinstance(a, ErrorBody) else a for a in command.args)
        if command.state != NOTHING:
            args = (*args, self.codec.decode(command.state))
        self._ids += 1
        context = callback_context.Context(
            now=lambda: self.now, token=lambda: f"tok{self._ids}", request=command.request, sender=command.sender
        )
        if hook == "terminate_agent":
            context = callback_context.closed(command.request)
        token = callback_context.current_context.set(context)
        try:
            value = getattr(self.agent, hook)(*args)
        except Exception as raised:  # noqa: BLE001 - an agent's code may raise anything
            return Raised(raised_error(raised))
        finally:
            asks = context.close()
            callback_context.current_context.reset(token)
        return self.codec.check(hook, value, asks).item

    def _session(self, custom: Callable[..., Any] | None, command: RunCallback) -> Input:
        if custom is not None:
            try:
                return Returned(Choice(kind="session", session=Raw(msgspec.json.encode(custom()))))
            except Exception as raised:  # noqa: BLE001 - a backend may raise anything
                return Raised(raised_error(raised))
        if command.hook in ("resume_session", "change_options"):
            return Returned(Choice(kind="session", session=command.args[0]))
        return Returned(Choice(kind="session", session=Raw(b'"s0"')) if command.hook == "start_session" else NONE)

    # --- the journal ------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """The record on its way is stored and acknowledged."""
        assert self.appending is not None
        record, self.appending = self._built(self.appending), None
        size = self._store(record)
        self.feed(Committed(self.journal_seq, record.id, record.at, size))

    def _built(self, command: Append) -> Record:
        return self._record(**msgspec.structs.asdict(command))

    def _record(self, kind: Any, **fields: Any) -> Record:
        self._ids += 1
        who: dict[str, Any] = {
            "incarnation": self._life,
            "epoch": 1,
            "generation": self.generation,
            "node": "n1",
            "boot": f"b{self.generation}",
        }
        return Record(kind=kind, id=f"id{self._ids}", at=self.now, **who, **fields)

    def _store(self, record: Record) -> int:
        self.journal_seq += 1
        record = msgspec.structs.replace(record, v=version_of(record))
        body = encode_record(record)
        if record.snapshot is not None:
            self.journal.clear()
        self.journal.append((self.journal_seq, body))
        assert decode_record(body) == record
        self.written.append(record)
        if record.change.halted is True and (record.snapshot is None or not record.snapshot.halted):
            self.halts += 1
        return len(body)

    # --- effects ----------------------------------------------------------------------------------------------------
    def do_effects(self) -> None:
        """Do all effects that wait, and tell the owner."""
        doing, self.undone = self.undone, {}
        for origin, entry in doing.items():
            effect = entry.effect
            if origin in self.performed:  # the server drops the repetition
                assert self.performed[origin] == effect, "one origin, two effects"
                continue
            self.performed[origin] = effect
            self.order.append(effect)
            if isinstance(effect, Resolve):
                stored = self.outcomes.setdefault(effect.outcome.ref, effect.outcome)
                assert stored == effect.outcome, f"two outcomes for {stored.ref}: {stored} and {effect.outcome}"
        if doing:
            self.feed(EffectsDone(tuple(doing)))

    # --- looking ----------------------------------------------------------------------------------------------------
    @property
    def state(self) -> Any:
        """The agent's state as the journal has it."""
        return msgspec.json.decode(self.core.ledger.state)

    def phase(self) -> Phase:
        return self.core.phase

    def halted(self) -> bool:
        return self.core.ledger.halted

    @property
    def queued(self) -> int:
        return depth(self.core)

    @property
    def kinds(self) -> list[str]:
        """The kinds of the records in the journal."""
        return [decode_record(body).kind for _, body in self.journal]

    def answer(self, ref: str) -> str:
        return self.outcomes[ref].unwrap()

    def error(self, ref: str) -> ErrorBody:
        """The error with which a request ended."""
        found = self.outcomes[ref].error
        assert found is not None, f"{ref} ended with an answer"
        return found

    def code(self, ref: str) -> str:
        return self.error(ref).code

    def reason(self) -> ErrorBody:
        """The reason that the registry shows for the agent's status."""
        assert self.status is not None and self.status.reason is not None
        return self.status.reason

    def shown(self) -> str:
        """The status that the registry shows."""
        return self.status.status if self.status is not None else ""

    def effects[E](self, kind: type[E]) -> list[E]:
        """The effects of one kind, in the order in which they were done."""
        return [e for e in self.order if isinstance(e, kind)]

    def mails(self, to: str) -> list[SendMail]:
        return [e for e in self.effects(SendMail) if e.to == to]

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [e.fields for e in self.emits if e.kind == kind]


@contextmanager
def table_is_kept() -> Iterator[None]:
    """While this is open, each input that the machine takes must lead to a phase that its tables name."""
    original = machine._feed

    def checked(core: Core, item: Input, out: list[Command]) -> None:
        before, flight, kind = core.phase, core.inflight, type(item)
        if core.cut is not None and kind in (Returned, Misbehaved, Raised):
            kind = CutShort  # an interrupt came first
        original(core, item, out)
        if kind is Committed and flight is not None and not flight.side:
            allowed = machine.THEN[flight.then][1]
        elif flight is None and kind in machine.TABLE[before]:
            allowed = machine.TABLE[before][kind].to
        else:
            allowed = (before,)
        assert core.phase in allowed, f"{before} --{kind.__name__}--> {core.phase} is not in the table"

    with mock.patch.object(machine, "_feed", checked):
        yield
