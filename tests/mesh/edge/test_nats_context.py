"""Contexts of the NATS CLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmesh.edge.login import Login
from agentmesh.edge.nats_context import NatsContext, read_context
from agentmesh.errors import BadRequest

pytestmark = pytest.mark.case(604)


def saved(home: Path, name: str, **fields: object) -> Path:
    """A context as `nats context save` writes it, with what it leaves empty."""
    path = home / ".config" / "nats" / "context" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    empty = {"description": "", "url": "", "socks_proxy": "", "token": "", "user": "", "password": "", "creds": "", "nkey": ""}
    more = {"cert": "", "key": "", "ca": "", "nsc": "", "jetstream_domain": "", "inbox_prefix": "", "tls_first": False}
    path.write_text(json.dumps({**empty, **more, "color_scheme": "", **fields}))
    return path


def test_all_that_a_context_sets_is_taken(tmp_path: Path) -> None:
    path = saved(
        tmp_path, "prod", url="tls://a:1,tls://b:2", creds="~/shop.creds", ca="/etc/ca.pem", cert="c.pem", key="k.pem",
        tls_first=True, inbox_prefix="_INBOX.x", jetstream_domain="hub",
    )  # fmt: skip
    login = Login(
        creds=f"{tmp_path}/shop.creds", tls_ca="/etc/ca.pem", tls_cert="c.pem", tls_key="k.pem", tls_first=True,
        inbox_prefix="_INBOX.x",
    )  # fmt: skip
    expected = NatsContext("tls://a:1,tls://b:2", "hub", login)
    assert read_context("prod", {"HOME": str(tmp_path)}) == expected
    assert read_context(str(path), {"HOME": str(tmp_path)}) == expected
    assert read_context("prod", {"HOME": "/nowhere", "XDG_CONFIG_HOME": f"{tmp_path}/.config"}).url == expected.url
    saved(tmp_path, "plain", url="nats://a:1", user="shop", password="p", jetstream_api_prefix="$JS.hub.API")
    assert read_context("plain", {"HOME": str(tmp_path)}) == NatsContext(
        "nats://a:1", "$JS.hub.API", Login(user="shop", password="p")
    )


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    with pytest.raises(BadRequest, match=r"there is no NATS context 'prod'.*`nats context save` makes one"):
        read_context("prod", home)
    saved(tmp_path, "other", url="nats://a:1")
    with pytest.raises(BadRequest, match=r"there is no NATS context 'prod', .*; there are other$"):
        read_context("prod", home)
    saved(tmp_path, "prod").write_text("{")
    with pytest.raises(BadRequest, match=r"prod\.json cannot be read"):
        read_context("prod", home)
    for field in ("nsc", "socks_proxy", "user_jwt", "user_seed"):
        saved(tmp_path, "prod", **{field: "SECRET"})
        with pytest.raises(BadRequest, match=f"sets '{field}', which the mesh does not support: ") as caught:
            read_context("prod", home)
        assert "SECRET" not in str(caught.value)
