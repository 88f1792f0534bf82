"""What must hold of a run (design 1), judged from what clients saw and what the server has stored.

It knows nothing of how the mesh works inside but its journal's records, and is itself tested on forged evidence.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from agentmesh.ledger import apply
from agentmesh.records import Ledger, Record, decode_record
from agentmesh.subjects import Subjects
from agentmesh.wire import MSG_ID, Outcome, decode_outcome
from sim.agents import State
from sim.server import Server
from sim.workload import Operation


class Letter(msgspec.Struct, frozen=True):
    """One stored message of a mail lane. `text` is a prompt's text, or "" """

    seq: int
    lane: str
    agent: str
    text: str
    label: str
    headers: Mapping[str, str]

    @property
    def is_prompt(self) -> bool:
        return self.lane in ("inbox", "peer-inbox")


@dataclasses.dataclass
class Evidence:
    """All that the verdict rests on."""

    operations: Sequence[Operation] = ()
    letters: Sequence[Letter] = ()
    journals: Mapping[str, Sequence[tuple[int, Record]]] = dataclasses.field(default_factory=dict)
    results: Sequence[Outcome] = ()
    """Every outcome ever stored."""
    told: Sequence[Outcome] = ()
    """Every outcome that was published to a caller."""

    def lives(self, agent: str) -> list[Life]:
        """What the journal of `agent` says of its incarnations, the oldest first."""
        return _lives(agent, self.journals.get(agent, ()))


@dataclasses.dataclass
class Life:
    """What a journal says of one incarnation."""

    agent: str
    incarnation: str
    log: list[str]
    ended: bool


# --- gathering ----------------------------------------------------------------------------------------------------
def gather(server: Server, subjects: Subjects, operations: Sequence[Operation]) -> Evidence:
    """The evidence of a run."""
    journals: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    head = len(subjects.journal(""))
    for message in server.streams[subjects.stream("journal")].history:
        journals[message.subject[head:]].append((message.seq, decode_record(message.data)))
    letters = []
    for message in server.streams[subjects.stream("mail")].history:
        parsed = subjects.parse_lane(message.subject)
        assert parsed is not None
        letters.append(_letter(message.seq, parsed, message.data, message.headers))
    return Evidence(
        operations,
        letters,
        dict(journals),
        [decode_outcome(m.data) for m in server.streams[subjects.stream("result")].history],
        [o for subject, body in server.heard if (o := _outcome(body)) is not None],
    )


def _letter(seq: int, lane: tuple[str, str], body: bytes, headers: Mapping[str, str]) -> Letter:
    text, label = "", ""
    if lane[0] in ("inbox", "peer-inbox"):
        text = body.decode()
        label = text.split()[1]
    else:
        value = msgspec.json.decode(body)
        label = value["label"] if "label" in value else f"={value['ref']}"
    return Letter(seq, lane[0], lane[1], text, label, headers)


def _outcome(body: bytes) -> Outcome | None:
    try:
        outcome = decode_outcome(body)
    except msgspec.DecodeError:
        return None
    return outcome if outcome.ref else None


# --- judging ------------------------------------------------------------------------------------------------------
def judge(evidence: Evidence, immortal: Collection[str]) -> list[str]:
    """What is wrong; nothing, if all is well. `immortal` are the agents that nobody stops."""
    wrong: list[str] = []
    lives: list[Life] = []
    for agent, records in evidence.journals.items():
        wrong += _chain(agent, records)
        lives += _lives(agent, records)
    wrong += _answers(evidence)
    wrong += _consumption(evidence, lives)
    wrong += _outcomes(evidence, lives, immortal)
    wrong += _relays(evidence, lives, immortal)
    return wrong


def _chain(agent: str, records: Sequence[tuple[int, Record]]) -> Iterable[str]:
    """One unbroken chain of owners: each record is of the owner that the last `activated` named, or finishes a stop."""
    owner: tuple[int, str, str] | None = None
    newest = (0, 0)
    over: set[str] = set()
    phase = ""
    for seq, record in records:
        who = (record.generation, record.node, record.boot)
        where = f"{agent}: record {seq} ({record.kind})"
        if record.kind == "activated":
            if (record.epoch, record.generation) < newest:
                yield f"{where} is of generation {record.generation}, older than {newest[1]}"
            if record.incarnation in over:
                yield f"{where} wakes a life that has ended"
            newest, owner, phase = (record.epoch, record.generation), who, ""
        elif phase == "over" and (who != owner or record.kind not in ("swept", "tombstone")):
            yield f"{where} follows the tombstone"
        elif owner is not None and who != owner:
            yield f"{where} is of {who}, but {owner} owns the agent"
        elif phase == "stopped" and record.kind not in ("swept", "gave_up", "tombstone", "control"):
            yield f"{where} follows the end of that life"
        elif owner is None:
            yield f"{where} has no owner before it"
        if record.kind == "stopped":
            phase = "stopped"
            over.add(record.incarnation)
        elif record.kind == "tombstone":
            phase = "over"


def _lives(agent: str, records: Sequence[tuple[int, Record]]) -> list[Life]:
    lives: dict[str, Life] = {}
    ledger: Ledger | None = None
    for seq, record in records:
        ledger = apply(ledger, record, seq)
        life = lives.setdefault(record.incarnation, Life(agent, record.incarnation, [], False))
        if record.kind in ("stopped", "tombstone"):
            life.ended = True
        elif bytes(ledger.state):
            log = msgspec.json.decode(ledger.state, type=State).log
            if log[: len(life.log)] != life.log:
                life.log = [*life.log, f"rewritten|-|{seq}"]
            else:
                life.log = log
    return list(lives.values())


