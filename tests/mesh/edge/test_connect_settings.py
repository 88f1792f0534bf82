"""Where a process connects, and as whom: which setting wins."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentmesh.edge.connect_settings import LOGIN_VARIABLES, ConnectSettings, connect_settings
from agentmesh.edge.login import Login
from agentmesh.errors import BadRequest
from mesh.edge.test_nats_context import saved

pytestmark = pytest.mark.case(604)

API = "$JS.API"


def test_every_field_has_a_variable(tmp_path: Path) -> None:
    assert set(LOGIN_VARIABLES) == set(Login.__struct_fields__) - {"url_file"}, "which is the variable of the servers"
    for field in ("creds", "nkey", "token", "tls_ca", "tls_cert", "inbox_prefix"):
        found = connect_settings(environ={LOGIN_VARIABLES[field]: "x"}, directory=tmp_path)
        assert found == ConnectSettings(["nats://127.0.0.1:4222"], API, msgspec.convert({field: "x"}, Login))
    environ = {"MESH_USER": "shop", "MESH_PASSWORD": "p", "MESH_TLS_FIRST": "1", "MESH_TLS_CERT": "c", "MESH_TLS_KEY": "k"}
    login = Login(user="shop", password="p", tls_first=True, tls_cert="c", tls_key="k")
    assert connect_settings(environ=environ, directory=tmp_path).login == login


def test_arguments_then_their_context_then_variables_then_theirs(tmp_path: Path) -> None:
    saved(tmp_path, "prod", url="nats://prod:1", creds="/prod.creds", ca="/prod.pem", jetstream_domain="hub")
    saved(tmp_path, "dev", url="nats://dev:1", nkey="/dev.nk", inbox_prefix="_INBOX.dev", ca="/dev.pem")
    home = {"HOME": str(tmp_path)}
    prod = Login(creds="/prod.creds", tls_ca="/prod.pem")
    environ = {**home, "MESH_NATS_URL": "nats://env:1", "MESH_CREDS": "/env.creds", "MESH_DOMAIN": "env"}

    def found(*given: str, environ: dict[str, str] = environ, **named: str) -> ConnectSettings:
        login = msgspec.convert({name: named.pop(name) for name in list(named) if name in LOGIN_VARIABLES}, Login)
        return connect_settings(*given, environ=environ, directory=tmp_path, login=login, **named)

    assert found(context="prod") == ConnectSettings(["nats://prod:1"], "$JS.hub.API", prod)
    assert found(context="prod", nkey="/mine.nk").login == Login(nkey="/mine.nk", tls_ca="/prod.pem")
    assert found("nats://mine:1", context="prod", domain="x") == ConnectSettings(["nats://mine:1"], "$JS.x.API", prod)
    assert found() == ConnectSettings(["nats://env:1"], "$JS.env.API", Login(creds="/env.creds"))
    assert found(environ={**environ, "MESH_CONTEXT": "dev"}) == ConnectSettings(
        ["nats://env:1"], "$JS.env.API", Login(creds="/env.creds", inbox_prefix="_INBOX.dev", tls_ca="/dev.pem")
    )
    of_dev = Login(nkey="/dev.nk", inbox_prefix="_INBOX.dev", tls_ca="/dev.pem")
    assert found(environ={**home, "MESH_CONTEXT": "dev"}) == ConnectSettings(["nats://dev:1"], API, of_dev)
    assert found(context="prod", environ={**home, "MESH_CONTEXT": "dev"}).login == prod, "two contexts are not mixed"


def test_the_user_of_an_address_counts_where_that_is_connected_to(tmp_path: Path) -> None:
    environ = {"MESH_NATS_URL": "nats://a:b@env:1", "MESH_CREDS": "/env.creds"}
    assert connect_settings(environ=environ, directory=tmp_path).login == Login(creds="/env.creds")
    assert connect_settings("nats://c:d@mine:1", environ=environ, directory=tmp_path).login == Login(), "it says who connects"
    assert connect_settings("nats://mine:1", environ=environ, directory=tmp_path).login == Login(creds="/env.creds")
    assert connect_settings(
        "nats://mine:1", environ={"MESH_NATS_URL": "nats://a:b@env:1"}, directory=tmp_path
    ) == ConnectSettings(["nats://mine:1"], API, Login())


def test_what_is_wrong_is_said_by_its_source(tmp_path: Path) -> None:
    for environ, words in (
        ({"MESH_TLS_FIRST": "perhaps"}, "MESH_TLS_FIRST is 'perhaps'; it is 1 or 0"),
        ({"MESH_CREDS": "a", "MESH_TOKEN": "secret"}, "MESH_CREDS, MESH_TOKEN: creds and token are given"),
        ({"MESH_PASSWORD": "secret"}, "MESH_PASSWORD: a password is given, and no user"),
        ({"MESH_CONTEXT": "none", "HOME": str(tmp_path)}, "MESH_CONTEXT: there is no NATS context 'none'"),
        ({"MESH_NATS_URL": "http://x"}, "MESH_NATS_URL: http://x: use nats"),
        ({"MESH_DOMAIN": "a b"}, "MESH_DOMAIN: "),
    ):
        with pytest.raises(BadRequest, match=words) as caught:
            connect_settings(environ=environ, directory=tmp_path)
        assert "secret" not in str(caught.value)


@pytest.mark.case(657)
def test_the_servers_may_stand_in_a_file_whose_user_counts_only_there(tmp_path: Path) -> None:
    file = tmp_path / "shop.url"
    file.write_text("nats://shop:secret@a:1,nats://shop:secret@b:2\n")
    servers, of_file = ["nats://a:1", "nats://b:2"], Login(url_file=str(file))
    given = f"@{file}"
    assert connect_settings(given, environ={}) == ConnectSettings(servers, API, of_file)
    assert connect_settings(environ={"MESH_NATS_URL": given}) == ConnectSettings(servers, API, of_file)
    assert connect_settings(given, environ={"MESH_CREDS": "/c"}) == ConnectSettings(servers, API, of_file), "it says who connects"
    both = {"MESH_NATS_URL": given, "MESH_CREDS": "/c"}
    assert connect_settings(environ=both) == ConnectSettings(servers, API, Login(creds="/c"))
    assert connect_settings("nats://mine:1", environ=both) == ConnectSettings(["nats://mine:1"], API, Login(creds="/c"))
    assert connect_settings("nats://mine:1", environ={"MESH_NATS_URL": given}) == ConnectSettings(["nats://mine:1"], API, Login())
    file.write_text("nats://a:1")
    assert connect_settings(given, environ={"MESH_CREDS": "/c"}).login == Login(creds="/c"), "it names nobody"
    for text, words in (("secret@", "holds no server's address"), ("", "holds no server's address")):
        file.write_text(text)
        with pytest.raises(BadRequest, match=f"MESH_NATS_URL: .*{words}") as caught:
            connect_settings(environ={"MESH_NATS_URL": given})
        assert "secret" not in str(caught.value)
    with pytest.raises(BadRequest, match="cannot be read: No such file"):
        connect_settings(f"@{tmp_path}/none", environ={})
