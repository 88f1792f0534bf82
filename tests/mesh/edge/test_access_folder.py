"""The folder of a mesh's users: what its files hold, and that each is whole."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest

from agentmesh.edge import access_folder
from agentmesh.edge.access_folder import AccessFolder, changing, create, open_folder
from agentmesh.errors import BadRequest, NotFound, Unavailable


@pytest.fixture
def folder(tmp_path: Path) -> AccessFolder:
    return create(tmp_path / "access", root="mesh", servers="nats://a:4222,tls://b:4222")


def password(folder: AccessFolder, name: str) -> str:
    found = re.fullmatch(rf"nats://{name}:([\w-]{{32}})@a:4222,tls://{name}:\1@b:4222", folder.url(name))
    assert found is not None, "an address needs no escapes, and each server is in it"
    return found[1]


def hashed(folder: AccessFolder, name: str) -> bytes:
    return next(user.hashed for user in folder.users if user.name == name).encode()


def test_there_is_a_user_for_each_role_inside_and_no_file_shows_its_password_to_others(folder: AccessFolder) -> None:
    assert [user.name for user in folder.users] == ["node", "observer", "operator", "setup", "supervisor"]
    for path in folder.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    secret = password(folder, "node")
    assert bcrypt.checkpw(secret.encode(), hashed(folder, "node"))
    assert hashed(folder, "node").startswith(b"$2a$05$"), "a connection can afford it"
    assert secret not in (folder.path / "users.json").read_text() + folder.conf.read_text()


def test_a_user_that_is_added_again_keeps_its_password_and_gets_other_lists(folder: AccessFolder) -> None:
    assert folder.add("shop", "caller", ("team-a.",))
    before = password(folder, "shop")
    assert not folder.add("shop", "caller", ("team-a.",))
    assert folder.add("shop", "caller", ("team-a.", "clerk"), ("status", "cancel"))
    assert password(folder, "shop") == before
    assert '"mesh.ask.clerk"' in folder.conf.read_text()


def test_another_process_goes_on_with_the_folder(folder: AccessFolder) -> None:
    folder.add("shop", "caller", ("team-a.",))
    again = open_folder(folder.path)
    assert again.kept == folder.kept
    again.remove("shop")
    assert not again.url_file("shop").exists()
    assert '"shop"' not in again.conf.read_text()


def test_a_rotated_password_is_another_one(folder: AccessFolder) -> None:
    before, text = password(folder, "node"), folder.conf.read_text()
    folder.rotate("node")
    after = password(folder, "node")
    assert after != before
    assert bcrypt.checkpw(after.encode(), hashed(folder, "node"))
    assert folder.conf.read_text() != text


@pytest.mark.parametrize(
    ("name", "role", "agents", "ops"),
    [
        ("shop", "chief", (), ()),
        ("shop", "caller", (), ()),
        ("shop", "caller", ("team-a.>",), ()),
        ("shop", "caller", ("a",), ("fly",)),
        ("shop", "caller", ("a",), ("open",)),
        ("shop", "node", ("a",), ()),
        ("node", "caller", ("a",), ()),
        ("_shop", "caller", ("a",), ()),
        ("sh.op", "caller", ("a",), ()),
        ("", "caller", ("a",), ()),
    ],
)
def test_what_is_wrong_changes_nothing(
    folder: AccessFolder, name: str, role: str, agents: tuple[str, ...], ops: tuple[str, ...]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(BadRequest):
        folder.add(name, role, agents, ops)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_what_is_not_there_is_said(folder: AccessFolder, tmp_path: Path) -> None:
    for change in (folder.remove, folder.rotate):
        with pytest.raises(NotFound, match="no user 'nobody'"):
            change("nobody")
    with pytest.raises(NotFound, match="mesh access init"):
        open_folder(tmp_path)
    with pytest.raises(BadRequest, match="has users already"):
        create(folder.path, root="mesh", servers="nats://a:4222")
    (folder.path / "users.json").write_text("{}")
    with pytest.raises(BadRequest, match="none that `mesh access` has written"):
        open_folder(folder.path)


@pytest.mark.parametrize("servers", ["nats://u:p@a:4222", "ws://a:4222", "nats://", ""])
def test_only_addresses_without_users_are_taken(tmp_path: Path, servers: str) -> None:
    with pytest.raises(BadRequest):
        create(tmp_path / "access", root="mesh", servers=servers)
    assert not (tmp_path / "access").exists()


def test_a_file_that_cannot_be_written_is_said_and_leaves_the_old_one(folder: AccessFolder) -> None:
    (folder.path / "shop.url").mkdir()
    before = folder.conf.read_text()
    with pytest.raises(Unavailable, match="cannot be written"):
        folder.add("shop", "caller", ("a",))
    assert folder.conf.read_text() == before
    assert sorted(path.name for path in folder.path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.case(651)
@pytest.mark.parametrize("verb", ["add", "remove", "rotate"])
def test_a_change_that_is_cut_off_is_mended_by_giving_it_once_more(
    folder: AccessFolder, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if verb != "add":
        folder.add("shop", "caller", ("a",))
    change: Callable[[AccessFolder], object] = {
        "add": lambda on: on.add("shop", "caller", ("a",)),
        "remove": lambda on: on.remove("shop"),
        "rotate": lambda on: on.rotate("shop"),
    }[verb]
    whole = access_folder.write_whole
    for cut_off_at in ("shop.url", "access.conf", "users.json"):

        def dies(path: Path, text: str, at: str = cut_off_at) -> None:
            if path.name == at:
                raise Unavailable("cut off")
            whole(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(access_folder, "write_whole", dies)
            with contextlib.suppress(Unavailable):
                change(open_folder(folder.path))
        if verb == "remove" and cut_off_at == "shop.url":
            return  # it writes none
        change(open_folder(folder.path))
        after = open_folder(folder.path)
        assert ('"shop"' in after.conf.read_text()) == (verb != "remove")
        if verb == "remove":
            assert not after.url_file("shop").exists()
            after.add("shop", "caller", ("a",))
        else:
            assert bcrypt.checkpw(password(after, "shop").encode(), hashed(after, "shop"))
            assert hashed(after, "shop").decode() in after.conf.read_text()
        if verb == "add":
            after.remove("shop")


@pytest.mark.case(651)
def test_two_changes_at_the_same_time_do_not_lose_one_of_them(folder: AccessFolder) -> None:
    with changing(folder.path), pytest.raises(Unavailable, match="give the command again"), changing(folder.path):
        pass
    with changing(folder.path):
        open_folder(folder.path).add("shop", "caller", ("a",))
    with changing(folder.path / "none"), pytest.raises(NotFound):
        open_folder(folder.path / "none")


@pytest.mark.case(651)
@pytest.mark.parametrize("threshold", ["", "24", "1d", "h", "24 h", "24h }", "9m59s", "-1h", "1h\n"])
def test_a_threshold_that_the_server_does_not_take_or_that_loses_answers_is_refused(tmp_path: Path, threshold: str) -> None:
    with pytest.raises(BadRequest, match="threshold"):
        create(tmp_path / "access", root="mesh", servers="nats://a:4222", threshold=threshold)
    assert not (tmp_path / "access").exists()


@pytest.mark.case(651)
def test_a_root_whose_account_would_be_the_servers_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="choose another root"):
        create(tmp_path / "access", root="sys", servers="nats://a:4222")
