"""Every role claims to be somebody else on every way in, and is known as what the server says or not at all (cases 705 and 706).

By the raw protocol, where a header may stand twice, and by this project's connection; on one server and on three.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Protocol

import msgspec
import pytest

import agentmesh_client
from access_kit.claims import AGENT, ENTRIES, MAY, MESH, Entry, Sent, attempts, filled, known
from access_kit.place import SUBJECTS, Place, place, secured_mesh
from access_kit.raw import Got, Raw
from agentmesh.access.roles import ROLES, Role
from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Response
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.transport import NoResponders, RequestTimeout
from agentmesh.errors import NotPermitted
from agentmesh.identity import Chain, as_meta, told, whole
from agentmesh.subjects import spec_key
from live.agents import steered
from support import eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(705)]


class Seen(msgspec.Struct):
    """What an agent was told of those that asked it."""

    asked: list[tuple[str, str, str | None, str]] = []
    """Prompt, chain, sender and ref."""
    events: list[tuple[str, str | None]] = []


class Witness(Agent[Seen]):
    """Notes who is behind each request."""

    backend = "scripted"
    script = staticmethod(steered)

    async def init_agent(self, options: dict[str, Any]) -> Init[Seen]:
        return Init(Seen())

    async def handle_response(self, ref: str, response: Response, state: Seen) -> Idle[Seen]:
        noted = (response.text, told(self.request.chain), self.request.sender, ref)
        return Idle(msgspec.structs.replace(state, asked=[*state.asked, noted]))

    async def handle_event(self, event: Any, state: Seen) -> Idle[Seen]:
        return Idle(msgspec.structs.replace(state, events=[*state.events, (event["n"], self.sender)]))


@pytest.fixture(scope="module", params=[1, 3], ids=["one server", "three servers"])
def there(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as made:
        yield made


class Line(Protocol):
    """How a role speaks to the servers."""

    user: str

    async def refused(self, entry: Entry, sent: list[Sent], headers: list[Any]) -> list[str]:
        """Those of what is sent there that the server does not refuse."""

    async def answers(self, entry: Entry, bodies: list[bytes], headers: list[Any]) -> list[Any]:
        """What is answered to each."""

    async def close(self) -> None: ...


class _RawLine:
    def __init__(self, made: Raw) -> None:
        self._raw, self.user = made, made.user

    async def refused(self, entry: Entry, sent: list[Sent], headers: list[Any]) -> list[str]:
        passed = []
        for one, pairs in zip(sent, headers, strict=True):
            self._raw.errors.clear()
            self._raw.publish(entry.subject, entry.body(one.label, "1"), pairs, reply=self._raw.inbox())
            await self._raw.flush()
            if not any(error.startswith("Permissions Violation for Publish to") for error in self._raw.errors):
                passed.append(f"{one.label} ({one.claim.name})")
        return passed

    async def answers(self, entry: Entry, bodies: list[bytes], headers: list[Any]) -> list[Any]:
        inboxes = [self._raw.inbox() for _ in bodies]
        at = len(self._raw.messages)
        for body, pairs, inbox in zip(bodies, headers, inboxes, strict=True):
            self._raw.publish(entry.subject, body, pairs, reply=inbox)
        wanted = set(inboxes)
        with contextlib.suppress(TimeoutError):
            await self._raw.until(lambda: wanted <= {message.subject for message in self._raw.messages[at:]}, 30)
        found = {message.subject: message for message in reversed(self._raw.messages[at:])}
        return [_read(found[inbox]) if inbox in found else {"error": {"code": "unheard"}} for inbox in inboxes]

    async def close(self) -> None:
        await self._raw.close()


def _read(message: Got) -> Any:
    return json.loads(message.body) if message.body else {"error": {"code": message.status}}


class _ClientLine:
    def __init__(self, made: NatsTransport, user: str) -> None:
        self._t, self.user = made, user

    async def refused(self, entry: Entry, sent: list[Sent], headers: list[Any]) -> list[str]:
        passed = []
        for one, pairs in zip(sent, headers, strict=True):
            try:
                await self._t.request(entry.subject, entry.body(one.label, "1"), headers=dict(pairs), timeout=30)
            except NotPermitted:
                continue
            passed.append(f"{one.label} ({one.claim.name})")
        return passed

    async def answers(self, entry: Entry, bodies: list[bytes], headers: list[Any]) -> list[Any]:
        return await asyncio.gather(*map(partial(self._answer, entry.subject), bodies, headers))

    async def _answer(self, subject: str, body: bytes, pairs: Any) -> Any:
        try:
            return json.loads((await self._t.request(subject, body, headers=dict(pairs), timeout=30)).data)
        except (NoResponders, RequestTimeout) as error:
            return {"error": {"code": type(error).__name__}}

    async def close(self) -> None:
        await self._t.close()


async def _line(there: Place, user: str, *, by_raw: bool) -> Line:
    if by_raw:
        made = await Raw.connect(there.url(user, 0))
        made.subscribe(f"_INBOX.{user}.>")
        await made.flush()
        return _RawLine(made)
    return _ClientLine(await connect(there.url(user, 0), name=user), user)


def _right(entry: Entry, label: str, answer: Any) -> bool:
    """Whether this is the answer as it would be without any claim."""
    if answer.get("error"):
        return False
    match entry.name:
        case "ask":
            return bool(answer["text"] == label)
        case "tell" | "event-to":
            return "ref" in answer
        case "poll":
            return bool(answer["status"] == "completed")
        case "control" | "control, old form":
            return "state" in answer
    return "seq" in answer  # the server has stored the mail


_numbers = itertools.count(1)
"""Origins must rise: what a sender has sent before is no news, also to the next agent of that name."""


class _Claimed:
    """All that was sent by every role, and what came of it."""

    def __init__(self, there: Place, *, by_raw: bool) -> None:
        self._there, self._by_raw = there, by_raw
        self.served: list[Sent] = []
        self.wrong: list[str] = []

    async def by(self, role: Role, life: str, ref: str) -> None:
        """This role makes each claim on each way in."""
        line = await _line(self._there, "shop" if role == "caller" else role, by_raw=self._by_raw)
        try:
            for entry in ENTRIES:
                sent = [one for one in attempts(role, entry) if self._by_raw or not one.claim.doubled]
                headers = [self._headers(one, line.user, life) for one in sent]
                if entry.name not in MAY[role]:
                    passed = await line.refused(entry, sent, headers)
                    self.wrong += [f"not refused: {name}" for name in passed]
                    continue
                bodies = [entry.body(one.label, ref) for one in sent]
                answers = await line.answers(entry, bodies, headers)
                self.wrong += [
                    f"{one.label} ({one.claim.name}): {answer}"
                    for one, answer in zip(sent, answers, strict=True)
                    if not _right(entry, one.label, answer)
                ]
                self.served += sent
        finally:
            await line.close()

    def _headers(self, sent: Sent, user: str, life: str) -> tuple[tuple[str, str], ...]:
        return filled(sent.claim.headers, own=f"_INBOX.{user}.other", life=life, number=str(next(_numbers)))

    def of(self, makes: str) -> list[Sent]:
        return [one for one in self.served if one.entry.makes == makes]


def _live(events: list[dict[str, Any]], kind: str) -> Counter[tuple[str, str | None]]:
    found = [event for event in events if event["kind"] == kind and event["agent"] == AGENT]
    return Counter((json.dumps(event["chain"]), event["sender"]) for event in found)


def _expected(sent: list[Sent]) -> Counter[tuple[str, str | None]]:
    return Counter((json.dumps(as_meta(chain)), sender) for chain, sender in (one.told_of for one in sent))


@contextlib.asynccontextmanager
async def _observed(there: Place) -> AsyncIterator[list[dict[str, Any]]]:
    """What an observer hears of agents while they run."""
    events: list[dict[str, Any]] = []
    observer = await connect(there.url("observer"), name="observer")
    try:
        await observer.subscribe(SUBJECTS.event_all(), lambda message: events.append(json.loads(message.data)))
        await observer.flush()
        yield events
    finally:
        await observer.close()


async def _life(there: Place) -> str:
    """The incarnation of the agent, which mail may be for."""
    looking = await connect(there.url("operator"), name="looking")
    try:
        entry = await Registry(looking, SUBJECTS).get(spec_key(AGENT))
        assert entry is not None
        return decode_spec(entry).incarnation
    finally:
        await looking.close()


@pytest.mark.parametrize("by_raw", [True, False], ids=["raw", "client"])
def test_who_is_behind_a_request_is_what_the_server_says_whatever_a_role_claims(there: Place, by_raw: bool) -> None:
    async def main() -> None:
        async with (
            secured_mesh(there, more={"Witness": Witness}),
            agentmesh_client.connect(there.url("operator")) as operator,
            _observed(there) as events,
        ):
            await operator.start_agent(AGENT, kind="Witness", timeout=60)
            first = await operator.ask(AGENT, "first", timeout=60)
            life = await _life(there)
            claimed = _Claimed(there, by_raw=by_raw)
            for role in ROLES:
                await claimed.by(role, life, first.ref)
            assert not claimed.wrong, "\n".join(claimed.wrong)
            prompts, notices = claimed.of("prompt"), claimed.of("event")

            async def taken() -> dict[str, Any] | None:
                state: dict[str, Any] = (await operator.status(AGENT, content=True, timeout=30)).agent_state
                whole_of_it = len(state["asked"]) > len(prompts) and len(state["events"]) >= len(notices)
                return state if whole_of_it else None

            state: dict[str, Any] = {}

            async def all_taken() -> bool:
                state.update(await taken() or {})
                return bool(state)

            await eventually(all_taken, 60, "each of them")
            _, *asked = state["asked"]
            must = {one.label: (told(whole(*one.told_of)), one.told_of[1]) for one in prompts}
            assert {text: (chain, sender) for text, chain, sender, _ in asked} == must, "as callbacks see it"
            assert len(asked) == len(prompts), "each once"
            assert Counter(map(tuple, state["events"])) == Counter((one.label, one.told_of[1]) for one in notices)

            chains: dict[str, Chain] = {one.label: one.told_of[0] for one in prompts}
            by_ref = {ref: chains[text] for text, _, _, ref in asked}
            turns = [turn for turn in await operator.history(AGENT, timeout=60) if turn.ref in by_ref]
            assert turns and all(turn.chain == told(by_ref[turn.ref]) for turn in turns), "as the history has it"

            begun = _expected(prompts) + Counter({("[]", None): 1})
            await eventually(lambda: _live(events, "prompt_start").total() >= begun.total(), what="the events of all turns")
            assert _live(events, "prompt_start") == begun, "as an observer sees it live"
            await eventually(lambda: _live(events, "event_received").total() >= len(notices), what="the events of all notices")
            assert _live(events, "event_received") == _expected(notices)
            await operator.stop(AGENT, timeout=60)

    run(main(), timeout=110)


@pytest.mark.case(706)
def test_each_header_that_the_product_knows_is_claimed() -> None:
    assert known() == set(MESH)
    assert set(MAY) == set(ROLES)
