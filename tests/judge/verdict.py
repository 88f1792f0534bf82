"""What must hold of a run (docs/architecture.md#the-promise), judged from what clients saw and what the streams have stored.

It knows nothing of how the mesh works inside but its journal's records, and is itself tested on forged evidence.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from agentmesh import wire
from agentmesh.ledger import apply
from agentmesh.records import Ledger, Record, Resolve, SendMail
from agentmesh.wire import Outcome
from judge.attempts import untold
from judge.evidence import WITHDRAWS, Evidence, Letter, Operation, State

COUNTED = ("prompt", "event", "timer")
"""Kinds of log entries that an agent counts."""
HEARD_S = 60.0
"""By when an owner has heard of what its lanes hold, once nothing goes wrong any more: copies may have been lost before."""
_CALLS = ("call", "apart")
"""Prompts that are kept open until another agent has answered."""
EARLY_S = 2.0
"""How much too early a time may pass, if clocks are wrong (case 330)."""
_PURPOSE = ("cancelled", "interrupted")
"""How a request ends that somebody ends on purpose."""


@dataclasses.dataclass
class Life:
    """What a journal says of one incarnation."""

    agent: str
    incarnation: str
    log: list[str] = dataclasses.field(default_factory=list)
    count: int = 0
    ended: bool = False
    unseen: int = 0
    """Entries that no record shows: the recording has a hole there."""


def judge(evidence: Evidence, immortal: Collection[str]) -> list[str]:
    """What is wrong; nothing, if all is well. `immortal` are the agents that nobody stops."""
    wrong: list[str] = []
    lives: list[Life] = []
    for agent, records in evidence.journals.items():
        history = _history(records)
        wrong += _chain(agent, records)
        wrong += _steps(agent, history)
        wrong += _torn(agent, history)
        wrong += _withdrawals(agent, history)
        lives += _lives(agent, history)
    wrong += _counts(lives)
    wrong += _set_once(evidence)
    wrong += _answers(evidence)
    wrong += _acceptance(evidence)
    wrong += _sending(evidence)
    wrong += _consumption(evidence, lives)
    wrong += _outcomes(evidence, lives, immortal)
    wrong += _relays(evidence, lives, immortal)
    wrong += _calls(evidence)
    wrong += _payments(evidence)
    wrong += untold(evidence)
    return wrong


# --- journals -----------------------------------------------------------------------------------------------------
type History = Sequence[tuple[int, Record, Ledger | None, Ledger]]
"""Sequence and record, the ledger before it and behind it."""


def _history(records: Iterable[tuple[int, Record]]) -> History:
    history: list[tuple[int, Record, Ledger | None, Ledger]] = []
    ledger: Ledger | None = None
    for seq, record in records:
        before, ledger = ledger, apply(ledger, record, seq)
        history.append((seq, record, before, ledger))
    return history


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
        elif not record.node and owner is None and record.kind in ("swept", "tombstone"):
            continue  # the leader has ended mail for nobody
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


def _steps(agent: str, history: History) -> Iterable[str]:
    """Each step of a turn is committed once, behind the one before it, and none outlives its turn."""
    count: Counter[tuple[str, str, int]] = Counter()
    for seq, record, before, ledger in history:
        where = f"{agent}: record {seq} ({record.kind})"
        turning = ledger.turning
        if turning is None:
            if ledger.steps or ledger.waits:
                yield f"{where} leaves steps or waits of a turn that is over"
            continue
        turn = (ledger.incarnation, turning.key, turning.number)
        known = len(before.steps) if before is not None and before.turning == turning else 0
        if sorted(ledger.steps, key=int) != [str(number) for number in range(len(ledger.steps))] or len(ledger.steps) < known:
            yield f"{where} leaves the steps {list(ledger.steps)}, after {known} of them"
        if len(ledger.steps) < count[turn]:
            yield f"{where}: the turn has {len(ledger.steps)} steps, and had {count[turn]} before"
        count[turn] = max(count[turn], len(ledger.steps))


def _torn(agent: str, history: History) -> Iterable[str]:
    """Each change of the configuration is whole, and has the next number of its life."""
    for seq, record, before, ledger in history:
        where = f"{agent}: record {seq} ({record.kind})"
        known = before.sets[-1].number if before is not None and before.incarnation == ledger.incarnation and before.sets else 0
        now = ledger.sets[-1].number if ledger.sets else 0
        if ledger.phase != "over" and now != known + (record.kind == "set"):
            yield f"{where} leaves {now} changes of the configuration, after {known}"
        if len({info.id for info in ledger.sets}) < len(ledger.sets):
            yield f"{where} leaves a request that was done twice"
        if "label" in ledger.backend_options and ledger.backend_options["watchdog_s"] != ledger.overrides.watchdog_s:
            yield f"{where} leaves a change that is torn"


def _set_once(evidence: Evidence) -> Iterable[str]:
    """What a client has set is in the journal: once in a life if it was told so, else once at most."""
    made: Counter[str] = Counter()
    lives: dict[str, set[str]] = defaultdict(set)
    for agent, records in evidence.journals.items():
        for _, record in records:
            if record.kind == "set" and record.change.backend_options is not msgspec.UNSET:
                made[change := f"{agent}/{record.change.backend_options.get('label')}"] += 1
                lives[change].add(record.incarnation)
    for op in evidence.operations:
        count = made[f"{op.agent}/{op.label}"]
        # A request that is repeated may meet the next life of the name, which knows nothing of the one before.
        most = max(1, len(lives[f"{op.agent}/{op.label}"]))
        if op.kind == "set" and (count > most or (count == 0 and op.ref is not None and op.error is None)):
            yield f"{op.agent}: {op.label} was set {count} times, and its client was told {op.error or op.ref}"


def lives_of(agent: str, records: Sequence[tuple[int, Record]]) -> list[Life]:
    """What the journal of `agent` says of its incarnations, the oldest first."""
    return _lives(agent, _history(records))


def _lives(agent: str, history: History) -> list[Life]:
    lives: dict[str, Life] = {}
    known: dict[str, msgspec.Raw] = {}
    for seq, record, _, ledger in history:
        life = lives.setdefault(record.incarnation, Life(agent, record.incarnation))
        if record.kind in ("stopped", "tombstone"):
            life.ended = True
        elif bytes(ledger.state) and ledger.state is not known.get(record.incarnation):  # most records leave it as it is
            known[record.incarnation] = ledger.state
            _grow(life, msgspec.json.decode(ledger.state, type=State), seq)
    return list(lives.values())


def _grow(life: Life, state: State, seq: int) -> None:
    """Add what the state at record `seq` shows beyond the log that is known."""
    life.count = state.count
    missing = state.dropped - len(life.log)
    if missing > 0:
        life.unseen += missing
        life.log += [f"unseen|-|{seq}.{index}" for index in range(missing)]
    known = life.log[state.dropped :]
    if state.log[: len(known)] != known:
        life.log.append(f"rewritten|-|{seq}")
    else:
        life.log += state.log[len(known) :]


def _counts(lives: Sequence[Life]) -> Iterable[str]:
    """An agent has counted what it has consumed, no more and no less."""
    for life in lives:
        if life.unseen:
            yield f"{life.agent}: no record shows {life.unseen} of the things that it consumed"
            continue
        consumed = sum(entry.split("|")[0] in COUNTED for entry in life.log)
        if life.count != consumed:
            yield f"{life.agent} has counted {life.count}, and consumed {consumed}"


# --- what clients were told ---------------------------------------------------------------------------------------
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


def _acceptance(evidence: Evidence) -> Iterable[str]:
    """What a client was told to be accepted is stored, under the ref that it was told."""
    stored = {(x.agent, x.label, str(x.seq)) for x in evidence.letters}
    events = {(x.agent, x.label) for x in evidence.letters if x.lane in ("notify", "peer-notify") and wire.FROM not in x.headers}
    for op in evidence.operations:
        if op.ref == "-" and op.kind == "notify" and (op.agent, op.label) not in events:
            yield f"{op.client} was told that the event {op.label} to {op.agent} is stored, which it is not"
        elif op.ref not in (None, "-") and (op.agent, op.label, op.ref) not in stored:
            yield f"{op.client} was told that {op.label} is {op.ref}, which it is not"


def _sending(evidence: Evidence) -> Iterable[str]:
    """What a sender sent one after another lies in its lane in that order: a client's, and another agent's."""
    newest: dict[tuple[str, str], tuple[int, Operation]] = {}
    for op in sorted(evidence.operations, key=lambda op: op.began):
        if op.ref in (None, "-"):
            continue
        seq = int(op.ref)
        last, before = newest.get((op.client, op.agent), (0, op))
        if seq <= last:
            yield f"{op.client} sent {op.label} to {op.agent} after {before.label}, but it is stored before it: {seq}, {last}"
        newest[op.client, op.agent] = max(last, seq), op
    origins: dict[tuple[str, str, str], tuple[int, ...]] = {}
    known: set[tuple[str, str, str, str]] = set()
    for letter in sorted(evidence.letters, key=lambda letter: letter.seq):
        sender, origin = letter.headers.get(wire.FROM, ""), letter.headers.get(wire.ORIGIN)
        key = (letter.agent, letter.lane, sender)
        if not letter.lane.startswith("peer-") or origin is None or (*key, origin) in known:
            continue
        known.add((*key, origin))
        order = tuple(int(part) for part in origin.split("."))
        if order < origins.get(key, ()):
            where = f"{letter.lane} {letter.seq} of {letter.agent}"
            yield f"{where} has the origin {origin}, but a newer one of {sender} lies before it"
        origins[key] = max(order, origins.get(key, ()))


# --- what agents did ----------------------------------------------------------------------------------------------
def _consumption(evidence: Evidence, lives: Sequence[Life]) -> Iterable[str]:
    """Each message consumed at most once, in the order of its lane; and what was consumed had been sent."""
    order: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    of_users = {(x.agent, x.label) for x in evidence.letters if x.lane.startswith("peer-") and wire.FROM not in x.headers}
    for letter in evidence.letters:
        order[letter.agent, letter.lane].setdefault(letter.label, letter.seq)
    for agent, entries in _entries(lives).items():
        for entry, count in entries.items():
            if count > 1 and not entry.startswith("undelivered|"):
                yield f"{agent} consumed {entry} {count} times"
    for life in lives:
        newest: dict[str, int] = {}
        for entry in life.log:
            kind, sender, label = entry.split("|")
            if kind not in ("prompt", "event"):
                continue
            lane = {"prompt": "inbox", "event": "notify"}[kind]
            if sender != "-" or (life.agent, label) in of_users:
                lane = f"peer-{lane}"
            seq = order[life.agent, lane].get(label)
            if seq is None:
                yield f"{life.agent} consumed {entry}, which nobody sent"
                continue
            if seq < newest.get(lane, 0):
                yield f"{life.agent} consumed {entry} out of order: {seq} after {newest[lane]}"
            newest[lane] = max(newest.get(lane, 0), seq)


def _entries(lives: Sequence[Life]) -> dict[str, Counter[str]]:
    """What each agent consumed in all its lives."""
    entries: dict[str, Counter[str]] = defaultdict(Counter)
    for life in lives:
        entries[life.agent].update(life.log)
    return entries


def _outcomes(evidence: Evidence, lives: Sequence[Life], immortal: Collection[str]) -> Iterable[str]:
    """Each accepted request has one outcome, and the outcome says what happened; each accepted event was handled."""
    stored = {(o.agent, o.ref): o for o in evidence.results}
    repeated = repetitions(evidence.letters)
    wanted = _ended_on_purpose(evidence)
    consumed = {
        agent: {label for kind, _, label in (entry.split("|") for entry in log) if kind in ("prompt", "event")}
        for agent, log in _entries(lives).items()
    }
    for letter in evidence.letters:
        done = letter.label in consumed.get(letter.agent, ())
        if not letter.is_prompt:
            if letter.agent in immortal and not letter.label.startswith("=") and not done:
                yield f"{letter.agent} never handled the event {letter.label} ({letter.seq})"
            continue
        outcome = stored.get((letter.agent, str(letter.seq)))
        if outcome is not None:
            yield from _fits(letter, outcome, done, letter.agent in immortal and (letter.agent, letter.seq) not in wanted)
        elif letter.seq not in repeated:
            yield f"request {letter.agent} {letter.seq} ({letter.text}) has no outcome"


def _fits(letter: Letter, outcome: Outcome, done: bool, immortal: bool) -> Iterable[str]:
    """Whether an outcome says what became of the prompt; `done`: a turn of it counts."""
    verb = letter.text.split()[0]
    if outcome.ok and not done:
        yield f"request {letter.agent} {letter.seq} ({letter.text}) was answered, but no turn of it counts"
    if not outcome.ok and done and verb not in _CALLS:
        yield f"request {letter.agent} {letter.seq} ({letter.text}) counts, but was answered {_shown(outcome)}"
    # The answer of these is what came of the request that they made.
    full = verb in _CALLS and outcome.error is not None and outcome.error.code in ("mailbox_full", *_PURPOSE)
    if not outcome.ok and immortal and verb not in ("boom", "flaky") and not full:
        yield f"request {letter.agent} {letter.seq} ({letter.text}) was answered {_shown(outcome)}"


def _ended_on_purpose(evidence: Evidence) -> set[tuple[str, int]]:
    """The prompts (agent, sequence) that somebody ended, by their outcomes: a client that cancelled them or interrupted their
    agent, or the agent that withdrew them; or whose own time was over."""
    codes = {(o.agent, o.ref): o.error.code for o in evidence.results if o.error is not None}
    cancelled = {(op.agent, op.label) for op in evidence.operations if op.kind == "cancel"}
    interrupted = {op.agent for op in evidence.operations if op.kind == "interrupt"}
    withdrawn = _withdrawn(evidence)
    found = set()
    for letter in evidence.letters:
        code = codes.get((letter.agent, str(letter.seq)))
        by_client = (letter.agent, letter.label) in cancelled
        by_agent = (letter.agent, letter.headers.get(wire.FROM), letter.headers.get(wire.ORIGIN)) in withdrawn
        over = code == "expired" and _is_over(evidence, letter)
        if over or (code == "cancelled" and (by_client or by_agent)) or (code == "interrupted" and letter.agent in interrupted):
            found.add((letter.agent, letter.seq))
    return found


def _is_over(evidence: Evidence, letter: Letter) -> bool:
    """Whether the prompt's time (`Mesh-End-By`) had come when its outcome was stored."""
    end_by, stored = letter.headers.get(wire.END_BY), evidence.stored.get((letter.agent, str(letter.seq)))
    return end_by is not None and stored is not None and wire.parse_time(end_by) - evidence.epoch <= stored + EARLY_S


