"""Settings that differ between servers, that nobody can have meant, and users who may do everything."""

from __future__ import annotations

import re

import pytest

from agentmesh_client.doctor.servers import ServerReport
from agentmesh_client.doctor.settings import findings, is_too_long
from citations import ROOT
from client.test_doctor import facts


def servers(**settings: tuple[object, ...]) -> list[ServerReport]:
    columns = [[(field, value) for value in values] for field, values in settings.items()]
    return [ServerReport(name=f"s{at}", **dict(row)) for at, row in enumerate(zip(*columns, strict=True), 1)]


LIMITED = {"allow": ["mesh.ask.>"]}


@pytest.mark.case(334)
@pytest.mark.parametrize(
    ("setting", "values", "says"),
    [
        ("max_payload", (1 << 20, 8 << 20, 1 << 20), "max_payload (s1: 1048576, s2: 8388608, s3: 1048576)"),
        ("version", ("2.14.1", "2.15.0"), "version (s1: 2.14.1, s2: 2.15.0)"),
        ("sync", ("always", "120s"), "sync_interval (s1: always, s2: 120s)"),
    ],
)
def test_a_setting_in_which_servers_differ_is_told_with_its_values(setting: str, values: tuple[object, ...], says: str) -> None:
    (said,) = findings(facts(servers=servers(**{setting: values}), publish=LIMITED))
    assert said.level == "warning" and f"the servers differ in {says}" in said.text
    same = servers(**{setting: (values[0], None, values[0])})
    assert list(findings(facts(servers=same, publish=LIMITED))) == [], "what is not known differs from nothing"


@pytest.mark.case(334)
def test_an_interval_that_nobody_means_is_a_problem_and_shows_how_it_is_written() -> None:
    (said,) = findings(facts(sync={"a": "2000000s", "b": "120s"}, publish=LIMITED))
    assert said.level == "problem" and said.text.startswith("a writes to its disk every 2000000s")
    assert 'sync_interval: "2m"' in said.text


def test_no_page_and_no_manifest_spells_an_interval_without_quotes() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    bare = re.compile(r"sync_interval[\"']?\s*[:=]?\s*[0-9]")
    assert bare.search("sync_interval: 2m") and not bare.search('sync_interval: "2m"')
    # The note and the guide say what becomes of it.
    told = {"docs/operations.md", "docs/guarantees.md"}
    found = [str(path.relative_to(ROOT)) for path in pages if bare.search(path.read_text(errors="replace"))]
    assert set(found) <= told


@pytest.mark.parametrize(("value", "too_long"), [("always", False), ("120s", False), ("2m", False), ("3601s", True)])
def test_what_is_too_long(value: str, too_long: bool) -> None:
    assert is_too_long(value) is too_long


@pytest.mark.case(334)
def test_users_without_restrictions_are_told() -> None:
    (said,) = findings(facts(user="ops"))
    assert said.level == "warning" and said.text.startswith("the user ops has no restrictions")
    (said,) = findings(facts(password=False))
    assert "lets in who gives no password" in said.text
    (said,) = findings(facts(publish=LIMITED, servers=servers(password=(True, False, None))))
    assert said.text.startswith("s2 asks no client for a password")
    assert list(findings(facts(publish=LIMITED))) == list(findings(facts(subscribe=LIMITED))) == []


@pytest.mark.case(653)
def test_a_caller_that_may_read_what_is_of_all_is_told() -> None:
    wide = "$JS.API.STREAM.MSG.GET.MESH_MAIL"
    (said,) = findings(facts(user="shop", publish={"allow": ["mesh.ask.team-a.>", wide]}))
    assert said.level == "warning" and "shop is given some agents only" in said.text and wide in said.text
    named = "$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.clerk"
    assert list(findings(facts(publish={"allow": ["mesh.ask.clerk", named]}))) == []
    assert list(findings(facts(publish={"allow": ["mesh.ask.>", wide]}))) == [], "an operator may"


@pytest.mark.case(653)
def test_exports_that_others_have_written_are_told_what_to_look_for() -> None:
    (said,) = findings(facts(publish=LIMITED, exports=["mesh.ask.>"]))
    assert said.level == "warning" and 'threshold: "24h"' in said.text
    assert list(findings(facts(publish=LIMITED, exports=["mesh.caller.ask.>", "mesh.live.control-status.>"]))) == []
