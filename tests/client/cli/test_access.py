"""`mesh access`: what it writes, says, and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh_client.cli import access, exits, main
from agentmesh_client.cli.common import GlobalOptions


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> int:
    return main.main(["access", *arguments])


def test_users_are_made_listed_and_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", "--nats", "nats://a:4222") == exits.OK
    assert 'include "access/access.conf"' in capsys.readouterr().err
    assert command("add", "shop", "caller", "team-a.", "clerk", "--may", "cancel,interrupt") == exits.OK
    assert "--nats @access/shop.url" in capsys.readouterr().err
    assert command("add", "shop", "caller", "team-a.", "clerk", "--may", "cancel", "--may", "interrupt") == exits.OK
    assert "is there as it is asked for" in capsys.readouterr().err
    assert command("list") == exits.OK
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "team-a., clerk" in rows["shop"] and "status, cancel, interrupt" in rows["shop"] and "verified" in rows["shop"]
    assert rows["operator"].endswith("unverified")
    assert rows["observer"].endswith("none")
    before = (here / "access" / "shop.url").read_text()
    assert command("rotate", "shop") == exits.OK
    assert (here / "access" / "shop.url").read_text() != before
    assert command("remove", "shop") == exits.OK
    assert command("remove", "shop") == exits.NOT_FOUND
    assert "mesh access list" in capsys.readouterr().err


def test_no_secret_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("init",), ("add", "shop", "caller", "a"), ("rotate", "shop"), ("list", "-o", "json"), ("remove", "node")):
        assert command(*arguments) == exits.OK
    shown = "".join(capsys.readouterr())
    for path in (here / "access").glob("*.url"):
        assert path.read_text().partition("@")[0].rpartition(":")[2] not in shown
    assert "$2a$" not in shown, "nor a hash"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "x", "caller"), "a caller needs agents"),
        (("add", "x", "chief"), "there is no role 'chief'"),
        (("add", "x", "caller", "a", "--may", "fly"), "there is no control request 'fly'"),
        (("init",), "has users already"),
        (("list", "--dir", "elsewhere"), "mesh access init"),
    ],
)
def test_what_cannot_be_done_is_said_with_what_to_do(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    command("init")
    capsys.readouterr()
    assert command(*arguments) != exits.OK
    assert said in capsys.readouterr().err


def test_the_addresses_are_those_that_are_given(here: Path) -> None:
    options: dict[str, Any] = {"nats": "tls://a:4222,tls://b:4222", "root": "shop", "quiet": True}
    assert access.init(options=GlobalOptions(**options)) == exits.OK
    assert (here / "access" / "node.url").read_text().count("tls://node:") == 2
    assert "SHOP_CALLERS {" in (here / "access" / "access.conf").read_text()


@pytest.mark.case(655)
def test_signed_users_have_credentials_that_end_and_no_seed_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", "--jwt") == exits.OK
    assert "access/keys away from servers" in capsys.readouterr().err
    assert command("add", "shop", "caller", "team-a.", "--may", "cancel", "--expires", "30d") == exits.OK
    assert "--creds access/shop.creds" in capsys.readouterr().err
    assert command("list") == exits.OK
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shop"))
    assert "team-a." in row and "status, cancel" in row and "20" in row.split("cancel")[1] and row.endswith("verified")
    assert command("rotate", "shop") == exits.OK
    assert "access/shop.creds" in capsys.readouterr().err
    for wrong in ("30", "1w", "0d"):
        assert command("add", "other", "caller", "a", "--expires", wrong) != exits.OK
        assert "write 30d" in capsys.readouterr().err
    assert command("list", "-o", "json") == exits.OK
    shown = "".join(capsys.readouterr())
    seeds = [path.read_text().strip() for path in (here / "access" / "keys").iterdir()]
    assert seeds and not any(seed in shown for seed in seeds)
    assert command("remove", "shop") == exits.OK and not (here / "access" / "shop.creds").exists()
    command("init", "--dir", "plain")
    assert command("add", "x", "node", "--dir", "plain", "--expires", "1d") != exits.OK
    assert "a password does not expire" in capsys.readouterr().err


@pytest.mark.case(651)
@pytest.mark.parametrize("kind", [(), ("--jwt",)], ids=["passwords", "signed"])
def test_the_lists_of_another_build_are_written_on_demand_and_users_stay(here: Path, kind: tuple[str, ...]) -> None:
    assert command("init", *kind) == command("add", "shop", "caller", "a") == exits.OK
    before = {path.name: path.read_text() for path in (here / "access").iterdir() if path.is_file()}
    (here / "access" / "access.conf").write_text("made by another build")
    assert command("refresh") == exits.OK
    assert {path.name: path.read_text() for path in (here / "access").iterdir() if path.is_file()} == before


@pytest.mark.case(651)
def test_users_are_listed_by_the_names_of_what_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init") == command("add", "shop", "caller", "a") == exits.OK
    assert command("list", "-o", "json") == exits.OK
    shown = {one["name"]: one for one in msgspec.json.decode(capsys.readouterr().out)}
    wanted = {"name": "shop", "role": "caller", "agents": ["a"], "ops": ["status"], "expires": None, "mail": "verified"}
    assert shown["shop"] == wanted
    assert (shown["node"]["mail"], shown["setup"]["mail"]) == ("unverified", "none")
