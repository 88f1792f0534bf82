"""The mesh as any NATS client sees it: nats-py alone, without an import of ours between the test and the wire."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from support import Server, eventually, run


class Plain:
    """A raw client of one mesh."""

    def __init__(self, nc: Client, mesh: LocalMesh) -> None:
        self.nc = nc
        self.js: JetStreamContext = nc.jetstream()
        self.mesh = mesh
        self.root = mesh.subjects.root

    async def put(self, lane: str, agent: str, body: bytes, **headers: str) -> int:
        """Publish mail, acknowledged; its sequence. Keyword `Mesh_Reply_To` is the header `Mesh-Reply-To`."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        ack = await self.js.publish(f"{self.root}.{lane}.{agent}", body, headers=named or None)
        return ack.seq

    async def ask(self, agent: str, body: bytes, **headers: str) -> dict[str, Any]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        reply = await self.nc.request(f"{self.root}.ask.{agent}", body, timeout=PATIENCE_S, headers=named or None)
        return decoded(reply)

    async def control(self, agent: str, **request: Any) -> dict[str, Any]:
        body = json.dumps(request).encode()
        return decoded(await self.nc.request(f"{self.root}.live.control.{agent}", body, timeout=PATIENCE_S))

    async def result(self, agent: str, ref: int) -> dict[str, Any]:
        """The stored outcome, as soon as it is there."""
        subject = f"{self.root}.result.{agent}.{ref}"
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                message = await self.js.get_last_msg(f"{self.root.upper()}_RESULT", subject)
                found.append(json.loads(message.data or b""))
            return bool(found)

        await eventually(there, PATIENCE_S, subject)
        return found[0]


def decoded(message: Msg) -> dict[str, Any]:
    body = json.loads(message.data)
    assert isinstance(body, dict)
    assert body["v"] == 1
    return body


@contextlib.asynccontextmanager
async def plain_mesh(server: Server, subjects: Subjects) -> AsyncIterator[Plain]:
    """A mesh with one agent, `coder`, and a raw client."""
    async with local_mesh(server, subjects) as mesh:
        await mesh.client.start_agent("coder", kind="Recorder")
        nc = await nats.connect(server.url)
        try:
            yield Plain(nc, mesh)
        finally:
            await nc.close()


