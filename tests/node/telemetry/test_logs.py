"""The log's shape: fields for programs, key=value for people."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry import propagate

from agentmesh.errors import BadRequest
from agentmesh_node.telemetry import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clean_root() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
    for chatty in (*logs.CHATTY, *logs.HEARSAY):
        logging.getLogger(chatty).setLevel(logging.NOTSET)


def logged(stream: io.StringIO, **environ: str) -> str:
    logs.configure("node", "n1", stream=stream, environ=environ)
    log = logging.getLogger("agentmesh.host")
    log.debug("not shown")
    log.info("agent activated", extra={"agent": "coder", "generation": 7})
    return stream.getvalue()


def test_json_away_from_a_terminal_or_where_asked_for() -> None:
    for line in (logged(io.StringIO()), logged(Terminal(), MESH_LOG="json")):
        fields = json.loads(line)
        assert fields.pop("time").endswith("Z")
        assert fields == {
            "event": "agent activated", "level": "info", "logger": "agentmesh.host",
            "agent": "coder", "generation": 7, "role": "node", "instance": "n1",
        }  # fmt: skip


def test_key_value_on_a_terminal_or_where_asked_for() -> None:
    for line in (logged(Terminal()), logged(io.StringIO(), MESH_LOG="text")):
        assert 'level=info event="agent activated" logger=agentmesh.host role=node instance=n1 agent=coder generation=7' in line


def test_configuring_again_replaces_and_levels_can_be_chosen() -> None:
    first, second = io.StringIO(), io.StringIO()
    logged(first)
    assert len(logged(second, MESH_LOG_LEVEL="debug").splitlines()) == 2
    assert len(first.getvalue().splitlines()) == 1


@pytest.mark.parametrize("variable", ["MESH_LOG", "MESH_LOG_LEVEL"])
def test_a_value_that_a_variable_does_not_know_is_refused(variable: str) -> None:
    with pytest.raises(BadRequest, match=f"bad_request: {variable}: 'loud' is none of"):
        logged(io.StringIO(), **{variable: "loud"})
    assert logged(io.StringIO(), **{variable: ""})


def test_an_exception_is_part_of_its_line() -> None:
    stream = io.StringIO()
    logs.configure("node", "n1", stream=stream, environ={})
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("agentmesh").exception("a turn crashed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "boom"


def test_an_exception_shows_no_local_variables() -> None:
    stream = io.StringIO()
    logs.configure("node", "n1", stream=stream, environ={"MESH_LOG": "json"})

    def fail(secret: str) -> None:
        raise ValueError("it fails")

    try:
        fail("s3cret")
    except ValueError:
        logging.getLogger("agentmesh.host").exception("failed")
    assert "it fails" in stream.getvalue()
    assert "s3cret" not in stream.getvalue().replace('fail("s3cret")', "")


@pytest.mark.parametrize(("level", "heard"), [("info", False), ("debug", True)])
def test_a_line_for_each_request_is_worth_its_place_at_debug_only(level: str, heard: bool) -> None:
    stream = io.StringIO()
    logged(stream, MESH_LOG_LEVEL=level)
    logging.getLogger("httpx2").info("HTTP Request: POST")
    logging.getLogger("httpx2").warning("slow")
    assert ("HTTP Request" in stream.getvalue(), "slow" in stream.getvalue()) == (heard, True)


@pytest.mark.case(592)
def test_what_a_stranger_writes_into_a_trace_context_is_not_in_the_log() -> None:
    stream = io.StringIO()
    logs.configure("node", "n1", stream=stream, environ={})
    for headers in (
        {"baggage": "no list member"},
        {"baggage": f"key={'x' * 5000}"},
        {"baggage": f"{'x' * 5000}=value"},
        {"traceparent": "0" * 600},
        {"traceparent": "00-no-trace-01", "tracestate": "=" * 600, "baggage": "=,=,;"},
    ):
        propagate.extract(headers)
    assert stream.getvalue() == ""
    logs.configure("node", "n1", stream=stream, environ={"MESH_LOG_LEVEL": "debug"})
    propagate.extract({"baggage": "no list member"})
    assert "no list member" in stream.getvalue()
