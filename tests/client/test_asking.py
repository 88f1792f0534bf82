"""`ask`, `tell` and `notify`: what is checked, what is sent, what comes back, what is waited for."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from agentmesh.edge.read import get_last
from agentmesh.edge.transport import Answered, Message, NoResponders, RequestTimeout
from agentmesh.errors import (
    AgentFailed,
    AskTimeout,
    BadRequest,
    Interrupted,
    MailboxFull,
    MeshError,
    NotFound,
    Stopped,
    TooLarge,
    Unavailable,
)
from agentmesh.subjects import Subjects
from agentmesh.wire import MAX_TIME, ErrorBody
from agentmesh_client import Mesh, attachment, pending_asks
from client.fake_owner import World, world
from support import Server, eventually, run


@pytest.fixture
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look-ups from time to time: only what hurries them can bring a result."""
    monkeypatch.setattr(pending_asks, "LOOK_S", 1000.0)


def test_an_ask_returns_the_answer_with_all_that_the_outcome_says(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            answer = await w.mesh.ask("coder", "hello", timeout=60)
            assert answer.text == "echo: hello"
            assert answer.ref == owner.mail[0].ref
            assert (answer.usage, answer.turn, answer.node, answer.duration_ms, answer.session_id) == (
                {"output_tokens": 2},
                1,
                "n1",
                3,
                "s1",
            )

    run(scenario())


def test_a_deadline_may_be_the_last_moment_that_a_datetime_can_be(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            await w.mesh.ask("coder", "hello", timeout=60, deadline=dt.datetime.max.replace(tzinfo=dt.UTC))
            assert [mail.deadline for mail in owner.mail] == [MAX_TIME]

    run(scenario())


def test_a_failed_outcome_is_raised_as_its_typed_error(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder", lambda _: Interrupted("by an operator")):
            await w.write_spec("coder")
            with pytest.raises(Interrupted, match="by an operator") as caught:
                await w.mesh.ask("coder", "hello", timeout=60)
            assert caught.value.details["ref"].isdecimal()
            outcome = await w.mesh.ask_outcome("coder", "hello", timeout=60)
            assert not outcome.ok
            assert outcome.error == ErrorBody(code="interrupted", message="by an operator")

    run(scenario())


@pytest.mark.case(19)
@pytest.mark.parametrize("prompt", [None, 17, b"bytes", "", " \n\t", "\ud800"])
def test_what_is_no_prompt_is_refused_before_anything_is_sent(server: Server, subjects: Subjects, prompt: Any) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            for call in (w.mesh.ask, w.mesh.tell):
                with pytest.raises(BadRequest):
                    await call("coder", prompt)
            await w.transport.flush()
            assert owner.mail == []

    run(scenario())


def test_times_and_keys_and_events_are_checked(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder")
            bad: list[dict[str, Any]] = [
                {"timeout": 0},
                {"timeout": "5"},
                {"timeout": float("nan")},
                {"deadline": dt.datetime.now()},
                {"deadline": dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-3)))},
                {"idempotency_key": "two tokens"},
                {"metadata": {"when": object()}},
            ]
            for arguments in bad:
                with pytest.raises(BadRequest):
                    await w.mesh.ask("coder", "hello", **arguments)
            with pytest.raises(BadRequest):
                await w.mesh.notify("coder", object())

    run(scenario())


def test_an_option_that_does_not_exist_is_named_and_nothing_is_sent(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            for call in ("ask", "ask_outcome", "tell"):
                with pytest.raises(TypeError, match=rf"^{call}\(\) .*'metdata'.* metadata"):
                    await getattr(w.mesh, call)("coder", "hello", metdata={})
            with pytest.raises(TypeError, match="'on_accepted'"):
                w.mesh.stream("coder", "hello", on_accepted=print)  # type: ignore[call-arg]
            await w.transport.flush()
            assert owner.mail == []

    run(scenario())


@pytest.mark.case(102)
@pytest.mark.parametrize("status", [None, "stopped"])
def test_an_unknown_name_is_not_found_quickly(server: Server, subjects: Subjects, status: str | None) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            if status is not None:
                await w.write_spec("nobody", status=status)
            for call in (
                lambda: w.mesh.ask("nobody", "hello"),
                lambda: w.mesh.tell("nobody", "hello"),
                lambda: w.mesh.notify("nobody", {}),
                lambda: w.mesh.status("nobody"),
                lambda: w.mesh.poll("nobody", "17"),
            ):
                with pytest.raises(NotFound):
                    await call()

    run(scenario())


def test_a_failed_agent_refuses_with_the_way_out_and_a_stopping_one_too(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            await w.write_spec("coder", status="failed", reason=ErrorBody(code="failed", message="crashed 6 times"))
            with pytest.raises(AgentFailed, match=r"crashed 6 times.*mesh resume coder"):
                await w.mesh.ask("coder", "hello")
            await w.write_spec("coder", status="stopping")
            with pytest.raises(Stopped):
                await w.mesh.tell("coder", "hello")

    run(scenario())


@pytest.mark.case(18)
def test_a_callers_timeout_ends_its_wait_only(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            with pytest.raises(AskTimeout) as caught:
                await w.mesh.ask("coder", "hello", timeout=8)
            ref = caught.value.details["ref"]
            owner.replies["poll"] = {"status": "pending"}
            assert not (await w.mesh.poll("coder", ref)).done
            owner.go_on.set()

            async def completed() -> bool:
                return (await w.mesh.poll("coder", ref)).done

            await eventually(completed)
            outcome = (await w.mesh.poll("coder", ref)).outcome
            assert outcome is not None
            assert outcome.text == "echo: hello"

    run(scenario())


def test_a_lost_reply_is_found_in_the_stored_results(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_asks, "LOOK_S", 0.05)

    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.silent = True
            answers = await asyncio.gather(*(w.mesh.ask("coder", f"{n}", timeout=60) for n in range(20)))
            assert sorted(a.text for a in answers) == sorted(f"echo: {n}" for n in range(20))

    run(scenario())


@pytest.mark.usefixtures("slow_looks")
def test_a_reply_lost_in_a_restart_of_the_server_is_looked_up_at_the_reconnect(fresh_server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(fresh_server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            asked = asyncio.create_task(w.mesh.ask("coder", "hello", timeout=60))
            await eventually(lambda: owner.mail)
            # The outcome is stored, but its reply never sent: as if it had gone while the caller was away.
            owner.silent = True
            owner.go_on.set()
            stored = subjects.result("coder", owner.mail[0].ref)

            async def is_stored() -> bool:
                return await get_last(w.transport, subjects.stream("result"), stored) is not None

            await eventually(is_stored)
            assert not asked.done()
            await asyncio.to_thread(fresh_server.restart)
            assert (await asked).text == "echo: hello"

    run(scenario(), timeout=40)


def test_an_ask_made_while_the_server_is_down_is_stored_once_when_it_is_back(fresh_server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(fresh_server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            await w.mesh.ask("coder", "first", timeout=60)
            fresh_server.kill()
            asked = asyncio.create_task(w.mesh.ask("coder", "second", timeout=60))
            told = asyncio.create_task(w.mesh.tell("coder", "third", timeout=60))
            await eventually(lambda: not w.mesh.transport.connected)
            await asyncio.to_thread(fresh_server.start)
            ref = await told

            async def is_there() -> bool:
                return (await w.mesh.poll("coder", ref)).done

            owner.replies["poll"] = {"status": "pending"}
            answer = await asked
            assert answer.text == "echo: second"
            await eventually(is_there)
            assert len({mail.msg_id for mail in owner.mail}) == len(owner.mail) == 3

    run(scenario(), timeout=40)


@pytest.mark.usefixtures("slow_looks")
@pytest.mark.case(207)
def test_the_same_key_gives_one_turn_and_one_answer(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            asks = [asyncio.create_task(w.mesh.ask("coder", "hello", timeout=60, idempotency_key="order-7")) for _ in range(3)]
            await eventually(lambda: owner.mail)
            ref = await w.mesh.tell("coder", "hello", idempotency_key="order-7")
            owner.go_on.set()
            answers = await asyncio.gather(*asks)
            assert {answer.ref for answer in answers} == {ref}
            assert (await w.mesh.ask("coder", "hello", timeout=60, idempotency_key="order-7")).ref == ref
            assert len(owner.mail) == 1

    run(scenario())


@pytest.mark.case(483)
def test_attachments_alone_are_a_prompt(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            await w.mesh.ask("coder", "", timeout=60, attachments=[attachment("cat.png", b"abc")])
            (mail,) = owner.mail
            assert mail.problem is None and mail.prompt is not None
            assert (mail.prompt.prompt, [a.filename for a in mail.prompt.attachments]) == ("", ["cat.png"])
            with pytest.raises(TooLarge, match=r"an attachment takes a third more than its file: put a larger one where"):
                await w.mesh.ask("coder", "", timeout=60, attachments=[attachment("cat.png", b"a" * 800_000)])

    run(scenario())


@pytest.mark.case(480)
def test_a_number_that_json_does_not_have_is_refused_with_its_field(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        nan = float("nan")
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            with pytest.raises(BadRequest, match=r"a\[1\] is NaN"):
                await w.mesh.ask("coder", "hello", metadata={"a": [None, nan]})
            with pytest.raises(BadRequest, match=r"score is NaN"):
                await w.mesh.notify("coder", {"score": nan})
            with pytest.raises(BadRequest, match=r"options\['t'\] is NaN"):
                await w.mesh.start_agent("other", kind="K", options={"t": nan})
            with pytest.raises(BadRequest, match=r"backend_options\['t'\] is minus infinite"):
                await w.mesh.update_agent("coder", backend_options={"t": -float("inf")})
            with pytest.raises(BadRequest, match=r"event.* is infinite"):
                await w.mesh.set_timer("coder", "t", float("inf"), after_s=1)
            await w.transport.flush()
            assert owner.mail == []

    run(scenario())


def test_what_travels_with_a_prompt_arrives(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            spec = await w.write_spec("coder")
            deadline = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
            end_by = deadline + dt.timedelta(minutes=1)
            await w.mesh.ask(
                "coder",
                "{not json",
                timeout=60,
                metadata={"user": 7},
                attachments=[attachment("a.txt", b"abc")],
                deadline=deadline,
                end_by=end_by,
            )
            (mail,) = owner.mail
            assert mail.prompt is not None
            assert (mail.prompt.prompt, mail.prompt.metadata) == ("{not json", {"user": 7})
            assert [(a.filename, a.content) for a in mail.prompt.attachments] == [("a.txt", "YWJj")]
            assert mail.deadline == pytest.approx(deadline.timestamp(), abs=1e-3)
            assert mail.end_by == pytest.approx(end_by.timestamp(), abs=1e-3)
            assert mail.for_life == spec.incarnation
            assert mail.msg_id is not None
            assert mail.msg_id.startswith("coder.")

    run(scenario())


def test_the_callers_trace_travels_in_the_headers(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
            with trace.use_span(span):
                await w.mesh.ask("coder", "traced", timeout=60)
                await w.mesh.notify("coder", {"also": "traced"})
            await w.mesh.ask("coder", "untraced", timeout=60)
            parents = [mail.trace.get("traceparent") for mail in owner.mail]
            expected = f"00-{0xABC:032x}-{0xDEF:016x}-01"
            assert parents == [expected, expected, None]

    run(scenario())


def test_events_arrive_as_they_were_given(server: Server, subjects: Subjects) -> None:
    events: list[Any] = [{"a": [1, None]}, "text", "17", 17, True, [1], "{"]

    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            for event in events:
                await w.mesh.notify("coder", event)
            await eventually(lambda: len(owner.mail) == len(events))
            assert [mail.event for mail in owner.mail] == events

    run(scenario())


def requests_of(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects of what `mesh` requests from now on, whichever way."""
    sent: list[str] = []
    request, call = mesh.transport.request, mesh.transport.call

    async def requested(subject: str, *args: Any, **kwargs: Any) -> Any:
        sent.append(subject)
        return await request(subject, *args, **kwargs)

    def called(subject: str, *args: Any, **kwargs: Any) -> bool:
        done = call(subject, *args, **kwargs)
        sent.extend([subject] if done else [])
        return done

    monkeypatch.setattr(mesh.transport, "request", requested)
    monkeypatch.setattr(mesh.transport, "call", called)
    return sent


def test_an_ask_of_a_known_agent_costs_one_request(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder"):
            await w.write_spec("coder")
            await w.mesh.ask("coder", "first", timeout=60)
            sent = requests_of(w.mesh, monkeypatch)
            tasks = len(asyncio.all_tasks())
            await w.mesh.ask("coder", "second", timeout=60)
            assert sent == [subjects.inbox("coder")]
            assert len(asyncio.all_tasks()) == tasks

    run(scenario())


FULL = b'{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"}}'


@pytest.mark.case(207)
@pytest.mark.parametrize("trouble", ["lost ack", "nobody there", "ack behind the answer", "not now", "full"])
def test_whatever_becomes_of_the_first_attempt_a_prompt_is_one_turn(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            await w.mesh.ask("coder", "first", timeout=60)
            call = w.mesh.transport.call
            late: list[Callable[[], None]] = []

            def troubled(subject: str, *args: Any, answered: Answered, **kwargs: Any) -> bool:
                monkeypatch.undo()
                match trouble:
                    case "lost ack":
                        call(subject, *args, answered=lambda _: answered(RequestTimeout()), **kwargs)
                    case "ack behind the answer":
                        call(subject, *args, answered=lambda _: late.append(lambda: answered(RequestTimeout())), **kwargs)
                    case "nobody there":
                        answered(NoResponders())
                    case "full":
                        answered(Message("", FULL, {}))
                return trouble != "not now"

            monkeypatch.setattr(w.mesh.transport, "call", troubled)
            if trouble == "full":
                with pytest.raises(MailboxFull):
                    await w.mesh.ask("coder", "second", timeout=60)
                return
            answer = await w.mesh.ask("coder", "second", timeout=60)
            for tell in late:
                tell()
            assert answer.text == "echo: second"
            assert [mail.ref for mail in owner.mail][1:] == [answer.ref]

    run(scenario())


def test_many_first_asks_share_one_read_of_the_spec(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder"):
            await w.write_spec("coder")
            sent = requests_of(w.mesh, monkeypatch)
            await asyncio.gather(*(w.mesh.ask("coder", "hello", timeout=60) for _ in range(20)))
            assert len([subject for subject in sent if "MSG.GET" in subject]) == 1
            assert sent.count(subjects.inbox("coder")) == 20

    run(scenario())


def test_a_new_life_under_the_name_is_addressed_without_being_asked_for(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder", incarnation="life1")
            await w.mesh.ask("coder", "hello", timeout=60)
            await w.write_spec("coder", status="stopped")
            await w.write_spec("coder", incarnation="life2")

            async def addressed_to_the_new_life() -> bool:
                await w.mesh.ask("coder", "hello", timeout=60)
                return owner.mail[-1].for_life == "life2"

            await eventually(addressed_to_the_new_life)

    run(scenario())


def test_many_asks_at_once_get_their_own_answers(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder"):
            await w.write_spec("coder")
            answers = await asyncio.gather(*(w.mesh.ask("coder", f"{n}", timeout=60) for n in range(300)))
            assert [a.text for a in answers] == [f"echo: {n}" for n in range(300)]
            assert len({a.ref for a in answers}) == 300

    run(scenario())


@pytest.mark.case(208)
def test_a_full_mailbox_refuses_at_once(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects, mailbox_limit=2) as w:
            await w.write_spec("coder")
            for _ in range(2):
                await w.mesh.tell("coder", "hello")
            with pytest.raises(MailboxFull):
                await w.mesh.tell("coder", "hello")
            with pytest.raises(MailboxFull):
                await w.mesh.ask("coder", "hello")

    run(scenario())


@pytest.mark.case(244)
def test_what_is_too_large_is_refused_and_costs_no_connection(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder"):
            await w.write_spec("coder")
            for size in (w.mesh.transport.max_payload + 1, w.mesh.transport.max_payload - 4096):
                with pytest.raises(TooLarge):
                    await w.mesh.ask("coder", "x" * size)
            assert (await w.mesh.ask("coder", "small", timeout=60)).text == "echo: small"

    run(scenario())


@pytest.mark.case(244)
@pytest.mark.parametrize("name", ["", "a..b", "a b", "a.*", "x" * 129, "_mesh", None, 7])
def test_bad_names_are_refused(server: Server, subjects: Subjects, name: Any) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w:
            for call in (w.mesh.ask, w.mesh.tell, w.mesh.notify, w.mesh.poll):
                with pytest.raises(BadRequest):
                    await call(name, "hello")
            for one in (w.mesh.status, w.mesh.stop, w.mesh.whereis, w.mesh.resume):
                with pytest.raises(BadRequest):
                    await one(name)

    run(scenario())


def test_a_cancelled_ask_leaves_nothing_behind(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            refs: list[str] = []
            asked = asyncio.create_task(w.mesh.ask_outcome("coder", "hello", on_accepted=refs.append))
            await eventually(lambda: refs)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert not w.mesh._asks._waiting
            owner.go_on.set()
            assert (await w.mesh.ask("coder", "next", timeout=60)).text == "echo: next"

    run(scenario())


def test_closing_the_client_ends_every_wait(server: Server, subjects: Subjects) -> None:
    async def scenario() -> MeshError:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            asked = asyncio.create_task(w.mesh.ask("coder", "hello"))
            await eventually(lambda: owner.mail)
            await w.mesh.close()
            with pytest.raises(Unavailable) as caught:
                await asked
            owner.go_on.set()
            return caught.value

    assert run(scenario()).details["ref"].isdecimal()


def test_a_reply_that_is_no_outcome_does_not_answer(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            asked = asyncio.create_task(w.mesh.ask("coder", "hello", timeout=60))
            await eventually(lambda: owner.mail)
            reply_to = owner.mail[0].reply_to
            assert reply_to is not None
            await w.transport.publish(reply_to, b"garbage")
            await w.transport.publish(reply_to + ".deeper", b"garbage")
            owner.go_on.set()
            assert (await asked).text == "echo: hello"

    run(scenario())


def test_names_in_use_are_bounded(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh_client.spec_cache.MOST_NAMES", 3)

    async def check(w: World, mesh: Mesh) -> None:
        for n in range(8):
            await w.write_spec(f"a{n}")
            await mesh.tell(f"a{n}", "hello")
        assert len(mesh._specs._known) <= 3
        assert set(mesh._specs.lives) <= set(mesh._specs._known)
        await mesh.tell("a0", "again")

    async def scenario() -> None:
        async with world(server, subjects) as w:
            await check(w, w.mesh)

    run(scenario())
