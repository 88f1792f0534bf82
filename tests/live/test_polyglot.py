"""What clients of other languages do, and what some of them cannot undo: blanks, spellings, numbers, short patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg

from agentmesh.headers import TRACE_HEADERS
from agentmesh.subjects import Subjects
from agentmesh.trace.context import context_in
from live.mesh import PATIENCE_S
from live.test_plain_nats import Plain, decoded, eventually_last, plain_mesh
from support import Server, run


async def publish_raw(server: Server, subject: str, body: bytes, *headers: bytes, reply: str = "") -> None:
    """Publish with header lines byte for byte, as no client library lets one write them all."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    block = b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in headers) + b"\r\n"
    head = f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + head + block + body + b"\r\nPING\r\n")
    while not (line := await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"PONG"):
        assert line and not line.startswith(b"-ERR"), line
    writer.close()
    await writer.wait_closed()


@contextlib.asynccontextmanager
async def inbox(plain: Plain) -> AsyncIterator[tuple[str, Any]]:
    """A subject of the client's own, and its subscription."""
    subject = plain.nc.new_inbox()
    subscription = await plain.nc.subscribe(subject)
    await plain.nc.flush()
    yield subject, subscription


async def next_outcome(subscription: Any) -> dict[str, Any]:
    message: Msg = await subscription.next_msg(timeout=PATIENCE_S)
    return decoded(message)


@pytest.mark.case(312)
def test_an_id_with_a_blank_behind_it_is_refused_where_its_caller_hears_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain, inbox(plain) as (reply, answers):
            to = f"{plain.root}.inbox.coder"
            headers = (f"Mesh-Reply-To: {reply}".encode(), b"Nats-Msg-Id: coder.order-7")
            await publish_raw(server, to, b"order", *headers)
            assert (await next_outcome(answers))["text"] == "order"
            await publish_raw(server, to, b"order", headers[0], headers[1] + b" ")
            refused = await next_outcome(answers)
            assert refused["error"]["code"] == "bad_request" and "Nats-Msg-Id" in refused["error"]["message"]
            dead = await eventually_last(plain, f"{plain.root.upper()}_DEAD", f"{plain.root}.dead.coder")
            assert (dead.data, dead.headers["Mesh-Ref"]) == (b"order", refused["ref"])
            await publish_raw(server, f"{plain.root}.ask.coder", b"order", b"Nats-Msg-Id: coder.order-8\t", reply=reply)
            assert (await next_outcome(answers))["error"]["code"] == "bad_request"
            assert (await plain.ask("coder", b"next"))["turn"] == 2, "one turn for the one order"

    run(main(), 110)