def ends_on_purpose(evidence: Evidence) -> dict[str, int]:
    """How many requests of a run somebody ended on purpose, and how many of them an agent had withdrawn."""
    codes = {(o.agent, o.ref): o.error.code for o in evidence.results if o.error is not None}
    ended = _ended_on_purpose(evidence)
    withdrawn = _withdrawn(evidence)
    by_agents = [
        letter
        for letter in evidence.letters
        if (letter.agent, letter.seq) in ended
        and codes[letter.agent, str(letter.seq)] == "cancelled"
        and (letter.agent, letter.headers.get(wire.FROM), letter.headers.get(wire.ORIGIN)) in withdrawn
    ]
    timely = sum(codes[agent, str(seq)] == "expired" for agent, seq in ended)
    return {
        "ended on purpose": len(ended),
        "of them by their time": timely,
        "withdrawals": len(withdrawn),
        "ended by those": len(by_agents),
    }


def _withdrawn(evidence: Evidence) -> dict[tuple[str, str | None, str | None], float]:
    """When each withdrawal was stored for the first time: by the agent that was asked, the one that asked, and the origin."""
    found: dict[tuple[str, str | None, str | None], float] = {}
    for letter in evidence.letters:
        if letter.lane == "peer-answer" and letter.label.startswith(WITHDRAWS):
            found.setdefault((letter.agent, letter.headers.get(wire.FROM), letter.label.removeprefix(WITHDRAWS)), letter.at)
    return found


