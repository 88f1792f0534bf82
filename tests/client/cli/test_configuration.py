"""`mesh set`, and how the configuration is printed."""

from __future__ import annotations

import datetime as dt

import pytest

from agentmesh.control_values import Configuration
from agentmesh.registry_values import Restart
from agentmesh.subjects import Subjects
from agentmesh.wire import encode
from agentmesh_client import ChangeEntry
from agentmesh_client.cli import exits
from agentmesh_client.cli.configuration import change_text, configuration_lines
from client.test_cli import shell
from support import Server, run

FOUND = Configuration(
    backend_options={"model": "m"}, budget={}, watchdog_s=600.0, restart=Restart(), labels={"zone": "a"}, sets=2, tag="0a1b2c3d4e"
)


@pytest.mark.case(344)
@pytest.mark.case(346)
def test_a_configuration_and_a_change_are_lines_for_people() -> None:
    lines = dict(configuration_lines(FOUND))
    assert lines["configuration"].startswith("0a1b2c3d4e") and lines["watchdog"] == "600 s"
    assert (lines["backend options"], lines["budget"], lines["labels"]) == ('{"model":"m"}', "-", "zone=a")
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    values = {"watchdog_s": 60.0, "backend_options": {"model": "m", "effort": None}}
    change = ChangeEntry(number=1, at=moment, after_turn=3, node="n1", values=values)
    assert change_text(change) == 'set effort=null model="m" watchdog_s=60.0'


@pytest.mark.case(340)
def test_the_verb_sends_what_it_was_given(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            owner.replies = {"set": {"set": True, "configuration": FOUND}}
            given = [
                "--backend-option",
                "model=m",
                "--backend-option",
                "effort=null",
                "--budget",
                '{"usd": 1}',
                "--watchdog",
                "60",
            ]
            out, _ = await sh.run("set", "coder", *given, "--restart", "transient", "--expect", "0a")
            assert out == "coder is changed (configuration 0a1b2c3d4e)\n"
            sent = owner.requests[-1]
            assert sent["set"] == {
                "backend_options": {"model": "m", "effort": None},
                "budget": {"usd": 1},
                "watchdog_s": 60.0,
                "restart": {"policy": "transient", "max": 5, "within_s": 60.0},
            }
            assert sent["expect"] == "0a" and sent["id"]
            printed = await sh.json("set", "coder", "--watchdog", "60")
            assert printed["changed"] is True and encode(printed["configuration"]) == encode(FOUND)
            await sh.run("set", "coder", "--label", "zone=b", "--label", "gpu=")
            assert (await w.spec("coder")).labels == {"zone": "b"}
            for wrong in ([], ["--budget", '{"euro": 1}'], ["--watchdog", "0"], ["--label", "mesh.reads-2=no"]):
                await sh.run("set", "coder", *wrong, expect=exits.USAGE)
            owner.replies = {"set": {"error": {"code": "conflict", "message": "another one", "details": {}}}}
            assert "another one" in (await sh.run("set", "coder", "--watchdog", "9", expect=exits.FAILED))[1]

    run(scenario(), timeout=60)