def _answers(evidence: Evidence) -> Iterable[str]:
    """No two different answers for a ref, wherever they were seen."""
    seen: dict[tuple[str, str], Outcome] = {}
    stored: Counter[tuple[str, str]] = Counter((o.agent, o.ref) for o in evidence.results)
    for key, count in stored.items():
        if count > 1:
            yield f"request {key} has {count} stored outcomes"
    witnessed = [op.outcome for op in evidence.operations if op.outcome is not None and op.outcome.ref]
    for outcome in (*evidence.results, *evidence.told, *witnessed):
        first = seen.setdefault((outcome.agent, outcome.ref), outcome)
        if (first.ok, first.text, first.error) != (outcome.ok, outcome.text, outcome.error):
            yield f"request {outcome.agent} {outcome.ref} was answered {_shown(first)} and {_shown(outcome)}"


def _shown(outcome: Outcome) -> str:
    return f"ok {outcome.text!r}" if outcome.ok else f"error {outcome.error.code if outcome.error else '?'}"


def _consumption(evidence: Evidence, lives: Sequence[Life]) -> Iterable[str]:
    """Each message consumed at most once, in the order of its lane; and what was consumed had been sent."""
    order: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for letter in evidence.letters:
        order[letter.agent, letter.lane].setdefault(letter.label, letter.seq)
    for agent in {life.agent for life in lives}:
        entries = [entry for life in lives if life.agent == agent for entry in life.log]
        for entry, count in Counter(entries).items():
            if count > 1 and not entry.startswith("undelivered|"):
                yield f"{agent} consumed {entry} {count} times"
    for life in lives:
        newest: dict[str, int] = {}
        for entry in life.log:
            kind, sender, label = entry.split("|")
            if kind not in ("prompt", "event"):
                continue
            lane = {"prompt": "inbox", "event": "notify"}[kind]
            lane = lane if sender == "-" else f"peer-{lane}"
            seq = order[life.agent, lane].get(label)
            if seq is None:
                yield f"{life.agent} consumed {entry}, which nobody sent"
                continue
            if seq < newest.get(lane, 0):
                yield f"{life.agent} consumed {entry} out of order: {seq} after {newest[lane]}"
            newest[lane] = max(newest.get(lane, 0), seq)


def _outcomes(evidence: Evidence, lives: Sequence[Life], immortal: Collection[str]) -> Iterable[str]:
    """Each accepted request has one outcome, and the outcome says what happened; each accepted event was handled."""
    stored = {(o.agent, o.ref): o for o in evidence.results}
    logs = {agent: Counter(e for life in lives if life.agent == agent for e in life.log) for agent in {x.agent for x in lives}}
    consumed = {agent: {e.split("|")[2] for e in log if e.split("|")[0] in ("prompt", "event")} for agent, log in logs.items()}
    for letter in evidence.letters:
        if not letter.is_prompt:
            if letter.agent in immortal and not letter.label.startswith("=") and letter.label not in consumed[letter.agent]:
                yield f"{letter.agent} never handled the event {letter.label} ({letter.seq})"
            continue
        outcome = stored.get((letter.agent, str(letter.seq)))
        if outcome is None:
            if not _is_repetition(letter, evidence.letters):
                yield f"request {letter.agent} {letter.seq} ({letter.text}) has no outcome"
            continue
        verb = letter.text.split()[0]
        done = letter.label in consumed.get(letter.agent, ())
        if outcome.ok and not done:
            yield f"request {letter.agent} {letter.seq} ({letter.text}) was answered, but no turn of it counts"
        if not outcome.ok and done and verb != "call":
            yield f"request {letter.agent} {letter.seq} ({letter.text}) counts, but was answered {_shown(outcome)}"
        if not outcome.ok and letter.agent in immortal and verb not in ("boom", "flaky"):
            yield f"request {letter.agent} {letter.seq} ({letter.text}) was answered {_shown(outcome)}"
    for op in evidence.operations:
        if op.ref is None or op.ref == "-":
            continue
        if not any(x.agent == op.agent and x.label == op.label and str(x.seq) == op.ref for x in evidence.letters):
            yield f"{op.client} was told that {op.label} is {op.ref}, which it is not"


def _is_repetition(letter: Letter, letters: Sequence[Letter]) -> bool:
    """Whether it was stored twice: mail between agents has no outcome of its own then, by its origin."""
    origin = letter.headers.get("Mesh-Origin")
    return origin is not None and any(
        x.seq < letter.seq and x.agent == letter.agent and x.label == letter.label and x.headers.get("Mesh-Origin") == origin
        for x in letters
    )


def _relays(evidence: Evidence, lives: Sequence[Life], immortal: Collection[str]) -> Iterable[str]:
    """What is passed on arrives, and timers come back: effects happen exactly once."""
    entries = Counter(entry for life in lives if life.agent in immortal for entry in life.log)
    labels = Counter(entry.split("|")[2] for entry in entries.elements() if entry.startswith("prompt|"))
    for letter in evidence.letters:
        words = letter.text.split()
        if not words or labels[letter.label] == 0 or letter.agent not in immortal:
            continue
        if words[0] in ("pass", "call") and int(words[2]) > 0:
            following = f"{letter.label.partition('@')[0]}@{words[2]}"
            if labels[following] != 1:
                yield f"{letter.agent} passed {letter.label} on as {following}, which was consumed {labels[following]} times"
        if words[0] == "timer" and entries[f"timer|-|{letter.label}"] != 1:
            yield f"the timer {letter.label} of {letter.agent} came {entries[f'timer|-|{letter.label}']} times"


__all__ = ["MSG_ID", "Evidence", "Letter", "Life", "gather", "judge"]