def repetitions(letters: Sequence[Letter]) -> set[int]:
    """What was stored twice: mail between agents has no outcome of its own then, by its origin."""
    first: dict[tuple[str, str, str], int] = {}
    found: set[int] = set()
    for letter in letters:
        origin = letter.headers.get(wire.ORIGIN)
        if origin is not None and first.setdefault((letter.agent, letter.label, origin), letter.seq) != letter.seq:
            found.add(letter.seq)
    return found


def _relays(evidence: Evidence, lives: Sequence[Life], immortal: Collection[str]) -> Iterable[str]:
    """What is passed on arrives, and timers come back: effects happen exactly once, or the agent is told that one did not."""
    gone, repeated = _given_up(lives, immortal), repetitions(evidence.letters)
    entries = Counter(entry for life in lives if life.agent in immortal for entry in life.log)
    labels: Mapping[str, int] = Counter(entry.split("|")[2] for entry in entries.elements() if entry.startswith("prompt|"))
    outcomes = {(o.agent, o.ref): o for o in evidence.results}
    wanted = _ended_on_purpose(evidence)
    cut_off = {letter.label for letter in evidence.letters if (letter.agent, letter.seq) in wanted}
    for letter in evidence.letters:
        words = letter.text.split()
        if not words or labels[letter.label] == 0 or letter.agent not in immortal or letter.seq in repeated:
            continue
        for following in _passed_on(letter):
            if labels[following] == 0 and following in cut_off:
                continue
            if labels[following] == 0 and gone[letter.agent] > 0:
                gone[letter.agent] -= 1
            elif labels[following] != 1:
                yield f"{letter.agent} passed {letter.label} on as {following}, which was consumed {labels[following]} times"
        if words[0] == "wait" and len(words) > 2:
            yield from _waited(letter, outcomes.get((letter.agent, str(letter.seq))), labels)
        if words[0] == "timer" and entries[f"timer|-|{letter.label}"] != 1:
            yield f"the timer {letter.label} of {letter.agent} came {entries[f'timer|-|{letter.label}']} times"
    for agent, count in gone.items():
        if count:
            yield f"{agent} was told that {count} messages could not be delivered which were"


