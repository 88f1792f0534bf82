"""The folder of signed users: what a server and users read of it, and what it shows of secrets."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.access.roles import INSIDE
from agentmesh.access.signed_conf import key_names
from agentmesh.edge.access_folder import create, open_folder
from agentmesh.edge.connection import connect
from agentmesh.edge.login import Login
from agentmesh.edge.signed_folder import SignedFolder, create_signed, open_signed
from agentmesh.errors import BadRequest, NotFound, NotPermitted
from support import Server, eventually, run

pytestmark = pytest.mark.case(655)


@pytest.fixture
def folder(tmp_path: Path) -> SignedFolder:
    return create_signed(tmp_path / "access", root="mesh")


def claims(folder: SignedFolder, name: str) -> dict[str, Any]:
    body = folder.creds(name).read_text().splitlines()[1].split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def test_seeds_stand_in_files_of_their_own_that_only_their_owner_reads(folder: SignedFolder) -> None:
    seeds = {path.stem: path for path in (folder.path / "keys").iterdir()}
    assert set(seeds) == set(key_names())
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder.path, folder.path / "keys")} == {0o700}
    shared = folder.conf.read_text() + (folder.path / "signed.json").read_text()
    assert not any(path.read_text().strip() in shared for path in seeds.values())
    assert [user.name for user in folder.users] == sorted(INSIDE)


def test_users_are_found_again_and_a_change_is_a_new_key_whose_former_one_is_revoked(folder: SignedFolder) -> None:
    conf = folder.conf.read_text()
    assert folder.add("shop", "caller", ["team-a."], ["status"], lasts_s=86_400)
    assert folder.conf.read_text() == conf, "servers learn of no new user"
    first = claims(folder, "shop")
    assert 0 <= first["exp"] - first["iat"] - 86_400 <= 1
    again = open_signed(folder.path)
    assert again.users == folder.users and not again.add("shop", "caller", ["team-a."], ["status"], lasts_s=86_400)
    again.rotate("shop")
    assert claims(again, "shop")["sub"] != first["sub"] and claims(again, "shop")["exp"] - claims(again, "shop")["iat"] >= 86_400
    assert [one.public for one in again.kept.revoked] == [first["sub"]]
    assert again.add("shop", "caller", ["team-a.", "clerk"], ["status", "cancel"])
    assert claims(again, "shop")["nats"]["tags"] == [
        "agents:team-a.>", "agents:clerk", "exact:clerk", "may:control-status", "may:control-cancel"
    ]  # fmt: skip
    again.remove("shop")
    assert len(again.kept.revoked) == 3 and not again.creds("shop").exists()
    with pytest.raises(NotFound, match="mesh access list"):
        again.remove("shop")
    for name, role, agents, words in (
        ("node", "caller", ["a"], "has|is a user with the role node"),
        ("x", "chief", [], "there is no role"),
        ("x", "caller", [], "needs agents"),
        ("a b", "node", [], "user"),
    ):
        with pytest.raises(BadRequest, match=words):
            again.add(name, role, agents)


def test_one_folder_holds_one_kind_of_users(folder: SignedFolder, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has users already"):
        create(folder.path, root="mesh", servers="nats://a:4222")
    create(tmp_path / "plain", root="mesh", servers="nats://a:4222")
    with pytest.raises(BadRequest, match="has users already"):
        create_signed(tmp_path / "plain", root="mesh")
    assert open_folder(tmp_path / "plain").users
    (folder.path / "keys" / "role-caller.nk").unlink()
    with pytest.raises(BadRequest, match="put it back"):
        open_signed(folder.path)


@pytest.mark.processes
def test_a_rotated_user_that_is_connected_comes_back_with_its_new_file(folder: SignedFolder) -> None:
    folder.add("shop", "caller", ["a"])

    async def main(server: Server) -> None:
        login = Login(creds=str(folder.creds("shop")))
        t = await connect(server.url, name="shop", login=login)
        try:
            client = t._client._server_info["client_id"]
            folder.rotate("shop")
            server.reload(folder.conf.read_text())
            await eventually(lambda: t.connected and t._client._server_info["client_id"] != client, what="its new connection")
            folder.remove("shop")
            server.reload(folder.conf.read_text())
            await eventually(lambda: not t.connected, what="the end of its connection")
            folder.add("shop", "caller", ["a"])
            await eventually(lambda: t.connected, what="its connection by what it is given now")
        finally:
            await t.close()
        with pytest.raises(NotPermitted):
            await connect(server.url, name="nobody")

    with Server(config=folder.conf.read_text()) as server:
        run(main(server))
