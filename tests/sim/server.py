"""An in-memory NATS server: core messages with queue groups and no-responders, and the JetStream API that the mesh uses.

It knows connections by number only; net.py carries messages to and from them. Everything that can go wrong in it is asked of
`faults`, whose default is that nothing does.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from agentmesh.edge.frames import header_block
from agentmesh.edge.transport import Headers, Message
from agentmesh.wire import parse_time
from sim.store import Refusal, Stored, Stream, literal_head, matches

EPOCH = 1_800_000_000.0
"""The wall clock when the loop's clock is 0."""
_MAX_MATCHES = 1024
_NO_HEADERS: dict[str, str] = {}
_INBOX = "_INBOX."


class Interest(NamedTuple):
    """One subscription."""

    connection: int
    sid: int
    queue: str


class Listeners(NamedTuple):
    """Whom a message reaches."""

    all_of: tuple[Interest, ...]
    one_of_each: tuple[tuple[Interest, ...], ...]
    """The members of each queue group."""


class Faults:
    """What goes wrong in the server. This one: nothing."""

    def refuse(self, stream: str) -> bool:
        """Whether `stream` has no leader now."""
        return False

    def no_verdict(self, subject: str) -> bool:
        """Whether a compare-and-set gets 10164."""
        return False

    def lag(self) -> float:
        """How far the replica is behind that answers a direct get, in seconds."""
        return 0.0

    def copies(self, subject: str) -> int:
        """How often one message reaches one subscriber."""
        return 1

    def lateness(self) -> float:
        """How late an expiry or a schedule is."""
        return 0.0

    def undead(self) -> bool:
        """Whether the replica that answers a direct get still has what has expired."""
        return False

    def lacking(self, count: int) -> int | None:
        """Which of so many messages is missing in the answer to a direct get, though it is stored."""
        return None


class _Trie:
    """Subscriptions by subject token."""

    __slots__ = ("children", "here")

    def __init__(self) -> None:
        self.children: dict[str, _Trie] = {}
        self.here: dict[tuple[int, int], Interest] = {}

    def add(self, pattern: str, interest: Interest) -> None:
        node = self
        for token in pattern.split("."):
            node = node.children.setdefault(token, _Trie())
        node.here[interest.connection, interest.sid] = interest

    def remove(self, pattern: str, key: tuple[int, int]) -> None:
        tokens = pattern.split(".")
        path = [self]
        for token in tokens:
            child = path[-1].children.get(token)
            if child is None:
                return
            path.append(child)
        path[-1].here.pop(key, None)
        for parent, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            child = parent.children[token]
            if child.here or child.children:
                break
            del parent.children[token]

    def find(self, tokens: list[str], index: int, out: list[Interest]) -> None:
        if index == len(tokens):
            out.extend(self.here.values())
            return
        children = self.children
        if (rest := children.get(">")) is not None:
            out.extend(rest.here.values())
        if (child := children.get(tokens[index])) is not None:
            child.find(tokens, index + 1, out)
        if (child := children.get("*")) is not None:
            child.find(tokens, index + 1, out)


