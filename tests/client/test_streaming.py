"""Live events as a client sees them: what is void, what is missed, and the outcome that comes whatever was lost."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh import wire
from agentmesh.errors import AskTimeout, Interrupted, MeshError, NotFound, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import Mail, Outcome
from agentmesh_client import (
    Ended,
    LiveEvent,
    Missed,
    Restarted,
    Started,
    Text,
    ToolResult,
    ToolUse,
    Usage,
    pending_asks,
    streaming,
)
from agentmesh_client.cli.streaming import Screen, totals
from agentmesh_client.streaming import EventReader, Retry
from client.fake_owner import World, world
from support import Server, eventually, run

HEAD = {"v": 1, "agent": "coder", "ref": "7"}


def message(kind: str, seq: int, owner: int = 5, run: str = "a", **fields: Any) -> bytes:
    """One live event as it travels."""
    return json.dumps({**HEAD, "type": kind, "seq": seq, "owner": owner, "run": run, **fields}).encode()


def read(*bodies: bytes) -> tuple[EventReader, list[LiveEvent]]:
    reader = EventReader()
    return reader, [event for body in bodies for event in reader.read(body)]


# --- order, gaps, takeovers -------------------------------------------------------------------------------------------
@pytest.mark.case(243)
def test_each_message_is_one_typed_event_and_the_numbers_have_no_gaps() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="a "),
        message("tool_use", 3, id="t", name="grep", input={"x": 1}),
        message("tool_result", 4, id="t", ok=False, text="no"),
        message("usage", 5, input_tokens=3),
        message("text", 6, text="b"),
    )
    assert events == [
        Started(n=1, owner=5),
        Text(n=2, text="a "),
        ToolUse(n=3, id="t", name="grep", input={"x": 1}),
        ToolResult(n=4, id="t", ok=False, text="no"),
        Usage(n=5, usage={"input_tokens": 3}),
        Text(n=6, text="b"),
    ]
    assert reader.text == "a b"


@pytest.mark.case(243)
def test_a_takeover_says_what_is_void_and_the_dead_owners_last_words_are_dropped() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="wrong"),
        message("start", 1, owner=9, run="b"),
        message("text", 3, text=" and late"),
        message("text", 2, owner=9, run="b", text="right"),
    )
    assert events[2:] == [Restarted(n=3, owner=9, void_from=2), Text(n=4, text="right")]
    assert reader.text == "right"


@pytest.mark.case(243)
@pytest.mark.case(215)
def test_what_led_to_a_durable_step_survives_a_takeover() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="one "),
        message("text", 3, text="two ", step=1),
        message("text", 4, text="lost", step=2),
        message("start", 1, owner=9, run="b", step=2),
        message("text", 2, owner=9, run="b", step=2, text="three"),
    )
    assert events[-2:] == [Restarted(n=5, owner=9, void_from=4), Text(n=6, text="three")]
    assert reader.text == "one two three"
    reader.read(message("start", 1, owner=11, run="c", step=2))
    assert reader.text == "one two "


@pytest.mark.case(673)
def test_behind_a_hand_over_nothing_is_void() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="one ", step=1),
        message("text", 3, text="two ", step=2),
        message("usage", 4, step=2, input_tokens=3),
        message("handover", 5, step=2),
        message("start", 1, owner=9, run="b", step=2),
        message("text", 2, owner=9, run="b", step=2, text="three"),
    )
    assert events[-2:] == [Restarted(n=5, owner=9, void_from=5), Text(n=6, text="three")]
    assert reader.text == "one two three"
    reader.read(message("start", 1, owner=11, run="c", step=2))
    assert reader.text == "one two ", "what that owner had said is void: it died"


@pytest.mark.case(215)
def test_a_tool_result_that_was_shown_behind_its_step_is_not_void() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="I look. "),
        message("tool_use", 3, id="t", name="grep"),
        message("tool_result", 4, id="t", step=2),
        message("start", 1, owner=9, run="b", step=2),
    )
    assert events[-1] == Restarted(n=5, owner=9, void_from=5), "nothing is void"
    assert reader.text == "I look. "


def test_an_answer_that_the_model_begins_again_voids_itself_and_nothing_before_it() -> None:
    reader, events = read(
        message("start", 1),
        message("text", 2, text="I look. "),
        message("tool_result", 3, id="t"),
        message("thinking", 4, text="well"),
        message("text", 5, text="It is"),
        message("text", 6, text="", restart=True),
        message("text", 7, text="It "),
        message("text", 8, text="", restart=True),
        message("text", 9, text="There."),
    )
    assert events[5:] == [
        Restarted(n=6, owner=5, void_from=4),
        Text(n=7, text="It "),
        Restarted(n=8, owner=5, void_from=7),
        Text(n=9, text="There."),
    ]
    assert reader.text == "I look. There."


@pytest.mark.case(408)
def test_a_further_try_of_a_model_call_says_why_and_when() -> None:
    told = {"reason": "overloaded", "attempt": 2, "after_s": 4.1}
    reader, events = read(
        message("start", 1),
        message("text", 2, text="", retry=told),
        message("text", 3, text="half"),
        message("text", 4, text="", restart=True, retry={"reason": "stream_broken"}),
        message("text", 5, text="whole"),
        message("text", 6, text="", restart=True, retry=["no"]),
    )
    text, restarted = events[1], events[3]
    assert isinstance(text, Text)
    assert text.retry == Retry(reason="overloaded", attempt=2, after_s=4.1)
    assert isinstance(restarted, Restarted)
    assert restarted.retry == Retry(reason="stream_broken")
    assert isinstance(events[5], Restarted)
    assert reader.text == ""
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(quiet=False, out=out, err=err)
    for event in events[:5]:
        screen.show(event)
    assert "the model is asked again in 4.1 s (overloaded)" in err.getvalue()
    assert "begins again (stream_broken)" in err.getvalue()


def test_a_turn_that_runs_again_under_the_same_owner_is_a_restart_also_if_its_start_was_lost() -> None:
    _, events = read(message("start", 1), message("text", 2, text="a"), message("text", 2, run="b", text="b"))
    assert events[2:] == [Restarted(n=3, owner=5, void_from=2), Missed(n=4, count=1), Text(n=5, text="b")]


@pytest.mark.case(470)
def test_what_is_lost_at_the_end_shows_by_the_number_of_the_outcome() -> None:
    _, events = read(message("start", 1), message("text", 2, text="a"), message("outcome", 6, outcome={}))
    assert events[2:] == [Missed(n=3, count=3)]
    _, events = read(message("start", 1), message("text", 2, text="a"), message("outcome", 3, outcome={}))
    assert len(events) == 2
    _, events = read(message("outcome", 3, outcome={}))
    assert events == [Started(n=1, owner=5), Missed(n=2, count=2)]


def test_a_run_of_which_only_the_outcome_came_voids_the_one_before() -> None:
    reader, events = read(message("start", 1), message("text", 2, text="a"), message("outcome", 4, run="b", owner=6, outcome={}))
    assert events[2:] == [Restarted(n=3, owner=6, void_from=2), Missed(n=4, count=3)]
    assert reader.text == ""


def test_an_outcome_from_an_owner_that_has_not_run_the_turn_voids_nothing() -> None:
    reader, events = read(message("start", 1), message("text", 2, text="a"), message("outcome", 1, run="b", owner=6, outcome={}))
    assert len(events) == 2
    assert reader.text == "a"


def test_owners_of_before_runs_had_ids_are_told_apart_by_their_generation() -> None:
    old = [json.dumps({**HEAD, "type": "text", "seq": 1, "owner": owner, "text": str(owner)}).encode() for owner in (5, 9, 5)]
    reader, events = read(*old)
    assert [type(event) for event in events] == [Started, Text, Restarted, Text]
    assert reader.text == "9"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"type":"text"}', message("text", 2, text=7.5), message("tool_use", 2), message("new", 2)]
)
def test_what_is_no_event_is_left_out(body: bytes) -> None:
    _, events = read(message("start", 1), body, message("text", 3, text="on"))
    assert [event for event in events if isinstance(event, Text)][-1].text == "on"
    assert [event.n for event in events] == list(range(1, len(events) + 1))


@given(
    st.lists(st.tuples(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=8)), min_size=1, max_size=4),
)
def test_whatever_is_lost_the_numbers_add_up(runs: list[tuple[int, list[bool]]]) -> None:
    """What was read and what is reported missed is all that was sent, up to the last that came; void text is gone."""
    reader, owner, spoken = EventReader(), 0, ""
    for growth, arrived in runs:
        owner += growth
        events = [
            event
            for seq, came in enumerate(arrived, start=1)
            if came
            for event in reader.read(message("text", seq, owner=owner, run=str(owner), text=f"{owner}.{seq} "))
        ]
        heard = [seq for seq, came in enumerate(arrived, start=1) if came]
        if heard:
            spoken = "".join(f"{owner}.{seq} " for seq in heard)
            texts = sum(isinstance(event, Text) for event in events)
            assert texts + sum(event.count for event in events if isinstance(event, Missed)) == heard[-1]
    assert reader.text == spoken


# --- with a server ----------------------------------------------------------------------------------------------------
async def say(w: World, mail: Mail, *fields: dict[str, Any], owner: int = 5, run_id: str = "a") -> None:
    """Send live events as an owner does."""
    assert mail.stream_to is not None
    for seq, more in enumerate(fields, start=1):
        body = {**HEAD, "ref": mail.ref, "seq": seq, "owner": owner, "run": run_id, **more}
        await w.transport.publish(mail.stream_to, wire.encode(body))
    await w.transport.flush()


async def first_mail(owner: Any) -> Mail:
    await eventually(lambda: owner.mail)
    mail: Mail = owner.mail[0]
    return mail


@pytest.mark.case(243)
def test_a_stream_shows_events_as_they_come_and_ends_with_the_outcome(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            async with w.mesh.stream("coder", "hello", timeout=60) as turn:
                mail = await first_mail(owner)
                assert turn.ref == mail.ref
                await say(w, mail, {"type": "start"}, {"type": "text", "text": "echo: "}, {"type": "text", "text": "hello"})
                seen = [await anext(turn) for _ in range(3)]
                assert [type(event) for event in seen] == [Started, Text, Text], "before the turn has ended"
                owner.go_on.set()
                rest = [event async for event in turn]
                assert [type(event) for event in rest] == [Ended]
                assert (await turn.response()).text == turn.text == "echo: hello"

    run(scenario())


@pytest.mark.case(243)
def test_the_outcome_comes_from_the_store_when_every_message_was_lost(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_asks, "LOOK_S", 0.1)

    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.silent = True
            async with w.mesh.stream("coder", "hello", timeout=60) as turn:
                (last,) = [event async for event in turn]
                assert isinstance(last, Ended)
                assert last.outcome.text == "echo: hello"

    run(scenario())


def test_a_failed_turn_is_an_event_for_who_reads_and_an_error_for_who_wants_the_answer(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder", lambda _: Interrupted("by an operator")):
            await w.write_spec("coder")
            async with w.mesh.stream("coder", "hello", timeout=60) as turn:
                (last,) = [event async for event in turn]
                assert isinstance(last, Ended)
                assert not last.outcome.ok
                with pytest.raises(Interrupted):
                    await turn.response()

    run(scenario())


def test_patience_bounds_the_stream_and_the_ends_of_a_client_end_it(server: Server, subjects: Subjects) -> None:
    async def attempt(w: World, timeout: float) -> MeshError | None:
        try:
            async with w.mesh.stream("coder", "hello", timeout=timeout) as turn:
                await turn.response()
        except MeshError as error:
            return error
        return None

    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            late = await attempt(w, 0.3)
            assert isinstance(late, AskTimeout)
            assert late.details["ref"] == owner.mail[0].ref
            with pytest.raises(NotFound):
                async with w.mesh.stream("nobody", "hello"):
                    pass
            asked = asyncio.create_task(attempt(w, 20))
            await eventually(lambda: len(owner.mail) == 2)
            await w.mesh.close()
            assert isinstance(await asked, Unavailable)

    run(scenario())


def test_a_slow_reader_loses_the_oldest_events_and_is_told(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 10)

    async def scenario() -> None:
        async with world(server, subjects) as w, w.owner("coder") as owner:
            await w.write_spec("coder")
            owner.go_on.clear()
            async with w.mesh.stream("coder", "hello", timeout=60) as turn:
                mail = await first_mail(owner)
                await say(w, mail, *({"type": "text", "text": str(number)} for number in range(100)))
                owner.go_on.set()
                await eventually(lambda: turn.ended)
                events = [event async for event in turn]
                assert [type(event) for event in events] == [Started, Missed, *[Text] * 10, Ended]
                assert events[1] == Missed(n=2, count=90)

    run(scenario())


# --- on the screen ----------------------------------------------------------------------------------------------------
def shown(*events: LiveEvent, said: str = "", answer: str = "", **usage: Any) -> tuple[str, str]:
    """stdout and stderr of a turn that ends with `answer`."""
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(quiet=False, out=out, err=err)
    for event in events:
        screen.show(event)
    screen.end(Outcome(agent="coder", ref="7", ok=True, text=answer, usage=usage), said)
    return out.getvalue(), err.getvalue()


def lines(text: str) -> Sequence[str]:
    """Lines, without the times."""
    return [line.rpartition("  ")[0] or line.rpartition(" ")[0].rpartition(" ")[0] for line in text.splitlines()]


def test_text_goes_to_stdout_as_it_is_and_a_tool_call_is_one_line_elsewhere() -> None:
    out, err = shown(
        Started(n=1, owner=5),
        Text(n=2, text="I look.\n"),
        ToolUse(n=3, id="t", name="grep", input={"for": "x"}),
        ToolResult(n=4, id="t"),
        Text(n=5, text="It is "),
        Text(n=6, text="there"),
        said="I look.\nIt is there",
        answer="It is there",
    )
    assert out == "I look.\nIt is there\n"
    assert lines(err)[0] == 'grep {"for":"x"}'
    assert len(err.splitlines()) == 2


def test_two_tools_at_once_have_a_line_each_when_they_begin_and_when_they_end() -> None:
    _, err = shown(
        ToolUse(n=1, id="a", name="grep"),
        ToolUse(n=2, id="b", name="find"),
        ToolResult(n=3, id="a", ok=False, text="no such\nfile"),
        ToolResult(n=4, id="b"),
    )
    first, second, third, fourth, _ = err.splitlines()
    assert (first, second) == ("grep", "find")
    assert third.startswith("grep  ")
    assert third.endswith("failed: no such file")
    assert fourth.startswith("find  ")


def test_an_answer_that_the_stream_did_not_show_is_printed_at_the_end() -> None:
    out, err = shown(
        Text(n=1, text="half of a wrong"),
        Restarted(n=2, owner=9, void_from=1),
        Text(n=3, text="the an"),
        said="the an",
        answer="the answer",
    )
    assert out == "half of a wrong\nthe an\nthe answer\n"
    assert "the turn (owner 9) begins again, what was shown of it is void" in err


def test_an_answer_that_begins_again_is_called_so() -> None:
    _, err = shown(Started(n=1, owner=5), Text(n=2, text="It"), Restarted(n=3, owner=5, void_from=2))
    assert "the answer begins again, what was shown of it is void" in err


def test_the_last_line_has_tokens_cost_and_time() -> None:
    outcome = Outcome(agent="a", ref="1", ok=True, usage={"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.0123})
    assert totals(outcome, 1.5) == "3 tokens in, 4 tokens out, $0.0123, 1.50 s"
    assert totals(Outcome(agent="a", ref="1", ok=True), 1.5) == "1.50 s"
