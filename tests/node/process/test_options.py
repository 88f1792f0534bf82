"""What an operator sets: by option or environment, within bounds, and as the page for operators says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from cyclopts import CycloptsError, Parameter

from agentmesh.edge import stream_configs
from agentmesh.edge.streams import StreamSettings
from agentmesh_node.__main__ import app, main
from agentmesh_node.process.options import CommonOptions, NodeOptions, StreamOptions, SupervisorOptions, UpOptions
from agentmesh_node.process.signals import EXIT_USAGE
from agentmesh_node.settings import NodeSettings, SupervisorSettings

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
NODE = ("node", "--agents", "my_agents")
_NODE = NodeSettings(node_id="n", agents={})
COMMON = SimpleNamespace(stall_limit_s=60.0, callers_waiting=_NODE.callers_waiting, callers_rate=_NODE.callers_rate)
DEFAULTS = {
    "duplicate_window_s": stream_configs.DUPLICATE_WINDOW_S,
    "results_age_s": 3600.0,
    "results_bytes": stream_configs.RESULTS_BYTES,
    "trace_age_s": stream_configs.TRACE_AGE_S,
    "trace_bytes": stream_configs.TRACE_BYTES,
}
"""Of what leaves an existing mesh as it is unless somebody sets it."""


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch) -> Any:
    return monkeypatch.setenv


def parsed(*arguments: str) -> dict[str, Any]:
    """The arguments of a verb."""
    _, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    bound.apply_defaults()
    return dict(bound.arguments)


def refused(*arguments: str) -> str:
    with pytest.raises(CycloptsError) as error:
        parsed(*arguments)
    return str(error.value)


def test_what_the_environment_sets_is_read_and_the_rest_left_alone(setenv: Any) -> None:
    setenv("MESH_DRAIN_S", "7.5")
    setenv("MESH_LEASE_TTL_S", "2")
    setenv("MESH_REST_S", "")
    setenv("MESH_LEADER_TTL_S", "9")
    setenv("MESH_STALL_LIMIT_S", "30")
    setenv("MESH_RESULTS_AGE_S", "60")
    setenv("MESH_RESULTS_BYTES", "2000000")
    node = parsed(*NODE)
    assert node["options"] == NodeOptions(drain_s=7.5, lease_ttl_s=2)
    assert node["common"] == CommonOptions(stall_limit_s=30)
    assert parsed("setup")["store"] == StreamOptions(results_age_s=60.0, results_bytes=2_000_000)
    supervisor = parsed("supervisor")
    assert supervisor["options"] == SupervisorOptions(lease_ttl_s=9)
    assert supervisor["common"] == node["common"]
    up = parsed("up", "my_agents")
    assert (up["leader"], up["common"]) == (supervisor["options"], node["common"])
    assert up["options"] == UpOptions(drain_s=7.5, lease_ttl_s=2)
    assert up["store"] == parsed("setup")["store"]


def test_an_option_comes_before_the_environment(setenv: Any) -> None:
    setenv("MESH_DRAIN_S", "7.5")
    assert parsed(*NODE, "--drain", "1")["options"].drain_s == 1


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MESH_DRAIN_S", "soon", "unable to convert .soon. into float"),
        ("MESH_LEASE_TTL_S", "1.5", "1.5 is no whole number"),
        ("MESH_LEASE_TTL_S", "0", "Must be >= 1"),
        ("MESH_LEASE_TTL_S", "61", "Must be <= 60"),
        ("MESH_STALL_LIMIT_S", "nan", "Must be a number from 1 to 3600"),
        ("MESH_CONTENT", "maybe", "unable to convert .maybe. into bool"),
    ],
)
def test_nonsense_is_refused_and_its_variable_named(setenv: Any, variable: str, value: str, complaint: str) -> None:
    setenv(variable, value)
    assert re.search(f"{variable}.*{complaint}", refused(*NODE))


def test_what_a_stream_cannot_be_given_is_refused_by_setup_alone(setenv: Any) -> None:
    setenv("MESH_RESULTS_BYTES", "10")
    assert re.search("MESH_RESULTS_BYTES.*Must be >= 1048576", refused("setup"))
    assert parsed(*NODE), "nodes and supervisors make no streams"


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--wait", "-1", "Must be >= 0"),
        ("--wait", "nan", "Must be a number from 0"),
        ("--health-port", "65536", "Must be <= 65535"),
        ("--capacity", "-1", "Must be >= 0"),
        ("--capacity", "1.5", "1.5 is no whole number"),
        ("--workers", "0", "Must be >= 1"),
    ],
)
def test_what_an_option_cannot_mean_is_refused(option: str, value: str, complaint: str) -> None:
    assert re.search(f"{option}.*{complaint}", refused(*NODE, option, value))


@pytest.mark.parametrize(("value", "complaint"), [("0", "Must be >= 1"), ("6", "Must be <= 5")])
def test_a_number_of_copies_that_cannot_be_is_refused(value: str, complaint: str) -> None:
    assert re.search(f"--replicas.*{complaint}", refused("setup", "--replicas", value))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MESH_ROOT", "No Root"),
        ("MESH_NATS_URL", "http://somewhere"),
        ("MESH_LOG", "xml"),
        ("MESH_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_variable_is_one_line_that_begins_with_it_and_2(
    variable: str, value: str, setenv: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    setenv(variable, value)
    assert main(["supervisor"]) == EXIT_USAGE
    assert re.fullmatch(f"mesh: {variable}: .*\n", capsys.readouterr().err)


def test_wrong_prices_are_one_line_that_begins_with_the_variable_and_2(
    setenv: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setenv("MESH_PRICES", "{")
    agents = tmp_path / "some_agents.py"
    agents.write_text("from agentmesh import Agent\n\n\nclass Some(Agent):\n    pass\n")
    assert main(["node", "--agents", str(agents)]) == EXIT_USAGE
    assert re.fullmatch("mesh: MESH_PRICES: .*\n", capsys.readouterr().err)


@pytest.mark.processes
@pytest.mark.parametrize("command", [("-m", "agentmesh_node"), ("-m", "agentmesh_client.cli.main")], ids=["node", "mesh"])
def test_nonsense_ends_the_command_with_one_line_and_2(command: tuple[str, ...], setenv: Any) -> None:
    setenv("MESH_LEASE_TTL_S", "1.5")
    ended = subprocess.run((sys.executable, *command, *NODE), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_USAGE
    assert re.fullmatch(r"mesh: .*MESH_LEASE_TTL_S.*1\.5.*\n", ended.stderr)


def test_a_wrong_root_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervisor", "--root", "No Root"]) == EXIT_USAGE
    assert re.fullmatch(r"mesh: .*No Root.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(("text", "on"), [("", False), ("0", False), ("no", False), ("1", True), ("TRUE", True), ("yes", True)])
def test_a_switch(text: str, on: bool, setenv: Any) -> None:
    setenv("MESH_CONTENT", text)
    assert parsed(*NODE)["options"].content is on


def test_a_switch_that_nobody_sets_is_off() -> None:
    assert parsed(*NODE)["options"].content is False
    assert parsed(*NODE, "--content")["options"].content is True


def test_up_publishes_all_facts_of_traces_unless_it_is_told_otherwise(setenv: Any) -> None:
    assert parsed(*NODE)["options"].trace_facts == "attempts"
    assert parsed("up", "my_agents")["options"].trace_facts == "all"
    setenv("MESH_TRACE_FACTS", "off")
    assert parsed(*NODE)["options"].trace_facts == parsed("up", "my_agents")["options"].trace_facts == "off"
    assert parsed("up", "my_agents", "--trace-facts", "all")["options"].trace_facts == "all"
    setenv("MESH_TRACE_FACTS", "some")
    assert re.search("some.*MESH_TRACE_FACTS", refused(*NODE))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (NodeOptions(), NodeSettings(node_id="n", agents={})),
        (SupervisorOptions(), SupervisorSettings()),
        (CommonOptions(), COMMON),
        (StreamOptions(), StreamSettings()),
    ],
    ids=["node", "supervisor", "common", "streams"],
)
def test_each_option_has_the_name_and_the_default_of_its_setting(options: Any, settings: object) -> None:
    for field in fields(options):
        wanted = getattr(settings, field.name)
        assert (type(field.default), field.default) == (type(wanted), wanted), field.name


@pytest.mark.parametrize("options", [NodeOptions, SupervisorOptions, CommonOptions, StreamOptions])
def test_the_page_for_operators_has_each_with_its_default_and_bounds(options: type) -> None:
    row = re.compile(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) to ([\d.]+)", re.M)
    rows = {variable: tuple(map(float, numbers)) for variable, *numbers in row.findall(PAGE.read_text())}
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        parameter: Any = next(each for each in hints[field.name].__metadata__ if isinstance(each, Parameter))
        for bounds in parameter.validator if parameter.env_var else ():
            default = DEFAULTS[field.name] if field.default is None else field.default
            assert rows[parameter.env_var[0]] == (default, bounds.gte, bounds.lte)
            assert f"[{bounds.gte} to {bounds.lte}]" in parameter.help


def test_each_verb_is_a_command_of_mesh_too() -> None:
    declared = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]["agentmesh.commands"]
    own = {name for name in app if not name.startswith("-")} - {"worker"}
    assert set(declared) == own == {"up", "setup", "node", "supervisor", "models"}


def test_workers_need_a_port_each_for_their_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["node", "--agents", "my_agents", "--workers", "3", "--metrics-port", "65534", "--nats", "nats://127.0.0.1:1"])
    assert code == EXIT_USAGE
    assert "--metrics-port 65534: there are no ports after it for 3 workers" in capsys.readouterr().err
