"""A request that nobody can be told anything about leaves a line in the log."""

from __future__ import annotations

import pytest

from agentmesh.edge.replies import usable_reply
from agentmesh.edge.transport import Message


@pytest.mark.case(317)
def test_a_request_whose_inbox_lies_in_the_mesh_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        asked = Message("mesh.ask.coder-17", b"hello", {}, f"mesh.inboxes.alice.{number}")
        assert usable_reply(asked, "mesh") is None
    assert usable_reply(Message("mesh.ask.coder-18", b"hello", {}, "_INBOX.alice"), "mesh") == "_INBOX.alice"
    (line,) = caplog.records
    assert (
        line.levelname == "WARNING" and "mesh.inboxes.alice.0" in line.getMessage() and "inbox of your own" in line.getMessage()
    )