def _passed_on(letter: Letter) -> Iterable[str]:
    """The labels of the prompts that a turn of this one sends."""
    words, base = letter.text.split(), letter.label.partition("@")[0]
    if words[0] in ("pass", *_CALLS) and int(words[2]) > 0:
        yield f"{base}@{words[2]}"
        if words[0] == "apart":
            yield f"{base}@d{words[2]}"


def _waited(letter: Letter, outcome: Outcome | None, labels: Mapping[str, int]) -> Iterable[str]:
    """A request of a wait is consumed once, if its asker got an answer; never, if there was a circle."""
    asked = f"{letter.label.partition('@')[0]}@{len(letter.text.split()) - 2}"
    said = (outcome.text or "") if outcome is not None else ""
    answer = said.partition(" => ")[2]
    most = 0 if answer == "!cycle" and labels[asked] == 0 else 1
    if labels[asked] > most or (answer and not answer.startswith("!") and labels[asked] != 1):
        yield f"{letter.agent} waited for {asked}, was told {answer!r}, and that was consumed {labels[asked]} times"


def _given_up(lives: Sequence[Life], immortal: Collection[str]) -> Counter[str]:
    """Per agent: how many of its messages to agents that live met full mailboxes for too long."""
    gone: Counter[str] = Counter()
    for life in lives:
        for entry in life.log:
            kind, _, label = entry.split("|")
            target, _, code = label.partition(":")
            if life.agent in immortal and kind == "undelivered" and code == "mailbox_full" and target in immortal:
                gone[life.agent] += 1
    return gone


