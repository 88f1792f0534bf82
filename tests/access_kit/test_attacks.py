"""Everything that a caller may try against the rest of a mesh in the generated layout (cases 661 and 662).

By the raw protocol and by this project's connection, on one server and on three.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import agentmesh_client
from access_kit.attacks import FORGED, MINE, REFUSED, SERVED, THEIRS, TRACED, Attack
from access_kit.place import SUBJECTS, Place, place, secured_mesh
from access_kit.raw import Raw, raw
from agentmesh.access.layout import crossings
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import get_last, read_all
from agentmesh.errors import NotPermitted
from agentmesh.records import decode_record
from agentmesh.subjects import StreamRole
from support import eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(661)]
KEY = "k" * 40
AGENTS = (MINE, THEIRS)
OF_THE_MESH = (b"python3", b"looking", b"team-", b'"config"', b'"messages"')
"""What an answer would hold of the mesh's connections, messages or streams."""


@pytest.fixture(scope="module", params=[1, 3], ids=["one server", "three servers"])
def there(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as made:
        yield made


@contextlib.asynccontextmanager
async def running(there: Place) -> AsyncIterator[agentmesh_client.Mesh]:
    """A mesh with an agent of each team, and an operator's client."""
    async with secured_mesh(there), agentmesh_client.connect(there.url("operator")) as operator:
        for name in AGENTS:
            await operator.start_agent(name, kind="Puppet", timeout=60)
            ref = await operator.tell(name, "before")
            await eventually(lambda name=name, ref=ref: _completed(operator, name, ref), what="the first outcome")
        for name in AGENTS:  # what an agent writes by itself is no fruit of an attack
            await eventually(lambda name=name: _rests(operator, name), what=f"rest of {name}")
        try:
            yield operator
            for name in AGENTS:
                answer = await operator.ask(name, "after", timeout=60)
                assert answer.text == "after", "agents go on, and answer"
        finally:
            for name in AGENTS:
                await operator.stop(name, timeout=60)
    assert not there.violations()


async def _completed(operator: agentmesh_client.Mesh, agent: str, ref: str) -> bool:
    return (await operator.poll(agent, ref)).status == "completed"


async def _rests(operator: agentmesh_client.Mesh, agent: str) -> bool:
    newest = await get_last(operator.transport, SUBJECTS.stream("journal"), SUBJECTS.journal(agent))
    return newest is not None and decode_record(newest.data).kind == "rest"


async def stored(t: NatsTransport) -> dict[str, int]:
    """The newest message of each stream."""
    roles: tuple[StreamRole, ...] = ("mail", "timer", "result", "journal", "dead", "session")
    return {role: (await stream_state(t, SUBJECTS.stream(role))).last_seq for role in roles}


def filled(text: str, **values: str) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


# --- what cannot even be sent -----------------------------------------------------------------------------------------
async def _refused_raw(shop: Raw, attack: Attack, ear: str) -> bool:
    shop.errors.clear()
    subject = filled(attack.subject, bank=ear)
    if attack.verb == "subscribe":
        shop.subscribe(subject, attack.queue)
    else:
        headers = {name: filled(value, bank=ear) for name, value in attack.headers.items()}
        subject = headers.get(TRACED, subject)
        shop.publish(filled(attack.subject, bank=ear), attack.body, headers, reply=shop.inbox())
    await shop.flush()
    what = "Subscription" if attack.verb == "subscribe" else "Publish"
    return any(error.startswith(f"Permissions Violation for {what} to") and subject in error for error in shop.errors)


def test_what_is_not_in_a_callers_list_is_refused_and_nothing_comes_of_it_raw(there: Place) -> None:
    async def main() -> None:
        async with running(there), raw(there.url("shop", 0)) as shop, raw(there.url("bank", 0)) as bank:
            bank.subscribe("_INBOX.bank.>")
            shop.subscribe("_INBOX.shop.>")
            await asyncio.gather(shop.flush(), bank.flush())
            looking = await connect(there.url("operator"), name="looking")
            try:
                before = await stored(looking)
                passed = [attack.name for attack in REFUSED if not await _refused_raw(shop, attack, "_INBOX.bank.raw.1")]
                assert not passed
                assert await stored(looking) == before, "nothing was stored"
            finally:
                await looking.close()
            await bank.flush()
            assert not bank.messages and not shop.messages

    run(main(), timeout=110)


def test_and_by_the_projects_own_connection(there: Place) -> None:
    async def main() -> None:
        async with running(there):
            shop = await connect(there.url("shop", 0), name="shop")
            heard: list[str] = []
            refused: list[str] = []
            shop.on_refused(lambda error: refused.append(error.message))
            try:
                for attack in REFUSED:
                    subject = filled(attack.subject, bank="_INBOX.bank.raw.1")
                    if attack.verb == "subscribe":
                        before = len(refused)
                        await shop.subscribe(subject, lambda message: heard.append(message.subject), queue=attack.queue)
                        await shop.flush()
                        await eventually(lambda before=before: len(refused) > before, what=attack.name)
                    elif TRACED not in attack.headers and "*" not in subject and ">" not in subject:
                        with pytest.raises(NotPermitted):
                            await shop.request(subject, attack.body, headers=attack.headers or None, timeout=20)
                            pytest.fail(attack.name)
                assert not heard
            finally:
                await shop.close()

    run(main(), timeout=110)


# --- what is sent, and served as the caller's own ---------------------------------------------------------------------
async def _answer(shop: Raw, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    at = len(shop.messages)
    inbox = shop.inbox()
    shop.publish(subject, body, headers, reply=inbox)
    try:
        await shop.until(lambda: any(message.subject == inbox for message in shop.messages[at:]))
    except TimeoutError:
        return {"error": {"code": "unheard", "said": shop.errors}}
    found: dict[str, Any] = json.loads(next(message for message in shop.messages[at:] if message.subject == inbox).body)
    return found


@pytest.mark.case(662)
@pytest.mark.case(660)
def test_what_a_caller_may_send_is_served_as_its_own_whatever_it_says_beside_it(there: Place) -> None:
    async def main() -> None:
        async with running(there) as operator, raw(there.url("shop", 0)) as shop, raw(there.url("bank", 0)) as bank:
            looking = await connect(there.url("operator"), name="looking")
            bank.subscribe("_INBOX.bank.>")
            shop.subscribe("_INBOX.shop.>")
            await asyncio.gather(shop.flush(), bank.flush())
            till = await Raw.connect(there.url("till", 0))
            try:
                till.subscribe("_INBOX.till.>")
                kept = await _answer(till, SUBJECTS.tell(MINE), b"a secret", {"Mesh-Key": KEY})
                known = {"bank": "_INBOX.bank.raw.1", "keyed": kept["ref"], "digest": "0" * 64}
                wrong: list[str] = []
                for attack in SERVED:
                    headers = {name: filled(value, **known) for name, value in attack.headers.items()}
                    body = filled(attack.body.decode(), **known).encode() if b'"ref"' in attack.body else attack.body
                    answer = await _answer(shop, attack.subject, body, headers)
                    code = (answer.get("error") or {}).get("code")
                    wrong += [] if (code or "served") == attack.must else [f"{attack.name}: {answer}, not {attack.must}"]
                assert not wrong
                state = (await operator.status(MINE, content=True, timeout=60)).agent_state
                assert set(state["senders"]) == {None}, "nobody posed as an agent"
                assert state["prompts"].count("hello") == sum(
                    a.must == "served" and not a.subject.startswith("mesh.event-to") for a in SERVED
                ), "each was served once"
                found = await read_all(looking, SUBJECTS.stream("mail"), SUBJECTS.mail_filter(MINE))
                own = {"Nats-Sequence", "Nats-Subject"}  # the server's own, of a read
                forged = {(name, value) for name, value in FORGED.items() if name not in own}
                assert not [pair for message in found for pair in message.headers.items() if pair in forged]
                await bank.flush()
                assert not bank.messages, "another caller's inbox"
            finally:
                await till.close()
                await looking.close()

    run(main(), timeout=110)


# --- the accounts alone -----------------------------------------------------------------------------------------------
def _reaches_the_mesh(attack: Attack) -> bool:
    """Whether the accounts let it through to a caller without a list: a service, an inbox, or words of its own account."""
    ways = tuple(one.local.removesuffix(">") for one in crossings(SUBJECTS, ("set", "status")))
    return (
        attack.subject.startswith((*ways, "_INBOX", "{bank}", "_R_", "$SYS.REQ.ACCOUNT.PING", ">", "*"))
        or TRACED in attack.headers
    )


def test_even_a_caller_without_any_list_reaches_the_exported_services_only(there: Place) -> None:
    tried = [attack for attack in REFUSED if not _reaches_the_mesh(attack)]

    async def main() -> None:
        async with running(there) as operator, raw(there.url("bare", 0)) as bare:
            bare.subscribe("_INBOX.bare.>")
            looking = await connect(there.url("operator"), name="looking")
            try:
                for attack in tried:
                    if attack.verb == "subscribe":
                        bare.subscribe(attack.subject, attack.queue)
                await bare.flush()
                before = await stored(looking)
                for attack in tried:
                    if attack.verb == "publish":
                        bare.publish(attack.subject, attack.body, attack.headers, reply=bare.inbox())
                await bare.flush()
                assert await stored(looking) == before, "nothing was stored"
                own = {attack.subject for attack in tried}  # what it has said itself, in its own account
                heard = [message for message in bare.messages if message.subject not in own]
                # What the server says of the caller's own account is its own.
                wrong = [one for one in heard if one.status != "503" and any(of in one.body for of in OF_THE_MESH)]
                assert not wrong
                bare.messages.clear()
                assert (await operator.ask(THEIRS, "hello", timeout=60)).text == "hello"
                ref = await operator.tell(THEIRS, "hello again")
                await eventually(lambda: _completed(operator, THEIRS, ref), what="the outcome")
                await operator.notify(THEIRS, {"n": 1})
                await bare.flush()
                assert not bare.messages, "the mesh's own words"
            finally:
                await looking.close()

    run(main(), timeout=110)