@pytest.mark.case(241)
def test_text_in_the_inbox_runs_a_turn_and_its_outcome_comes_to_the_reply_subject(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            inbox = plain.nc.new_inbox()
            answers = await plain.nc.subscribe(inbox)
            ref = await plain.put("inbox", "coder", b"rename the module", Mesh_Reply_To=inbox)
            outcome = decoded(await answers.next_msg(timeout=PATIENCE_S))
            assert outcome["ok"] is True
            assert outcome["text"] == "rename the module"
            assert outcome["agent"] == "coder"
            assert outcome["ref"] == str(ref)
            assert outcome["node"] == "n1"
            assert await plain.result("coder", ref) == outcome

    run(main(), 110)


@pytest.mark.case(242)
def test_an_ask_is_a_plain_request(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            outcome = await plain.ask("coder", b"hello")
            assert (outcome["ok"], outcome["text"]) == (True, "hello")
            shaped = await plain.ask("coder", b'{"prompt": "hello, shaped", "metadata": {"n": 1}}')
            assert shaped["text"] == "hello, shaped"
            braces = await plain.ask("coder", b"{not json")
            assert braces["text"] == "{not json", "text that begins with a brace is text, unless it is declared as JSON"

    run(main(), 110)


@pytest.mark.case(242)
@pytest.mark.parametrize("agent", ["nobody", "coder.17", "co"])
def test_an_ask_of_an_unknown_agent_is_answered_not_found(server: Server, subjects: Subjects, agent: str) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            outcome = await plain.ask(agent, b"hello")
            assert outcome["ok"] is False
            assert outcome["error"]["code"] == "not_found"
            assert "mesh start" in outcome["error"]["message"]

    run(main(), 110)


BAD_PROMPTS = [
    pytest.param(b"", {}, id="empty"),
    pytest.param(b"  \n", {}, id="blank"),
    pytest.param(b"\xff\xfe\x00", {}, id="not UTF-8"),
    pytest.param(b"{no json", {"Content-Type": "application/json"}, id="declared JSON that is none"),
    pytest.param(b'{"prompt": 7}', {"Content-Type": "application/json"}, id="another shape"),
    pytest.param(b'{"prompt": ""}', {}, id="empty in JSON"),
    pytest.param(b"hi", {"Mesh-Deadline": "tomorrow"}, id="no time"),
    pytest.param(b"hi", {"Mesh-Deadline": "2030-01-01T00:00:00"}, id="a time without a zone"),
    pytest.param(b"hi", {"Mesh-Stream-To": "$SYS.x"}, id="stream to the system"),
]


@pytest.mark.case(244)
@pytest.mark.parametrize(("body", "headers"), BAD_PROMPTS)
def test_a_malformed_prompt_is_a_dead_letter_and_its_caller_is_told(
    server: Server, subjects: Subjects, body: bytes, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            inbox = plain.nc.new_inbox()
            answers = await plain.nc.subscribe(inbox)
            named = {key.replace("-", "_"): value for key, value in headers.items()}
            ref = await plain.put("inbox", "coder", body, Mesh_Reply_To=inbox, **named)
            outcome = decoded(await answers.next_msg(timeout=PATIENCE_S))
            assert (outcome["ref"], outcome["ok"], outcome["error"]["code"]) == (str(ref), False, "bad_request")
            assert await plain.result("coder", ref) == outcome
            await plain.mesh.saw("dead_lettered", "coder")
            dead = await eventually_last(plain, f"{plain.root.upper()}_DEAD", f"{plain.root}.dead.coder")
            assert (dead.data or b"") == body
            assert dead.headers is not None
            assert dead.headers["Mesh-Reason"] == "bad_request"
            assert dead.headers["Mesh-Ref"] == str(ref)
            assert (await plain.ask("coder", b"and now a good one"))["ok"] is True

    run(main(), 110)


async def eventually_last(plain: Plain, stream: str, subject: str) -> Any:
    found: list[Any] = []

    async def there() -> bool:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            found.append(await plain.js.get_last_msg(stream, subject))
        return bool(found)

    await eventually(there, PATIENCE_S, subject)
    return found[0]


@pytest.mark.case(244)
@pytest.mark.parametrize(("body", "headers"), BAD_PROMPTS)
def test_a_malformed_ask_is_refused_at_once_and_nothing_is_stored(
    server: Server, subjects: Subjects, body: bytes, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            outcome = await plain.ask("coder", body, **{key.replace("-", "_"): value for key, value in headers.items()})
            assert (outcome["ok"], outcome["error"]["code"]) == (False, "bad_request")
            info = await plain.js.stream_info(f"{plain.root.upper()}_MAIL")
            assert info.state.messages == 0

    run(main(), 110)


@pytest.mark.case(244)
def test_events_of_any_kind_harm_nobody(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            for body in (b'{"a": 1}', b"[1, 2]", b"{half", b"plain text", b"17", b"", b"\xff", b"null"):
                await plain.put("notify", "coder", body)
            assert (await plain.ask("coder", b"hello"))["ok"] is True
            state = (await plain.control("coder", op="status", content=True))["agent_state"]
            assert state["events"] == [{"a": 1}, [1, 2], "{half", "plain text", 17, "", None], (
                "bytes that are no text are a dead letter"
            )
            await plain.mesh.told()
            assert len(plain.mesh.seen("dead_lettered", "coder", reason="bad_request")) == 1

    run(main(), 110)


@pytest.mark.case(220)
@pytest.mark.parametrize("where", ["{root}.journal.coder", "{root}.inbox.coder", "$JS.API.STREAM.PURGE.X", "a" * 257])
def test_nothing_is_published_to_a_forbidden_reply_subject(server: Server, subjects: Subjects, where: str) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            subject = where.format(root=plain.root)
            published: list[Msg] = []

            async def note(message: Msg) -> None:
                published.append(message)

            if not subject.startswith(plain.root):
                await plain.nc.subscribe(subject, cb=note)
            ref = await plain.put("inbox", "coder", b"hello", Mesh_Reply_To=subject)
            outcome = await plain.result("coder", ref)
            assert outcome["error"]["code"] == "bad_request"
            # Asked for in a request, there is nobody who could be told; the next request shows that it was passed over.
            await plain.nc.publish(f"{plain.root}.ask.coder", b"hello", reply=subject)
            await plain.nc.publish(f"{plain.root}.live.control.coder", b'{"op":"status"}', reply=subject)
            assert (await plain.ask("coder", b"still there"))["text"] == "still there"
            await plain.nc.flush()
            assert published == []
            assert [record.kind for record in await plain.mesh.records("coder")].count("turn") == 1

    run(main(), 110)


@pytest.mark.case(219)
@pytest.mark.case(241)
def test_a_stranger_cannot_pose_as_an_agent(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            forged = {"Mesh_From": "boss", "Mesh_Origin": "9.999999.0", "Mesh_Tag": "t", "Mesh_From_Life": "x"}
            first = await plain.put("inbox", "coder", b"one", **forged)
            second = await plain.put("inbox", "coder", b"two", **forged)
            await plain.put("notify", "coder", b'"event"', **forged)
            assert (await plain.result("coder", first))["text"] == "one"
            assert (await plain.result("coder", second))["text"] == "two", "a forged origin spoils no watermark"

            async def noted() -> bool:
                state = (await plain.control("coder", op="status", content=True))["agent_state"]
                return bool(state["events"] == ["event"] and state["senders"] == [None, None, None])

            await eventually(noted, PATIENCE_S, "three from outside")

    run(main(), 110)


@pytest.mark.case(243)
def test_live_events_come_in_order_and_end_with_the_outcome(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            await plain.mesh.client.start_agent("talker", kind="Talker")
            inbox = plain.nc.new_inbox()
            stream = await plain.nc.subscribe(inbox)
            ref = await plain.put("inbox", "talker", b"go", Mesh_Stream_To=inbox)
            got: list[dict[str, Any]] = []
            while not got or got[-1]["type"] != "outcome":
                got.append(decoded(await stream.next_msg(timeout=PATIENCE_S)))
            assert [event["type"] for event in got] == ["start", "text", "tool_use", "tool_result", "text", "usage", "outcome"]
            assert [event["seq"] for event in got] == list(range(1, 8))
            assert {(event["agent"], event["ref"]) for event in got} == {("talker", str(ref))}
            assert len({event["owner"] for event in got}) == 1
            assert got[1]["text"] == "thinking about go"
            assert got[2] | {"name": "grep", "id": "t1"} == got[2]
            assert got[-1]["outcome"] == await plain.result("talker", ref)

    run(main(), 110)


@pytest.mark.case(213)
def test_a_prompt_past_its_deadline_is_answered_expired_without_a_turn(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            past = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)).isoformat()
            late = await plain.put("inbox", "coder", b"too late", Mesh_Deadline=past)
            assert (await plain.result("coder", late))["error"]["code"] == "expired"
            gate = tmp_path / "gate"
            first = await plain.put("inbox", "coder", f"gate:{gate} first".encode())
            await plain.mesh.saw("prompt_start", "coder")
            soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)).isoformat()
            waiting = await plain.put("inbox", "coder", b"waits too long", Mesh_Deadline=soon)
            assert (await plain.result("coder", waiting))["error"]["code"] == "expired", "although a turn still runs"
            gate.touch()
            assert (await plain.result("coder", first))["text"] == "first"
            await plain.mesh.told()
            assert len(plain.mesh.seen("prompt_start", "coder")) == 1

    run(main(), 110)


@pytest.mark.case(245)
def test_cancel_removes_a_prompt_that_waits_and_no_other(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            gate = tmp_path / "gate"
            running = await plain.put("inbox", "coder", f"gate:{gate} first".encode())
            await plain.mesh.saw("prompt_start", "coder")
            waiting = await plain.put("inbox", "coder", b"second")
            third = await plain.put("inbox", "coder", b"third")
            assert await plain.control("coder", op="cancel", ref=str(waiting)) == {"v": 1, "cancelled": True}
            assert await plain.control("coder", op="cancel", ref=str(running)) == {"v": 1, "cancelled": False}
            assert (await plain.result("coder", waiting))["error"]["code"] == "cancelled"
            gate.touch()
            assert (await plain.result("coder", running))["text"] == "first"
            assert (await plain.result("coder", third))["text"] == "third"
            assert await plain.control("coder", op="cancel", ref=str(waiting)) == {"v": 1, "cancelled": False}

    run(main(), 110)


@pytest.mark.case(244)
@pytest.mark.parametrize(
    ("request_body", "code"),
    [
        (b"", "bad_request"),
        (b"\xff", "bad_request"),
        (b"[]", "bad_request"),
        (b'{"op": 7}', "bad_request"),
        (b'{"op": "explode"}', "bad_request"),
        (b'{"op": "poll"}', "bad_request"),
        (b'{"op": "cancel", "ref": "a.b"}', "bad_request"),
        (b'{"op": "set_timer", "id": "t", "event": 1}', "bad_request"),
        (b'{"op": "set_timer", "id": "_deadline-1", "event": 1, "after_s": 1}', "bad_request"),
        (b'{"op": "set_timer", "id": "t", "event": 1, "after_s": 1, "every_s": 0.1}', "bad_request"),
        (b'{"op": "set_timer", "id": "t", "event": 1, "at": "noon"}', "bad_request"),
        (b'{"op": "set_timer", "id": "t", "event": 1, "after_s": 1e300}', "bad_request"),
        (b'{"op": "set_timer", "id": "t", "event": 1, "after_s": 1, "every_s": 1e300}', "bad_request"),
    ],
)
def test_a_bad_control_request_is_answered_and_harms_nothing(
    server: Server, subjects: Subjects, request_body: bytes, code: str
) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            reply = decoded(await plain.nc.request(f"{plain.root}.live.control.coder", request_body, timeout=PATIENCE_S))
            assert reply["error"]["code"] == code
            assert reply["error"]["message"]
            assert (await plain.ask("coder", b"hello"))["ok"] is True

    run(main(), 110)


@pytest.mark.case(23)
@pytest.mark.case(24)
@pytest.mark.case(25)
def test_poll_by_control_request(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            gate = tmp_path / "gate"
            active = await plain.put("inbox", "coder", f"gate:{gate} first".encode())
            failing = await plain.put("inbox", "coder", b"fail:quota")
            await plain.mesh.saw("prompt_start", "coder")
            for ref in (active, failing):
                assert await plain.control("coder", op="poll", ref=str(ref)) == {"v": 1, "status": "pending"}
            assert await plain.control("coder", op="poll", ref="999999") == {"v": 1, "status": "not_found"}
            gate.touch()
            outcome = await plain.result("coder", failing)
            assert outcome["error"]["code"] == "backend_error"
            assert outcome["error"]["details"]["reason"] == "quota"
            assert await plain.control("coder", op="poll", ref=str(failing)) == {
                "v": 1,
                "status": "completed",
                "outcome": outcome,
            }

    run(main(), 110)


@pytest.mark.case(207)
def test_the_same_message_id_twice_is_one_turn(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            first = await plain.put("inbox", "coder", b"once", Nats_Msg_Id="coder.job-7")
            again = await plain.js.publish(f"{plain.root}.inbox.coder", b"once", headers={"Nats-Msg-Id": "coder.job-7"})
            assert (again.seq, again.duplicate) == (first, True)
            await plain.result("coder", first)
            assert (await plain.ask("coder", b"done"))["turn"] == 2

    run(main(), 110)


@pytest.mark.case(102)
def test_mail_to_a_name_that_nobody_has_is_kept_for_who_takes_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            ref = await plain.put("inbox", "later", b"are you there yet?")
            with pytest.raises(nats.errors.NoRespondersError):
                await plain.nc.request(f"{plain.root}.live.control.later", b'{"op":"status"}', timeout=PATIENCE_S)
            await plain.mesh.client.start_agent("later", kind="Recorder")
            assert (await plain.result("later", ref))["text"] == "are you there yet?"

    run(main(), 110)


def test_many_requesters_at_once(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            outcomes = await asyncio.gather(*(plain.ask("coder", f"p{number}".encode()) for number in range(100)))
            assert [outcome["text"] for outcome in outcomes] == [f"p{number}" for number in range(100)]
            assert sorted(outcome["turn"] for outcome in outcomes) == list(range(1, 101))

    run(main(), 110)