# --- what was asked on behalf of a request ----------------------------------------------------------------------------
def _withdrawals(agent: str, history: History) -> Iterable[str]:
    """The record that ends a request in any way but its answer withdraws all that is open on its behalf; and that comes back."""
    for seq, record, before, ledger in history:
        if before is None or before.incarnation != ledger.incarnation or not (before.delegated or before.waits):
            continue
        withdrawn = {e.event["withdraws"] for e in record.effects if isinstance(e, SendMail) and _is_withdrawal(e)}
        over = [e.outcome.ref for e in record.effects if isinstance(e, Resolve) and not e.outcome.ok]
        left = {o for ref in over for o in _open(before, ref)} if record.kind != "stopped" else _all_open(before)
        answered = set(before.awaiting) - set(ledger.awaiting)
        if left - withdrawn - answered:
            yield f"{agent}: record {seq} ({record.kind}) ends {over}, and leaves {left - withdrawn} open"
    if history and history[-1][3].delegated:
        yield f"{agent}: {list(history[-1][3].delegated.values())} never came back"


def _is_withdrawal(effect: SendMail) -> bool:
    return effect.lane == "peer-answer" and effect.outcome is None


def _open(ledger: Ledger, ref: str) -> Iterable[str]:
    """The origins of what is open on behalf of a request."""
    yield from (origin for origin, one in ledger.delegated.items() if one.request == ref and not one.withdrawn)
    if ledger.turning is not None and ledger.turning.key.rpartition(":")[2] == ref:
        yield from (wait.origin for wait in ledger.waits.values() if wait.outcome is None and wait.origin)


