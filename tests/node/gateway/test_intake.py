"""What is told by a plain request is stored once, and only for an agent that there is (cases 620 to 622)."""

from __future__ import annotations

import json

import pytest

from agentmesh.edge.publish import store
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import Outcome, encode, encode_outcome
from agentmesh_node.gateway.intake import LEAST_S, REPEAT_WAIT_S, patience_s
from node.gateway.served import CODER, served
from support import Faulty, Server, never_sent, reply_lost, run


@pytest.mark.case(620)
def test_what_is_told_is_answered_with_its_ref_once_it_is_stored(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            headers = {"Nats_Msg_Id": "coder.order-7", "Mesh_Budget": '{"tokens":5}', "Mesh_Reply_To": "_INBOX.x.y"}
            first = await at.request(subjects.tell("coder"), b"hello", **headers)
            (mail,) = await at.mail()
            assert first == {"v": 1, "ref": str(mail.seq)} and mail.data == b"hello"
            assert mail.headers["Mesh-Reply-To"] == "_INBOX.x.y" and mail.headers["Mesh-Budget"] == '{"tokens":5}'
            assert mail.headers["Mesh-For"] == "i1" and mail.headers["Nats-Msg-Id"] == "coder.order-7"
            assert await at.request(subjects.tell("coder"), b"hello", **headers) == {**first, "duplicate": True}
            assert len(await at.mail()) == 1
            event = await at.request(subjects.event_to("coder"), b'{"n":1}')
            (stored,) = await at.mail("notify")
            assert event == {"v": 1, "ref": str(stored.seq)} and stored.data == b'{"n":1}'
            for again in (subjects.event_to("coder"), subjects.tell("other")):
                await at.registry.create(spec_key("other"), encode(CODER)) if again.endswith("other") else None
                refused = await at.request(again, Nats_Msg_Id="coder.order-7")
                assert refused["error"]["code"] == "bad_request", "the id is another message's"

    run(main())


@pytest.mark.case(620)
def test_what_cannot_be_meant_stores_nothing_and_says_why_at_once(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            await at.registry.create(spec_key("over"), encode(CODER.__replace__(status="stopped")))
            await at.registry.create(spec_key("ill"), encode(CODER.__replace__(status="failed")))
            refused: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {
                "not_found": [("nobody", b"x", {}), ("over", b"x", {})],
                "failed": [("ill", b"x", {})],
                "bad_request": [
                    ("coder", b"", {}),
                    ("coder", b"\xff", {}),
                    ("coder", b"x", {"Mesh_Deadline": "soon"}),
                    ("coder", b"x", {"Mesh_Timeout": "-1"}),
                    ("coder", b"x", {"Nats_Msg_Id": "caf\u00e9"}),
                    ("_coder", b"x", {}),
                ],
            }
            prompts = [("coder", b"x", {name: value}) for name, value in _of_prompts().items()]
            for code, requests in refused.items():
                for agent, body, headers in requests:
                    for way in (subjects.tell, subjects.event_to):
                        if body or way is subjects.tell:
                            answer = await at.request(way(agent), body, **headers)
                            assert answer["error"]["code"] == code, (way(agent), body, headers, answer)
            for agent, body, headers in prompts:
                answer = await at.request(subjects.tell(agent), body, **headers)
                assert answer["error"]["code"] == "bad_request", (headers, answer)
                assert "ref" in await at.request(subjects.event_to(agent), body, **headers), "an event has no such header"
            assert not await at.mail() and not await at.mail(agent="nobody")

    run(main())


def _of_prompts() -> dict[str, str]:
    return {"Mesh_Reply_To": "_INBOX.*", "Mesh_Stream_To": "$SYS.x", "Mesh_Budget": json.dumps({"tokens": -1})}


@pytest.mark.case(620)
def test_a_lost_acknowledgement_stores_it_once_and_an_unknown_fate_says_how_to_repeat(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        line: list[Faulty] = []

        def faulty(t: object) -> Faulty:
            line.append(Faulty(t))  # type: ignore[arg-type]
            return line[0]

        async with served(server, subjects, faulty) as at:
            line[0].inject(subjects.inbox("coder"), reply_lost)
            assert "ref" in await at.request(subjects.tell("coder"))
            assert len(await at.mail()) == 1
            line[0].inject(subjects.inbox("coder"), *[never_sent] * 3)
            lost = await at.request(subjects.tell("coder"), Nats_Msg_Id="coder.k")
            assert lost["error"]["code"] == "unavailable" and lost["error"]["details"] == {"uncertain": True}
            assert "ref" in await at.request(subjects.tell("coder"), Nats_Msg_Id="coder.k")
            assert len(await at.mail()) == 2

    run(main())


@pytest.mark.case(625)
def test_who_repeats_an_id_needs_the_first_ones_key(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with served(server, subjects) as at:
            ref = (await at.request(subjects.tell("coder"), Nats_Msg_Id="coder.k", Mesh_Key="0123456789abcdef"))["ref"]
            (mail,) = await at.mail()
            digest = mail.headers["Mesh-Key-Digest"]
            assert "Mesh-Key" not in mail.headers and len(digest) == 64
            for how in ({}, {"Mesh_Key": "fedcba9876543210"}, {"Mesh_Key_Digest": digest}):
                for way in (subjects.tell, subjects.ask):
                    refused = await at.request(way("coder"), b"hello", Nats_Msg_Id="coder.k", **how)
                    assert refused["error"]["code"] == "not_permitted", (how, refused)
                polled = await at.request(subjects.poll("coder"), b'{"ref":"%s"}' % ref.encode(), **how)
                assert polled["error"]["code"] == "not_permitted", (how, polled)
            again = await at.request(subjects.tell("coder"), Nats_Msg_Id="coder.k", Mesh_Key="0123456789abcdef")
            assert again == {"v": 1, "ref": ref, "duplicate": True}
            outcome = encode_outcome(Outcome(agent="coder", ref=ref, ok=True, text="done"))
            await store(at.transport, subjects.result("coder", ref), outcome, headers={"Mesh-Key-Digest": digest})
            await at.transport.request(f"$JS.API.STREAM.PURGE.{subjects.stream('mail')}", b"", timeout=5)
            for key, found in (("0123456789abcdef", "completed"), ("fedcba9876543210", None)):
                polled = await at.request(subjects.poll("coder"), b'{"ref":"%s"}' % ref.encode(), Mesh_Key=key)
                assert polled.get("status") == found
                again = await at.request(subjects.ask("coder"), Nats_Msg_Id="coder.k", Mesh_Key=key)
                assert again["ok"] is (found is not None), "purged, the outcome says whose it is"
            bad = await at.request(subjects.tell("coder"), Mesh_Key="short")
            assert bad["error"]["code"] == "bad_request"

    run(main())


def test_a_repeated_ask_waits_as_long_as_it_says() -> None:
    assert patience_s({}, 0.0) == REPEAT_WAIT_S
    assert patience_s({"Mesh-Timeout": "30"}, 0.0) == 30.0
    assert patience_s({"Mesh-Timeout": "1"}, 0.0) == LEAST_S
