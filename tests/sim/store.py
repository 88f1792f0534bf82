"""One JetStream stream, in memory: what nats-server 2.15 was measured to do with it (test_conformance.py holds it to that).

Only what the mesh uses: publishes with expected sequence, message ids, TTL, roll-up and schedules; bounds per subject; reads by
sequence, subject and pattern, also from a replica that lags; purge; and what a server that was killed forgets
(docs/nats.md#what-a-killed-server-forgets).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentmesh.wire import format_time, parse_time

MAX_LAG_S = 1.0
"""How far a replica may be behind, in seconds."""
REMEMBERED_S = 120.0
"""How long ago, in seconds, what was deleted may have been so that a killed server brings it back."""
_NANOS = 1_000_000_000
_SCHEDULE_HEADERS = ("Nats-Schedule", "Nats-Schedule-Target", "Nats-Schedule-TTL", "Nats-Schedule-Rollup")
_OF_ONE_PUBLISH = (
    "Nats-Expected-Last-Subject-Sequence",
    "Nats-Expected-Stream",
    "Nats-Expected-Last-Sequence",
    "Nats-Msg-Id",
    "Nats-TTL",
    "Nats-Rollup",
)


@dataclasses.dataclass(slots=True, eq=False)
class Stored:
    """One message. `at` and `gone` are times of the loop; `time` is the wall clock's."""

    seq: int
    subject: str
    headers: dict[str, str]
    data: bytes
    time: float
    at: float
    previous: int
    gone: float | None = None
    _stamp: str = ""

    def stamp(self) -> str:
        """`time`, as the server writes it."""
        self._stamp = self._stamp or format_time(self.time)
        return self._stamp