def _all_open(ledger: Ledger) -> set[str]:
    refs = {one.request for one in ledger.delegated.values()}
    if ledger.turning is not None:
        refs.add(ledger.turning.key.rpartition(":")[2])
    return {origin for ref in refs for origin in _open(ledger, ref)}


def _payments(evidence: Evidence) -> Iterable[str]:
    """No `once` tool has paid twice, whatever ended or killed its turn; and what an answer says was paid was."""
    keys: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in evidence.payments:
        if one.tool == "pay" or one.key not in keys[one.tool, one.to]:
            keys[one.tool, one.to].append(one.key)
    for (tool, to), found in keys.items():
        if len(found) > 1:
            yield f"{to} was paid {len(found)} times by {tool}, under the keys {found}"
    paid = {to for _, to in keys}
    for outcome in evidence.results:
        verb, label, *rest = outcome.text.split() if outcome.ok and outcome.text else ("", "")
        if verb in ("pay", "transfer") and len(rest) > 1:
            for number, end in enumerate(rest[1].split(",")):
                if end == "ok" and f"{label}/{number}" not in paid:
                    yield f"{outcome.agent} has answered that {label}/{number} is paid, which it is not"


def _calls(evidence: Evidence) -> Iterable[str]:
    """No call of a model begins for a request that was withdrawn: by an owner that has read the withdrawal, or should have heard
    of it."""
    withdrawn = _withdrawn(evidence)
    since: dict[tuple[str, str], float] = {}
    for letter in evidence.letters:
        key = (letter.agent, letter.headers.get(wire.FROM), letter.headers.get(wire.ORIGIN))
        if letter.is_prompt and key in withdrawn:
            since[letter.agent, str(letter.seq)] = withdrawn[key]
    for call in evidence.calls:
        stored = since.get((call.agent, call.ref))
        if stored is None or call.at < stored:
            continue
        began, node = max(((at, node) for at, node in evidence.owners[call.agent] if at <= call.at), default=(0.0, ""))
        read = node == call.node and began > stored
        if read or (evidence.calm is not None and call.at > max(stored, evidence.calm) + HEARD_S):
            yield f"{call.agent} began a call at {call.at:.3f} for {call.ref}, which was withdrawn at {stored:.3f}"
