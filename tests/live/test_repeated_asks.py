"""An ask with a `Nats-Msg-Id` may be sent again: each reply subject gets the one outcome."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmesh.edge.read import read_all
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S
from live.test_plain_nats import decoded, plain_mesh
from support import Server, run


@pytest.mark.case(207)
@pytest.mark.case(242)
def test_an_ask_that_is_repeated_gets_the_first_ones_answer(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            first = await plain.ask("coder", b"hello", Nats_Msg_Id="coder.1")
            assert await plain.ask("coder", b"hello", Nats_Msg_Id="coder.1") == first
            ref = await plain.put("inbox", "coder", b"by mail", Nats_Msg_Id="coder.2")
            assert (await plain.ask("coder", b"by mail", Nats_Msg_Id="coder.2"))["ref"] == str(ref)

    run(main())


@pytest.mark.case(207)
def test_an_ask_that_is_repeated_while_the_first_one_runs_gets_its_answer(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            await plain.mesh.client.start_agent("slow", kind="Recorder")
            headers = {"Nats-Msg-Id": "slow.1"}
            gate, subject = tmp_path / "gate", f"{plain.root}.ask.slow"
            body = f"gate:{gate} hello".encode()
            async with asyncio.TaskGroup() as group:
                asks = [group.create_task(plain.nc.request(subject, body, timeout=PATIENCE_S, headers=headers)) for _ in range(3)]
                await plain.mesh.saw("prompt_start", "slow")
                gate.touch()
            one, *others = [decoded(ask.result()) for ask in asks]
            assert others == [one, one]
            found = await read_all(plain.mesh.transport, subjects.stream("mail"), subjects.inbox("slow"))
            assert len(found) <= 1

    run(main())


@pytest.mark.case(244)
def test_an_id_that_belongs_to_other_mail_is_refused(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            await plain.put("notify", "coder", b"1", Nats_Msg_Id="coder.3")
            refused = await plain.ask("coder", b"hello", Nats_Msg_Id="coder.3")
            assert refused["error"]["code"] == "bad_request" and "other mail" in refused["error"]["message"]

    run(main())


@pytest.mark.case(220)
@pytest.mark.case(244)
def test_a_refused_ask_ends_its_live_stream_and_names_no_subject_of_the_mesh(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            inbox = plain.nc.new_inbox()
            seen = await plain.nc.subscribe(inbox)
            refused = await plain.ask("nobody", b"hello", Mesh_Stream_To=inbox)
            last = decoded(await seen.next_msg(timeout=PATIENCE_S))
            assert (last["type"], last["outcome"]) == ("outcome", refused)
            bad = await plain.ask("coder", b"hello", Mesh_Reply_To=f"{plain.root}.inbox.coder")
            assert bad["error"]["code"] == "bad_request"

    run(main())


@pytest.mark.case(236)
def test_a_timer_that_no_message_can_carry_is_refused(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            refused = await plain.control("coder", op="set_timer", id="t1", after_s=60, event="x" * 1_048_400)
            assert refused["error"]["code"] == "too_large"
            assert (await plain.control("coder", op="set_timer", id="t1", after_s=60, event="x" * 900_000))["set"] is True

    run(main())


@pytest.mark.case(24)
def test_a_ref_larger_than_any_sequence_was_never_issued(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            polled = await plain.control("coder", op="poll", ref=str(2**64))
            assert polled["status"] == "not_found"

    run(main())