class Refusal(Exception):
    """A JetStream error."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.body = {"code": code, "err_code": err_code, "description": description}


@functools.cache
def matches(pattern: str, subject: str) -> bool:
    """Whether `subject` is one of those that `pattern`, with wildcards, means."""
    if pattern == subject:
        return True
    wanted, found = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(found) > index
        if index >= len(found) or token not in ("*", found[index]):
            return False
    return len(wanted) == len(found)


def _wild(pattern: str) -> bool:
    return "*" in pattern or ">" in pattern


def literal_head(pattern: str) -> str:
    """What all subjects begin with that `pattern` means."""
    return pattern.partition("*")[0].removesuffix(">")


class Stream:
    """One stream. `later(seconds, action)` sets a timer; `stored(message)` hears of each message."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        stored: Callable[[Stream, Stored], None],
        lateness: Callable[[], float],
    ) -> None:
        self.config = dict(config)
        self.name: str = config["name"]
        self.last_seq = 0
        self.history: list[Stored] = []
        """Everything ever stored: what a checker reads."""
        self.changes = 0
        """Grows with all that changes in it."""
        self._clock = clock
        self._wall = wall
        self._later = later
        self._stored = stored
        self._lateness = lateness
        self._live: dict[int, Stored] = {}
        self._by_subject: dict[str, list[int]] = {}
        self._removed: deque[Stored] = deque()
        self._expired: deque[Stored] = deque()
        """What went because its TTL was over, lately."""
        self._ids: dict[str, tuple[int, float]] = {}
        self.taken = tuple((literal_head(pattern), pattern) for pattern in config["subjects"])
        """The patterns of its subjects, each behind what it begins with, which is enough to rule most subjects out."""

    def takes(self, subject: str) -> bool:
        """Whether messages on `subject` are stored here."""
        return any(subject.startswith(head) and matches(pattern, subject) for head, pattern in self.taken)

    # --- publishing -----------------------------------------------------------------------------------------------
    def publish(self, subject: str, headers: Mapping[str, str], data: bytes) -> dict[str, Any]:
        """The acknowledgement.

        Raises:
            Refusal: nothing was stored.
        """
        config = self.config
        limit = config.get("max_msg_size", -1)
        if 0 <= limit < len(data) + sum(len(k) + len(v) + 4 for k, v in headers.items()) + (12 if headers else 0):
            raise Refusal(400, 10054, "message size exceeds maximum allowed")
        self._check_expected(subject, headers)
        ttl = self._check_ttl(headers)
        known = self._known(headers.get("Nats-Msg-Id"))
        if known is not None:
            return {"stream": self.name, "seq": known, "duplicate": True}
        if "Nats-Rollup" in headers and not config.get("allow_rollup_hdrs"):
            raise Refusal(500, 10111, "rollup not permitted")
        due = self._check_schedule(subject, headers)
        before = self.last_on(subject)
        self._make_room(subject)
        message = self._store(subject, before, {**headers, "Nats-Rollup": "sub"} if due is not None else dict(headers), data)
        if "Nats-Msg-Id" in headers:
            self._ids[headers["Nats-Msg-Id"]] = (message.seq, message.at)
        self._after(message, ttl, due)
        return {"stream": self.name, "seq": message.seq}

    def _known(self, msg_id: str | None) -> int | None:
        if not msg_id or msg_id not in self._ids:
            return None
        seq, at = self._ids[msg_id]
        if self._clock() - at >= self.config.get("duplicate_window", 120 * _NANOS) / _NANOS:
            del self._ids[msg_id]
            return None
        return seq

    def _check_ttl(self, headers: Mapping[str, str]) -> float | None:
        text = headers.get("Nats-TTL")
        if text is None:
            return None
        if not text.isdigit() or int(text) < 1:
            raise Refusal(400, 10165, "invalid per-message TTL")
        if not self.config.get("allow_msg_ttl"):
            raise Refusal(400, 10166, "per-message TTL is disabled")
        return float(text)

    def _check_expected(self, subject: str, headers: Mapping[str, str]) -> None:
        text = headers.get("Nats-Expected-Last-Subject-Sequence")
        if text is None:
            return
        last = self.last_on(subject)
        if (last.seq if last is not None else 0) != int(text):
            raise Refusal(400, 10071, f"wrong last sequence: {last.seq if last is not None else 0}")

    def _check_schedule(self, subject: str, headers: Mapping[str, str]) -> float | None:
        text = headers.get("Nats-Schedule")
        if text is None:
            return None
        if not self.config.get("allow_msg_schedules"):
            raise Refusal(400, 10188, "message schedules is disabled")
        target = headers.get("Nats-Schedule-Target", "")
        if not target or target == subject or not self.takes(target):
            raise Refusal(400, 10190, "message schedules target is invalid")
        return parse_time(text.removeprefix("@at "))

    def _make_room(self, subject: str) -> None:
        bound = self.config.get("max_msgs_per_subject", -1)
        seqs = self._by_subject.get(subject, ())
        if bound < 1 or len(seqs) < bound:
            return
        if self.config.get("discard_new_per_subject"):
            raise Refusal(503, 10077, "maximum messages per subject exceeded")
        for seq in seqs[: len(seqs) - bound + 1]:
            self._remove(seq)

    def _store(self, subject: str, before: Stored | None, headers: dict[str, str], data: bytes) -> Stored:
        self.last_seq += 1
        self.changes += 1
        message = Stored(
            self.last_seq, subject, headers, data, self._wall(), self._clock(), before.seq if before is not None else 0
        )
        self._live[message.seq] = message
        self._by_subject.setdefault(subject, []).append(message.seq)
        self.history.append(message)
        if headers.get("Nats-Rollup") == "sub":
            for seq in self._by_subject[subject][:-1]:
                self._remove(seq)
        elif headers.get("Nats-Rollup") == "all":
            for seq in [seq for seq in self._live if seq != message.seq]:
                self._remove(seq)
        return message

    def _after(self, message: Stored, ttl: float | None, due: float | None) -> None:
        if ttl is not None:
            self._later(ttl + self._lateness(), lambda: self._expire(message))
        if due is not None:
            self._later(max(0.0, due - self._wall()) + self._lateness(), lambda: self._fire(message))
        self._stored(self, message)

    # --- time -----------------------------------------------------------------------------------------------------
    def _expire(self, message: Stored) -> None:
        """The TTL is over: the last message of its subject leaves a marker, unless it is one."""
        if message.gone is not None:
            return
        last = self._by_subject[message.subject][-1] == message.seq
        self._remove(message.seq)
        self._expired.append(message)
        while (self._expired[0].gone or 0.0) < self._clock() - REMEMBERED_S:
            self._expired.popleft()
        marker_ttl = self.config.get("subject_delete_marker_ttl", 0) // _NANOS
        is_marker = "Nats-Marker-Reason" in message.headers or message.headers.get("KV-Operation") in ("PURGE", "DEL")
        if last and marker_ttl and not is_marker:
            headers = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{marker_ttl}s", "Nats-Rollup": "sub"}
            marker = self._store(message.subject, message, headers, b"")
            self._after(marker, float(marker_ttl), None)

    def _fire(self, schedule: Stored) -> None:
        """The message that was scheduled is stored in its target, and the schedule goes."""
        if schedule.gone is not None:
            return
        headers = {k: v for k, v in schedule.headers.items() if k not in _SCHEDULE_HEADERS and k not in _OF_ONE_PUBLISH}
        headers |= {"Nats-Scheduler": schedule.subject, "Nats-Schedule-Next": "purge"}
        target = schedule.headers["Nats-Schedule-Target"]
        fired = self._store(target, self.last_on(target), headers, schedule.data)
        self._remove(schedule.seq)
        self._stored(self, fired)

    # --- removing -------------------------------------------------------------------------------------------------
    def _remove(self, seq: int) -> None:
        message = self._live.pop(seq)
        self.changes += 1
        message.gone = self._clock()
        seqs = self._by_subject[message.subject]
        del seqs[bisect.bisect_left(seqs, seq)]
        if not seqs:
            del self._by_subject[message.subject]
        self._removed.append(message)
        while self._removed and self._removed[0].gone is not None and self._removed[0].gone < message.gone - 2 * MAX_LAG_S:
            self._removed.popleft()

    def purge(self, pattern: str, below: int) -> int:
        """Remove what matches, under `below` (0: all of it). How many there were."""
        gone = [m.seq for m in self._matching(pattern, 0) if not below or m.seq < below]
        for seq in gone:
            self._remove(seq)
        return len(gone)

    def delete(self, seq: int) -> None:
        """Remove one message.

        Raises:
            Refusal: it is not there, or must stay.
        """
        if self.config.get("deny_delete"):
            raise Refusal(500, 10057, "message delete not permitted")
        if not seq or seq > self.last_seq:
            raise Refusal(500, 10057, "stream store EOF")
        if seq not in self._live:
            raise Refusal(500, 10057, "no message found")
        self._remove(seq)

    def backup(self) -> tuple[int, list[Stored]]:
        """All that it holds now, for `restore`."""
        return self.last_seq, list(self._live.values())

    def restore(self, backup: tuple[int, list[Stored]]) -> None:
        """Become what it was at the backup: whatever was stored since is lost, its sequences are given again."""
        for message in self._live.values():
            message.gone = self._clock()
        self.last_seq, messages = backup
        self.changes += 1
        self._live, self._by_subject = {}, {}
        self._removed.clear()
        for old in messages:
            message = dataclasses.replace(old, gone=None)
            self._live[message.seq] = message
            self._by_subject.setdefault(message.subject, []).append(message.seq)
            if "Nats-TTL" in message.headers and message.headers["Nats-TTL"].isdigit():
                self._later(float(message.headers["Nats-TTL"]), functools.partial(self._expire, message))
            if "Nats-Schedule" in message.headers:
                due = parse_time(message.headers["Nats-Schedule"].removeprefix("@at "))
                self._later(max(0.0, due - self._wall()), functools.partial(self._fire, message))
        self.restart()

    def restart(self) -> None:
        """What a restart of the server makes of it: the table of ids is rebuilt from what is stored."""
        self._ids = {m.headers["Nats-Msg-Id"]: (m.seq, m.at) for m in self._live.values() if m.headers.get("Nats-Msg-Id")}

    # --- what a killed server forgets -------------------------------------------------------------------------------
    def forget_ids(self, chosen: Callable[[], bool]) -> int:
        """Forget ids of messages that are stored, each if `chosen()`. How many."""
        gone = [msg_id for msg_id in self._ids if chosen()]
        for msg_id in gone:
            del self._ids[msg_id]
        return len(gone)

    def bring_back(self, chosen: Callable[[], bool]) -> int:
        """Bring back what was purged, rolled up, replaced or has expired, each if `chosen()`. How many.

        A subject of which one message is kept keeps its newest; what has a TTL that is over does not come back.
        """
        now, single = self._clock(), self.config.get("max_msgs_per_subject", -1) == 1 or self.config.get("allow_msg_schedules")
        back = []
        for message in reversed(self.history):
            if message.gone is None or message.gone < now - REMEMBERED_S or (single and message.subject in self._by_subject):
                continue
            ttl = message.headers.get("Nats-TTL", "")
            over = ttl.isdigit() and message.at + int(ttl) <= now
            if not over and not self._is_due(message) and chosen():
                self._put_back(message)
                back.append(message)
        self._live = dict(sorted(self._live.items()))
        return len(back)

    def fire_again(self, chosen: Callable[[], bool]) -> int:
        """Fire schedules once more that have fired lately, each if `chosen()`. How many."""
        again = [
            message
            for message in self.history
            if message.gone is not None
            and message.gone >= self._clock() - REMEMBERED_S
            and self._is_due(message)
            and message.subject not in self._by_subject
            and chosen()
        ]
        for message in again:
            self._put_back(message)
        self._live = dict(sorted(self._live.items()))
        return len(again)

    def _is_due(self, message: Stored) -> bool:
        due = message.headers.get("Nats-Schedule")
        return due is not None and parse_time(due.removeprefix("@at ")) <= self._wall()

    def _put_back(self, message: Stored) -> None:
        message.gone = None
        self.changes += 1
        self._live[message.seq] = message
        bisect.insort(self._by_subject.setdefault(message.subject, []), message.seq)
        ttl, due = message.headers.get("Nats-TTL", ""), message.headers.get("Nats-Schedule")
        if ttl.isdigit():
            self._later(max(0.0, message.at + int(ttl) - self._clock()), functools.partial(self._expire, message))
        if due is not None:
            at = parse_time(due.removeprefix("@at "))
            self._later(max(0.0, at - self._wall()) + self._lateness(), functools.partial(self._fire, message))

    # --- reading --------------------------------------------------------------------------------------------------
    def last_on(self, subject: str) -> Stored | None:
        """The newest message of exactly this subject."""
        seqs = self._by_subject.get(subject)
        return self._live[seqs[-1]] if seqs else None

    def last_of(self, pattern: str) -> Stored | None:
        """The newest message that matches."""
        if not _wild(pattern):
            return self.last_on(pattern)
        newest = max((s[-1] for t, s in self._by_subject.items() if matches(pattern, t)), default=0)
        return self._live.get(newest)

    def next_of(self, pattern: str, from_seq: int) -> Stored | None:
        """The oldest message that matches, at or behind `from_seq`."""
        return next(self._matching(pattern, from_seq), None)

    def get(self, seq: int) -> Stored | None:
        return self._live.get(seq)

    def _matching(self, pattern: str, from_seq: int) -> Iterator[Stored]:
        seqs = self._by_subject.get(pattern)
        if seqs is None:
            if not _wild(pattern):
                return iter(())
            seqs = sorted(s for t, found in self._by_subject.items() if matches(pattern, t) for s in found)
        return map(self._live.__getitem__, seqs[bisect.bisect_left(seqs, from_seq) :])

    def view(self, pattern: str, from_seq: int, lag: float, *, undead: bool = False) -> list[Stored]:
        """What matches, as a replica sees it that is `lag` seconds behind; `undead`: and that still has what has expired."""
        if undead:
            found = {m.seq: m for m in self._matching(pattern, from_seq)}
            for message in self._expired:
                over = message.gone is not None and message.seq >= from_seq and message.subject not in self._by_subject
                if over and matches(pattern, message.subject):
                    found[message.seq] = message
            return [found[seq] for seq in sorted(found)]
        if not lag:
            return list(self._matching(pattern, from_seq))
        then = self._clock() - lag
        found = {m.seq: m for m in self._matching(pattern, from_seq) if m.at <= then}
        for message in self._removed:
            still = message.gone is not None and message.gone > then >= message.at
            if still and message.seq >= from_seq and matches(pattern, message.subject):
                found[message.seq] = message
        return [found[seq] for seq in sorted(found)]

    def last_seq_at(self, lag: float) -> int:
        """The last sequence as a replica knows it that is `lag` seconds behind."""
        then = self._clock() - lag
        for message in reversed(self.history):
            if message.at <= then:
                return message.seq
        return 0

    def newest_each(self, patterns: list[str], lag: float, *, undead: bool = False) -> list[Stored]:
        """The newest message of each subject that one of `patterns` matches, in stream order."""
        newest: dict[str, Stored] = {}
        for pattern in patterns:
            for message in self.view(pattern, 0, lag, undead=undead):
                known = newest.get(message.subject)
                if known is None or known.seq < message.seq:
                    newest[message.subject] = message
        return sorted(newest.values(), key=lambda m: m.seq)

    def info(self, subjects: str = "") -> dict[str, Any]:
        """What `STREAM.INFO` says; with a pattern of `subjects` also how many messages each of those has."""
        first = next(iter(self._live), self.last_seq + 1 if self.last_seq else 0)
        state: dict[str, Any] = {"messages": len(self._live), "first_seq": first, "last_seq": self.last_seq}
        if self.history:
            state["last_ts"] = self.history[-1].stamp()
        if subjects:
            state["subjects"] = {name: len(seqs) for name, seqs in self._by_subject.items() if matches(subjects, name)}
        return {"config": self.config, "state": state, "created": format_time(0.0), "ts": format_time(self._wall())}

    def live(self) -> list[Stored]:
        """Everything that is stored now."""
        return list(self._live.values())