@pytest.mark.case(312)
def test_prompts_with_an_empty_id_do_not_repeat_one_another(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            asks = [await plain.ask("coder", f"p{number}".encode(), Nats_Msg_Id="") for number in range(2)]
            refs = [await plain.put("inbox", "coder", f"q{number}".encode(), Nats_Msg_Id="") for number in range(2)]
            assert [ask["text"] for ask in asks] == ["p0", "p1"]
            assert [(await plain.result("coder", ref))["text"] for ref in refs] == ["q0", "q1"]

    run(main(), 110)


@pytest.mark.case(311)
def test_the_first_of_two_reply_subjects_gets_the_outcome(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain, inbox(plain) as (one, first), inbox(plain) as (two, second):
            headers = (f"Mesh-Reply-To: {one}".encode(), f"Mesh-Reply-To: {two}".encode())
            await publish_raw(server, f"{plain.root}.inbox.coder", b"hello", *headers)
            assert (await next_outcome(first))["text"] == "hello"
            assert second.pending_msgs == 0

    run(main(), 110)


@pytest.mark.case(313)
def test_a_ref_may_be_a_number(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            gate = tmp_path / "gate"
            active = await plain.put("inbox", "coder", f"gate:{gate} first".encode())
            waiting = await plain.put("inbox", "coder", b"second")
            await plain.mesh.saw("prompt_start", "coder")
            assert (await plain.control("coder", op="poll", ref=active))["status"] == "pending"
            assert (await plain.control("coder", op="cancel", ref=waiting))["cancelled"] is True
            assert (await plain.control("coder", op="interrupt", ref=waiting))["interrupted"] is False
            assert (await plain.control("coder", op="interrupt", ref=active))["interrupted"] is True
            outcome = await plain.result("coder", active)
            assert await plain.control("coder", op="poll", ref=active) == {"v": 1, "status": "completed", "outcome": outcome}
            for odd in (1.5, True, [active], {"seq": active}):
                assert (await plain.control("coder", op="poll", ref=odd))["error"]["code"] == "bad_request"
            assert (await plain.control("coder", op="resend", ref=999))["error"]["code"] == "not_found"

    run(main(), 110)


@pytest.mark.case(314)
def test_an_asks_outcome_goes_to_its_reply_to_as_well(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain, inbox(plain) as (reply, answers), inbox(plain) as (later, others):
            outcome = await plain.ask("coder", b"hello", Mesh_Reply_To=reply, Nats_Msg_Id="coder.1")
            assert outcome["text"] == "hello"
            assert await next_outcome(answers) == outcome
            again = await plain.ask("coder", b"hello", Mesh_Reply_To=later, Nats_Msg_Id="coder.1")
            assert again == await next_outcome(others) == outcome, "a repetition is answered at its own addresses"
            alone = {"Mesh-Reply-To": reply, "Nats-Msg-Id": "coder.2"}
            for _ in range(3):  # as by a client whose answers got lost
                await plain.nc.publish(f"{plain.root}.ask.coder", b"no inbox", headers=alone)
                assert (await next_outcome(answers))["text"] == "no inbox"
            refused = await plain.ask("nobody", b"hello", Mesh_Reply_To=reply)
            assert refused["error"]["code"] == "not_found"
            assert await next_outcome(answers) == refused

    run(main(), 110)


@pytest.mark.case(220)
@pytest.mark.case(317)
def test_an_ask_from_an_inbox_in_the_mesh_is_told_elsewhere_or_logged(
    server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain, inbox(plain) as (reply, answers):
            within = f"{plain.root}.inboxes.alice.1"
            to = f"{plain.root}.ask.coder"
            await plain.nc.publish(to, b"hello", reply=within, headers={"Mesh-Reply-To": reply})
            refused = await next_outcome(answers)
            assert refused["error"]["code"] == "bad_request" and "inbox of your own" in refused["error"]["message"]
            await plain.nc.publish(f"{plain.root}.live.control.coder", b'{"op":"status"}', reply=within)
            assert (await plain.ask("coder", b"hello"))["turn"] == 1
            logged = [record for record in caplog.records if "nowhere to answer" in record.getMessage()]
            assert len(logged) == 2 and all(within in record.getMessage() for record in logged)

    run(main(), 110)


@pytest.mark.case(316)
def test_a_dead_letter_has_headers_that_every_client_can_read(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            headers = (
                "Mesh-Zürich: 1",
                "Mesh-Tag: größe\x01",
                "Mesh-Plain: as it was",
                "Traceparent: 00-é",
                "content-type: text/é",
            )
            lines = [line.encode() for line in headers]
            await publish_raw(server, f"{plain.root}.inbox.coder", b"", *lines, b"Mesh-\xff: 2", b"Mesh-Odd: \xff\xfe")
            dead = await eventually_last(plain, f"{plain.root.upper()}_DEAD", f"{plain.root}.dead.coder")
            kept = {name: value for name, value in dead.headers.items() if not name.startswith(("Nats-", "Mesh-Re", "Mesh-La"))}
            told = {"Mesh-Tag": "gr??e?", "Mesh-Plain": "as it was", "Mesh-Odd": "??"}
            # What is no trace context counts as none: the letter bears that of its message's span (case 573).
            context = context_in({name: kept.pop(name) for name in TRACE_HEADERS if name in kept})
            assert context is not None
            assert context.depth == 1
            assert kept == {**told, "Content-Type": "text/?"}
            assert dead.headers["Mesh-Reason"] == "bad_request"

    run(main(), 110)


@pytest.mark.case(319)
def test_a_caller_that_gave_up_takes_its_ask_up_again_by_the_same_id(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            gate, to = tmp_path / "gate", f"{plain.root}.ask.coder"
            body, headers = f"gate:{gate} renamed".encode(), {"Nats-Msg-Id": "coder.job-7"}
            with pytest.raises(nats.errors.TimeoutError):
                await plain.nc.request(to, body, timeout=0.5, headers=headers)
            await plain.mesh.saw("prompt_start", "coder")
            with pytest.raises(nats.errors.TimeoutError):
                await plain.nc.request(to, body, timeout=0.5, headers=headers)
            again = asyncio.create_task(plain.ask("coder", body, Nats_Msg_Id="coder.job-7"))
            gate.touch()
            outcome = await again
            assert (outcome["text"], outcome["turn"]) == ("renamed", 1)
            assert await plain.ask("coder", body, Nats_Msg_Id="coder.job-7") == outcome
            assert (await plain.ask("coder", b"next"))["turn"] == 2

    run(main(), 110)