class Server:
    """The server. `deliver(connection, sid, message)` brings a message to a client; `choose(n)` is a die with n sides."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        deliver: Callable[[int, int, Message], None],
        choose: Callable[[int], int],
        max_payload: int = 1 << 20,
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self.faults = Faults()
        self.max_payload = max_payload
        self.heard: list[tuple[str, bytes]] = []
        """Every core message published to an inbox: what callers were told."""
        self._clock = clock
        self._later = later
        self._deliver = deliver
        self._choose = choose
        self._trie = _Trie()
        self.ahead: dict[str, float] = {}
        """By stream: seconds by which the clock of the server that leads it is ahead."""
        self._subscriptions: dict[tuple[int, int], str] = {}
        self._by_subject: dict[str, Stream | None] = {}
        self._taken: list[tuple[str, str, Stream]] = []
        """See `Stream.taken`."""
        self._heard_by: dict[str, Listeners] = {}
        """Who listens to a subject, as long as no subscription comes or goes; to an inbox, by the inbox."""
        self._whole_inboxes = True
        """All subjects of one inbox have had the same listeners so far."""

    def wall(self, stream: str = "") -> float:
        """The time, in seconds since the epoch, as the server has it that leads `stream`."""
        return EPOCH + self._clock() + self.ahead.get(stream, 0.0)

    # --- connections ----------------------------------------------------------------------------------------------
    def subscribe(self, connection: int, sid: int, pattern: str, queue: str) -> None:
        if pattern.startswith(_INBOX) and not pattern.endswith(".*"):
            self._whole_inboxes = False
        self._forget_listeners(pattern)
        self._trie.add(pattern, Interest(connection, sid, queue))
        self._subscriptions[connection, sid] = pattern

    def unsubscribe(self, connection: int, sid: int) -> None:
        pattern = self._subscriptions.pop((connection, sid), None)
        if pattern is not None:
            self._forget_listeners(pattern)
            self._trie.remove(pattern, (connection, sid))

    def _forget_listeners(self, pattern: str) -> None:
        """Of the subjects that `pattern` means, and at most of some others."""
        head = literal_head(pattern)
        if head == pattern:
            self._heard_by.pop(pattern, None)
        elif head.startswith(_INBOX):
            self._heard_by.pop(head[:-1], None)
        else:
            for subject in [subject for subject in self._heard_by if subject.startswith(head)]:
                del self._heard_by[subject]

    def drop(self, connection: int) -> None:
        """The connection is gone, and its subscriptions with it."""
        for key in [key for key in self._subscriptions if key[0] == connection]:
            self.unsubscribe(*key)

    # --- publishing -----------------------------------------------------------------------------------------------
    def publish(self, subject: str, headers: Headers | None, data: bytes, reply: str) -> None:
        """A message from a client, which does not change `headers` any more."""
        if subject.startswith("$JS.API."):
            self._api(subject[8:], data, reply)
            return
        if subject.startswith(_INBOX):
            self.heard.append((subject, data))
            stream = None
        else:
            stream = self._stream_of(subject)
        fields = headers or _NO_HEADERS
        heard = self._spread(Message(subject, data, fields, reply))
        if stream is not None and not self.faults.refuse(stream.name):
            self._reply(reply, self._put(stream, subject, fields, data))
        elif not heard and reply:
            self._send(reply, b"", {}, "503")

    def _stream_of(self, subject: str) -> Stream | None:
        if subject not in self._by_subject:
            self._by_subject[subject] = None
            for head, pattern, stream in self._taken:
                if subject.startswith(head) and matches(pattern, subject):
                    self._by_subject[subject] = stream
                    break
        return self._by_subject[subject]

    def _put(self, stream: Stream, subject: str, headers: Mapping[str, str], data: bytes) -> dict[str, Any]:
        if "Nats-Expected-Last-Subject-Sequence" in headers and self.faults.no_verdict(subject):
            return {
                "error": {"code": 400, "err_code": 10164, "description": "wrong last sequence"},
                "stream": stream.name,
                "seq": 0,
            }
        try:
            return stream.publish(subject, headers, data)
        except Refusal as refusal:
            return {"error": refusal.body, "stream": stream.name, "seq": 0}

    def _spread(self, message: Message) -> bool:
        """Deliver `message` to its subscribers: all plain subscribers, and one of each queue group."""
        subject = message.subject
        chosen, groups = self._listeners(subject)
        if groups:
            chosen = (*chosen, *(members[self._choose(len(members))] for members in groups))
        for interest in chosen:
            for _ in range(self.faults.copies(subject)):
                self._deliver(interest.connection, interest.sid, message)
        return bool(chosen)

    def _listeners(self, subject: str) -> Listeners:
        key = subject
        if subject.startswith(_INBOX):  # most subjects of an inbox are used once
            if not self._whole_inboxes:
                return self._found(subject)
            key = subject.rpartition(".")[0]
        known = self._heard_by.get(key)
        if known is None:
            known = self._heard_by[key] = self._found(subject)
        return known

    def _found(self, subject: str) -> Listeners:
        found: list[Interest] = []
        self._trie.find(subject.split("."), 0, found)
        groups: dict[str, list[Interest]] = {}
        for interest in found:
            if interest.queue:
                groups.setdefault(interest.queue, []).append(interest)
        return Listeners(tuple(i for i in found if not i.queue), tuple(map(tuple, groups.values())))

    def _send(self, subject: str, data: bytes, headers: Mapping[str, str], status: str = "") -> None:
        if subject:
            self._spread(Message(subject, data, headers, "", status))

    def _reply(self, reply: str, body: Mapping[str, Any]) -> None:
        if reply:
            self._send(reply, msgspec.json.encode(body), _NO_HEADERS)

    def _on_stored(self, stream: Stream, message: Stored) -> None:
        republish = stream.config.get("republish")
        if not republish:
            return
        source, destination = republish["src"], republish["dest"]
        head = source.removesuffix(">")
        if not source.endswith(">") or not message.subject.startswith(head):
            if source != message.subject:
                return
            target = destination
        else:
            target = destination.removesuffix(">") + message.subject[len(head) :]
        self._spread(Message(target, message.data, self._described(stream, message, message.previous)))

    def _described(self, stream: Stream, message: Stored, previous: int | None) -> dict[str, str]:
        """A stored message's headers, with what the server says of it."""
        headers = {
            **message.headers,
            "Nats-Stream": stream.name,
            "Nats-Subject": message.subject,
            "Nats-Sequence": str(message.seq),
            "Nats-Time-Stamp": message.stamp(),
        }
        if previous is not None:
            headers["Nats-Last-Sequence"] = str(previous)
        return headers

    # --- the API --------------------------------------------------------------------------------------------------
    def _api(self, call: str, data: bytes, reply: str) -> None:
        verb, _, name = call.rpartition(".")
        body: dict[str, Any] = msgspec.json.decode(data) if data else {}
        stream = self.streams.get(name)
        if verb == "DIRECT.GET":
            self._direct(stream, body, reply)
            return
        if stream is not None and self.faults.refuse(name):
            self._send(reply, b"", {}, "503")
            return
        if verb == "STREAM.CREATE":
            self._reply(reply, self._create(body))
        elif stream is None:
            self._reply(reply, _error(404, 10059, "stream not found"))
        elif verb == "STREAM.INFO":
            self._reply(reply, stream.info(body.get("subjects_filter", "")))
        elif verb == "STREAM.PURGE":
            purged = stream.purge(body.get("filter", ">"), body.get("seq", 0))
            self._reply(reply, {"success": True, "purged": purged})
        elif verb == "STREAM.MSG.DELETE":
            self._reply(reply, _delete(stream, body.get("seq", 0)))
        elif verb == "STREAM.MSG.GET":
            self._reply(reply, self._leader_get(stream, body))
        else:
            self._send(reply, b"", {}, "503")

    def _create(self, config: dict[str, Any]) -> dict[str, Any]:
        old = self.streams.get(config["name"])
        if old is not None:
            if old.config == config:
                return old.info()
            return _error(400, 10058, "stream name already in use with a different configuration")
        self._by_subject.clear()
        stream = self.streams[config["name"]] = Stream(
            config,
            clock=self._clock,
            wall=partial(self.wall, config["name"]),
            later=self._later,
            stored=self._on_stored,
            lateness=lambda: self.faults.lateness(),
        )
        self._taken += [(head, pattern, stream) for head, pattern in stream.taken]
        return stream.info()

    def _leader_get(self, stream: Stream, body: Mapping[str, Any]) -> dict[str, Any]:
        if "last_by_subj" in body:
            found = stream.last_of(body["last_by_subj"])
        elif "next_by_subj" in body:
            found = stream.next_of(body["next_by_subj"], body.get("seq", 0))
        else:
            found = stream.get(body.get("seq", 0))
        if found is None:
            return _error(404, 10037, "no message found")
        message = {"subject": found.subject, "seq": found.seq, "time": found.stamp()}
        if found.data:
            message["data"] = base64.b64encode(found.data).decode()
        if found.headers:
            message["hdrs"] = base64.b64encode(header_block(found.headers).encode()).decode()
        return {"message": message}

    def _direct(self, stream: Stream | None, body: Mapping[str, Any], reply: str) -> None:
        if stream is None:
            self._send(reply, b"", {}, "503")
            return
        lag, undead = self.faults.lag(), self.faults.undead()
        if "multi_last" in body:
            self._multi_last(stream, body["multi_last"], lag, undead, reply)
        elif "batch" in body:
            self._batch(stream, body, lag, undead, reply)
        else:
            self._one(stream, body, lag, undead, reply)

    def _lacking(self, found: list[Stored]) -> list[Stored]:
        missing = self.faults.lacking(len(found)) if found else None
        return found if missing is None else [*found[:missing], *found[missing + 1 :]]

    def _one(self, stream: Stream, body: Mapping[str, Any], lag: float, undead: bool, reply: str) -> None:
        if "last_by_subj" in body:
            found = stream.view(body["last_by_subj"], 0, lag, undead=undead)[-1:]
        else:
            found = stream.view(body.get("next_by_subj", ">"), body.get("seq", 0), lag, undead=undead)[:1]
            if "next_by_subj" not in body:
                found = [m for m in found if m.seq == body.get("seq")]
        if found:
            self._send(reply, found[0].data, self._described(stream, found[0], None))
        else:
            self._send(reply, b"", {"Description": "Message Not Found"}, "404")

    def _batch(self, stream: Stream, body: Mapping[str, Any], lag: float, undead: bool, reply: str) -> None:
        found = self._lacking(stream.view(body.get("next_by_subj", ">"), body.get("seq", 0), lag, undead=undead))
        if "start_time" in body:
            since = parse_time(body["start_time"])
            found = [message for message in found if message.time >= since]
        if not found:
            self._send(reply, b"", {"Description": "Message Not Found"}, "404")
            return
        size, before, sent = 0, 0, 0
        for message in found[: body["batch"]]:
            if sent and body.get("max_bytes") and size + len(message.data) > body["max_bytes"]:
                break
            size += len(message.data)
            sent += 1
            headers = self._described(stream, message, before)
            headers["Nats-Num-Pending"] = str(len(found) - sent)
            self._send(reply, message.data, headers)
            before = message.seq
        end = {"Description": "EOB", "Nats-Num-Pending": str(len(found) - sent), "Nats-Last-Sequence": str(before)}
        self._send(reply, b"", end, "204")

    def _multi_last(self, stream: Stream, patterns: list[str], lag: float, undead: bool, reply: str) -> None:
        found = self._lacking(stream.newest_each(patterns, lag, undead=undead))
        if len(found) > _MAX_MATCHES:
            self._send(reply, b"", {"Description": "Too Many Results"}, "413")
            return
        if not found:
            self._send(reply, b"", {"Description": "No Results"}, "404")
            return
        before = 0
        for index, message in enumerate(found):
            headers = self._described(stream, message, before)
            headers["Nats-Num-Pending"] = str(len(found) - index - 1)
            self._send(reply, message.data, headers)
            before = message.seq
        up_to = str(stream.last_seq_at(lag) if lag else stream.last_seq)
        end = {"Description": "EOB", "Nats-Num-Pending": "0", "Nats-Last-Sequence": str(before), "Nats-UpTo-Sequence": up_to}
        self._send(reply, b"", end, "204")


def _delete(stream: Stream, seq: int) -> dict[str, Any]:
    try:
        stream.delete(seq)
    except Refusal as refusal:
        return {"error": refusal.body}
    return {"success": True}


def _error(code: int, err_code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": description}}
