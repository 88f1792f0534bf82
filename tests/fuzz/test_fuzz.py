"""A small part of the fuzz, in the gate: no stream is a crash, and no call is made that was not sent whole (docs/backends.md)."""

from __future__ import annotations

import pytest

from fuzz.recordings import recordings
from fuzz.run import run

STREAMS = 400


@pytest.mark.case(403)
@pytest.mark.parametrize("reader", ["messages", "chat", "responses", "claude", "codex"])
def test_no_stream_is_a_crash(reader: str) -> None:
    if reader == "claude":
        pytest.importorskip("claude_agent_sdk")
    report = run(reader, 1, STREAMS)
    assert report.failures == []
    assert report.count == STREAMS
    assert report.behind_first >= STREAMS / 2, report.lines(reader)
    assert len(report.reasons) > 2


@pytest.mark.case(400)
@pytest.mark.parametrize("reader", ["calls", "chat-calls"])
def test_no_call_is_made_that_was_not_sent_whole(reader: str) -> None:
    report = run(reader, 1, 2 * STREAMS)
    assert report.failures == []
    assert report.reasons["result"] > STREAMS / 4, report.lines(reader)


@pytest.mark.case(761)
@pytest.mark.case(764)
def test_a_typed_turn_ends_in_one_way_whatever_its_model_sends() -> None:
    report = run("typed", 1, STREAMS)
    assert report.failures == []
    assert report.reasons["result"] > STREAMS / 4 and report.reasons["bad_answer"] > STREAMS / 20, report.lines("typed")


def test_a_seed_repeats_a_stream() -> None:
    assert run("messages", 7, 5).reasons == run("messages", 7, 5).reasons


def test_recordings_are_of_all_servers() -> None:
    names = {found.name.partition("-")[0] for prefix in ("messages", "claude", "codex") for found in recordings(prefix)}
    assert names >= {"anthropic", "litellm", "llamacpp", "claude", "codex"}
