"""On whose behalf each turn ran, against the way that its request had come; and that no key was gone around."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from agentmesh import wire
from agentmesh.identity import Chain, Party, told, whole
from agentmesh.keys import KEY_DIGEST, digest_of
from agentmesh.records import Record
from judge.evidence import OTHERS, OWN_POLL, Evidence, Letter, Operation

ACCOUNT = "CALLERS"
"""The account of a run's users."""


def misattributed(evidence: Evidence) -> Iterable[str]:
    """Each turn that ran for mail, also behind a takeover, knew the user whose request that was, and all agents on the way from
    there; and each record of a turn says the same. Mail of a request with a key has its digest."""
    ways = Ways(evidence)
    for call in (*evidence.calls, *evidence.decided):
        letter = ways.letters.get((call.agent, call.ref))
        expected = told(whole(ways.chain(letter), _sender(letter))) if letter is not None and letter.is_prompt else call.chain
        if letter is not None and call.chain != expected:
            yield f"{call.agent} {call.ref} ({letter.text}) ran on {call.node} for {call.chain!r}, and was for {expected!r}"
    for agent, records in evidence.journals.items():
        for seq, record in records:
            yield from _recorded(ways, agent, seq, record)
    for letter in evidence.letters:
        op = ways.operation(letter)
        if op is not None and op.key and letter.is_prompt and letter.headers.get(KEY_DIGEST) != digest_of(op.key):
            yield f"{letter.agent} {letter.seq} ({letter.text}) was stored without its key"


def _recorded(ways: Ways, agent: str, seq: int, record: Record) -> Iterable[str]:
    info = record.turn
    letter = ways.letters.get((agent, info.ref)) if info is not None else None
    if info is not None and letter is not None and info.chain != ways.chain(letter):
        yield f"{agent}: record {seq} says that {info.ref} ({letter.text}) was for {told(info.chain)!r}"
    for handled in record.handled:
        met = ways.letters.get((agent, str(handled.seq)))
        by_user = met is not None and met.lane == handled.lane == "peer-notify" and _sender(met) is None
        if met is not None and by_user and handled.chain != ways.chain(met):
            yield f"{agent}: record {seq} says that the event {met.label} was for {told(handled.chain)!r}"


def let_in(evidence: Evidence) -> Iterable[str]:
    """A request with a key was told to, and ended for, nobody who had not got that; and who had it was not turned down."""
    for op in evidence.operations:
        if op.kind in OTHERS and op.ended is not None and op.error is None:
            yield f"{op.client} got at the request {op.label} of {op.agent} without its key"
        if op.kind == OWN_POLL and op.error == "not_permitted":
            yield f"{op.client} was turned down with the key of {op.label} of {op.agent}"


def of_users(evidence: Evidence) -> dict[str, int]:
    """What of a run these judge, in numbers."""
    refused = [op for op in evidence.operations if op.kind in OTHERS and op.error == "not_permitted"]
    seen = {(call.agent, call.ref) for call in evidence.calls if call.chain.startswith("user ")}
    return {"turns for users": len(seen), "refused for want of a key": len(refused)} if seen else {}


def _sender(letter: Letter) -> str | None:
    return letter.headers.get(wire.FROM)


class Ways:
    """The way on which each prompt of a run has come, by what agents of a run send for what."""

    def __init__(self, evidence: Evidence) -> None:
        self.letters = {(letter.agent, str(letter.seq)): letter for letter in evidence.letters}
        self._of: dict[tuple[str, str], list[Letter]] = defaultdict(list)
        for letter in evidence.letters:
            if letter.is_prompt:
                self._of[letter.agent, _base(letter)].append(letter)
        self._operations = {(op.agent, op.label): op for op in evidence.operations if op.kind not in (OWN_POLL, *OTHERS)}

    def operation(self, letter: Letter) -> Operation | None:
        """What a client did to send this; None if no client has sent it."""
        return self._operations.get((letter.agent, letter.label)) if _sender(letter) is None else None

    def chain(self, letter: Letter) -> Chain:
        """On whose behalf this was sent; empty where no user stands behind it."""
        way: list[Party] = []
        for _ in range(len(self.letters)):
            sender = _sender(letter)
            if sender is None:
                op = self.operation(letter)
                user = Party(kind="user", name=op.user, account=ACCOUNT) if op is not None and op.user else None
                return (user, *reversed(way)) if user is not None else ()
            way.append(Party(kind="agent", name=sender))
            above = next((one for one in self._of[sender, _base(letter)] if letter.label in set(_sent_by(one))), None)
            if above is None:
                return ()  # an agent's own accord: a timer, or what it was told of the end of another
            letter = above
        raise AssertionError(f"the way of {letter.label} has no beginning")


def _base(letter: Letter) -> str:
    return letter.label.partition("@")[0]


def _sent_by(letter: Letter) -> Iterator[str]:
    """Labels of what an agent sends to others because of this prompt."""
    verb, label, *rest = letter.text.split()
    base = label.partition("@")[0]
    match verb:
        case "pass" | "call" | "apart" if int(rest[0]) > 0:
            yield f"{base}@{rest[0]}"
            if verb == "apart":
                yield f"{base}@d{rest[0]}"
        case "wait" if rest:
            yield f"{base}@{len(rest)}"
        case "spawn":
            yield f"{label}@spawned"
        case "lost":
            yield f"{label}@lost"
