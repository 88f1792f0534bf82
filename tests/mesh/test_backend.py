"""The response that the events of a turn make up."""

from __future__ import annotations

import pytest

from agentmesh.backend import Event, Response

AGAIN = Event("text", {"text": "", "restart": True})


@pytest.mark.case(407)
def test_a_text_that_was_void_is_no_part_of_the_response() -> None:
    events = [Event.text("one "), Event.usage(input_tokens=1), Event.text("half"), AGAIN, Event.text("two"), Event.result()]
    assert Response.of(events, 0, None).text == "one two"
    assert Response.of([Event.text("half"), AGAIN, Event.result()], 0, None).text == ""
    assert Response.of([Event.text("half"), AGAIN, Event.result("whole")], 0, None).text == "whole"
