"""The laws of the journal: what is written down is what was meant, and folding it gives what its owner saw."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs

from agentmesh import ledger as book
from agentmesh.formats import RECORD_VERSION
from agentmesh.ledger_entries import Awaited, Caller, Deferred, Delegated, TimerEntry, TurnInfo, Wait
from agentmesh.records import (
    CancelTimer,
    Change,
    Effect,
    Ledger,
    Record,
    SendMail,
    SetTimer,
    StopAgent,
    decode_record,
    encode_record,
    version_of,
)
from agentmesh.wire import Outcome, PromptBody
from mesh.turn.agents import Chatty
from mesh.turn.harness import Rig
from mesh.values import JSON, RAW, of, struct

EFFECTS: tuple[type[Any], ...] = get_args(Effect.__value__)
KEPT = tuple(f for f in Ledger.__struct_fields__ if f not in Change.__struct_fields__)
"""What a change does not speak of: the record itself says it."""
LEDGERS = struct(Ledger, state=RAW, session=RAW, spec=RAW)

relaxed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


def record(**fields: Any) -> Record:
    who: dict[str, Any] = {"id": "r", "at": 1.0, "incarnation": "l", "epoch": 1, "generation": 1, "node": "n", "boot": "b"}
    return Record(**{"kind": "turn", **who, **fields})


# --- diff and patch -------------------------------------------------------------------------------------------------
@relaxed
@given(LEDGERS, LEDGERS)
def test_patch_undoes_diff_also_over_the_wire(old: Ledger, other: Ledger) -> None:
    new = structs.replace(other, **{field: getattr(old, field) for field in KEPT})
    change = book.diff(old, new)
    assert book.patch(old, change) == new
    assert book.patch(old, decode_record(encode_record(record(change=change))).change) == new


@relaxed
@given(LEDGERS)
def test_no_change_is_an_empty_change(ledger: Ledger) -> None:
    assert book.diff(ledger, ledger) == Change()
    assert book.patch(ledger, Change()) is ledger


def test_every_field_of_a_ledger_is_told_by_a_change_or_by_the_record() -> None:
    assert set(KEPT) == {"incarnation", "epoch", "generation", "node", "boot", "effects", "history"}
    assert all(getattr(Change(), field) is UNSET for field in Change.__struct_fields__)


# --- encoding -------------------------------------------------------------------------------------------------------
@relaxed
@given(struct(Record, v=st.integers(1, RECORD_VERSION)))
def test_every_record_survives_the_journal(written: Record) -> None:
    body = encode_record(written)
    assert decode_record(body) == structs.replace(written, v=version_of(written))
    assert msgspec.json.decode(body)["v"] == version_of(written)


@pytest.mark.parametrize("kind", EFFECTS, ids=lambda kind: kind.__name__)
@relaxed
@given(data=st.data())
def test_every_kind_of_effect_survives_the_journal(kind: Any, data: st.DataObject) -> None:
    effect = data.draw(of(kind))
    written = record(effects=(effect,))
    assert decode_record(encode_record(written)).effects == (effect,)
    opened = book.apply(None, written, 7).effects
    snapshot = record(snapshot=Ledger(incarnation="l", effects=opened))
    assert decode_record(encode_record(snapshot)).snapshot == snapshot.snapshot


def test_a_record_of_a_newer_version_is_refused_with_advice() -> None:
    body = encode_record(record()).replace(b'"v":1', b'"v":%d' % (RECORD_VERSION + 1))
    with pytest.raises(ValueError, match="upgrade"):
        decode_record(body)


def test_unknown_fields_are_ignored() -> None:
    body = encode_record(record()).replace(b'{"v":1', b'{"new":[1],"v":1')
    assert decode_record(body) == record()


# --- applying -------------------------------------------------------------------------------------------------------
@relaxed
@given(of(tuple[Effect, ...]), st.integers(1, 2**40))
def test_effects_of_a_record_are_open_until_one_says_they_are_done(effects: tuple[Effect, ...], seq: int) -> None:
    first = book.apply(None, record(effects=effects), seq)
    origins = [book.origin_of(1, seq, index) for index in range(len(effects))]
    assert [(o, e.effect) for o, e in first.effects.items()] == list(zip(origins, effects, strict=True))
    assert book.apply(first, record(done=tuple(origins)), seq + 1).effects == {}


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 10**6), st.integers(0, 12)), min_size=2))
def test_origins_compare_in_the_order_in_which_they_were_made(made: list[tuple[int, int, int]]) -> None:
    assert sorted((book.origin_of(*m) for m in made), key=book.origin_key) == [book.origin_of(*m) for m in sorted(made)]
    assert book.origin_key("nonsense") < min(book.origin_key(book.origin_of(*m)) for m in made)


def test_timers_and_awaited_answers_are_filed_with_their_origin() -> None:
    tell = SendMail(to="w", lane="peer-inbox", prompt=PromptBody(prompt="p"), tag="t")
    untagged = SendMail(to="w", lane="peer-inbox", prompt=PromptBody(prompt="p"))
    ledger = book.apply(None, record(effects=(tell, untagged, SetTimer(id="a", due=5.0), SetTimer(id="b", due=6.0))), 3)
    assert ledger.awaiting == {"1.3.0": Awaited("w", "t", since=1.0)}
    assert ledger.timers == {"a": TimerEntry("1.3.2", 5.0), "b": TimerEntry("1.3.3", 6.0)}
    later = book.apply(ledger, record(effects=(SetTimer(id="a", due=9.0, every=2.0), CancelTimer(id="b"))), 4)
    assert later.timers == {"a": TimerEntry("1.4.0", 9.0, 2.0)}


def test_requests_that_stay_open_are_counted_once_each() -> None:
    wait = Wait(agent="b", since=1.0, deadline=2.0, origin="1.3.0")
    ended = structs.replace(wait, origin="1.4.0", outcome=Outcome(agent="b", ref="1", ok=True))
    ledger = Ledger(
        incarnation="i",
        deferred={"7": Deferred(caller=Caller(ref="7"), turn=1)},
        awaiting={"1.1.0": Awaited("b", "t")},
        delegated={"1.1.0": Delegated("b", "7"), "1.2.0": Delegated("c", "7")},
        waits={"w": wait, "never sent": structs.replace(wait, origin=""), "over": ended},
    )
    assert book.open_count(ledger) == 4
    assert book.open_count(Ledger(incarnation="i")) == 0


def test_a_snapshot_stands_for_everything_before_it() -> None:
    info = TurnInfo(number=1, ref="1", started=1.0, ended=2.0, node="n", generation=1)
    records = [
        (1, record(change=Change(turn=1), effects=(StopAgent(name="x"),), turn=info)),
        (2, record(change=Change(halted=True), done=("1.1.0",), effects=(StopAgent(name="y"),))),
    ]
    whole, last = book.fold(records)
    assert last == 2 and whole is not None
    rolled = record(snapshot=whole, change=Change(turn=2), done=("1.2.0",))
    assert book.fold([(3, rolled)]) == book.fold([*records, (3, record(change=Change(turn=2), done=("1.2.0",)))])


@pytest.mark.parametrize("limit", [1, 2, 32, 100])
def test_history_is_as_long_as_the_journal_says(limit: int) -> None:
    ledger: Ledger | None = book.apply(None, record(change=Change(history_limit=limit)), 1)
    for number in range(limit + 5):
        info = TurnInfo(number=number, ref="1", started=1.0, ended=2.0, node="n", generation=1)
        ledger = book.apply(ledger, record(turn=info), number + 2)
    assert ledger is not None and [t.number for t in ledger.history] == list(range(5, limit + 5))


@pytest.mark.parametrize("every", [1, 2, 3, 256])
def test_the_journal_folds_to_what_its_owner_holds(every: int) -> None:
    bench = Rig(Chatty, snapshot_records=every)  # it compares after each record
    for number in range(6):
        bench.prompt(str(number))
        waiting = bench.prompt("cancelled")
        bench.event(number)
        bench.cancel(waiting, f"c{number}")
        bench.finish() if number % 3 else bench.fail()
    assert bench.folded() == bench.core.ledger
    assert len(bench.journal) <= every + 2


# --- positions ------------------------------------------------------------------------------------------------------
@given(st.data())
def test_what_was_consumed_is_taken_in_whatever_order(data: st.DataObject) -> None:
    seqs = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=10)))
    order = data.draw(st.permutations(seqs))
    ledger, waiting = Ledger(incarnation="l"), list(seqs)
    for seq in order:
        waiting.remove(seq)
        ledger = book.consume(ledger, "inbox", seq, waiting[0] if waiting else None)
        assert [s for s in seqs if not book.is_taken(ledger, "inbox", s)] == waiting
        assert all(s > ledger.positions.get("inbox", 0) for s in ledger.taken.get("inbox", ()))
    assert ledger.positions == {"inbox": seqs[-1]} and ledger.taken == {}


def test_lanes_do_not_touch_each_other() -> None:
    ledger = book.consume(Ledger(incarnation="l"), "inbox", 9, 3)
    ledger = book.consume(ledger, "notify", 5, None)
    assert not book.is_taken(ledger, "inbox", 5) and book.is_taken(ledger, "inbox", 9)
    assert book.is_taken(ledger, "notify", 4) and not book.is_taken(ledger, "notify", 6)


@given(st.data())
@example(data=None)
def test_mail_of_an_agent_is_handled_once_in_whatever_order_it_is_taken(data: st.DataObject | None) -> None:
    """A sender repeats what it is not sure of, in order; the receiver may take waiting mail out of order."""
    sent = (1, 2, 1, 2, 3) if data is None else data.draw(_SENT)
    mails = list(enumerate(sent, start=1))  # (sequence in the lane, number of the origin)
    ledger, waiting, handled = Ledger(incarnation="l"), list(mails), list[int]()
    while waiting:
        # Like an owner: any that waits may be cancelled, but a repetition is recognised only at the head.
        head = waiting[0]
        seq, number = head if data is None else data.draw(st.sampled_from(waiting))
        first_copy = next(s for s, n in mails if n == number) == seq
        repeated = book.is_witnessed(ledger, "p", "peer-inbox", f"1.{number}.0")
        if not first_copy and not repeated and (seq, number) != head:
            continue  # its first copy still waits: an owner would have handled that before
        assert repeated == (number in handled)
        waiting.remove((seq, number))
        ledger = book.consume(ledger, "peer-inbox", seq, waiting[0][0] if waiting else None)
        ledger = book.witness(ledger, "p", "peer-inbox", seq, f"1.{number}.0")
        if not repeated:
            handled.append(number)
    assert sorted(handled) == sorted(set(sent))
    assert ledger.origins == {"p/peer-inbox": f"1.{max(sent)}.0"} and ledger.taken == {}


@st.composite
def _sent(draw: st.DrawFn) -> list[int]:
    """What a sender with a few origins sends: each in order, with runs of repetitions after takeovers."""
    sent: list[int] = []
    newest = 0
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(1, newest + 1))
        newest = max(newest, draw(st.integers(begin, begin + 3)))
        sent.extend(range(begin, newest + 1))
    return sent


_SENT = _sent()


@given(JSON)
def test_a_state_is_kept_byte_for_byte(value: Any) -> None:
    raw = msgspec.Raw(msgspec.json.encode(value))
    assert bytes(decode_record(encode_record(record(change=Change(state=raw)))).change.state) == bytes(raw)  # type: ignore[arg-type]
