"""Where a process looks for its server."""

from pathlib import Path

import pytest

from agentmesh.edge.address import checked_urls, js_api, mesh_root, server_urls, shown_urls, without_credentials
from agentmesh.errors import BadRequest


def test_argument_then_environment_then_file_then_default(tmp_path: Path) -> None:
    environ = {"MESH_NATS_URL": "nats://env:1, nats://env:2"}
    assert server_urls(environ={}, directory=tmp_path) == ["nats://127.0.0.1:4222"]
    (tmp_path / ".mesh").mkdir()
    (tmp_path / ".mesh" / "url").write_text("nats://file:1\n")
    assert server_urls(environ={}, directory=tmp_path) == ["nats://file:1"]
    assert server_urls(environ=environ, directory=tmp_path) == ["nats://env:1", "nats://env:2"]
    assert server_urls("nats://a:1,nats://b:2", environ=environ, directory=tmp_path) == ["nats://a:1", "nats://b:2"]
    assert server_urls(["nats://a:1", "nats://b:2"], environ=environ, directory=tmp_path) == ["nats://a:1", "nats://b:2"]


@pytest.mark.parametrize("given", ["", " , ", []])
def test_an_empty_argument_counts_as_none(given: str | list[str], tmp_path: Path) -> None:
    assert server_urls(given, environ={"MESH_NATS_URL": "nats://env:1"}, directory=tmp_path) == ["nats://env:1"]


def test_root() -> None:
    assert mesh_root(environ={}) == "mesh"
    assert mesh_root(environ={"MESH_ROOT": "other"}) == "other"
    assert mesh_root("mine", environ={"MESH_ROOT": "other"}) == "mine"


def test_what_cannot_be_used_is_refused_by_the_name_of_its_source(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"bad_request: MESH_ROOT: .No Root. cannot be a mesh's root"):
        mesh_root(environ={"MESH_ROOT": "No Root"})
    with pytest.raises(BadRequest, match=r"bad_request: MESH_NATS_URL: http://x: use nats"):
        server_urls(environ={"MESH_NATS_URL": "http://me:secret@x"}, directory=tmp_path)
    with pytest.raises(BadRequest, match=r"bad_request: http://x: use nats"):
        server_urls("http://x", environ={}, directory=tmp_path)
    (tmp_path / ".mesh").mkdir()
    (tmp_path / ".mesh" / "url").write_text("http://x\n")
    with pytest.raises(BadRequest, match="url: http://x: use nats"):
        server_urls(environ={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("given", "set_to", "prefix"),
    [
        (None, "", "$JS.API"),
        (None, "hub", "$JS.hub.API"),
        ("hub", "other", "$JS.hub.API"),
        ("$JS.hub.API", "", "$JS.hub.API"),
        ("from.elsewhere", "", "from.elsewhere"),
    ],
)
def test_a_domain_says_where_the_api_is(given: str | None, set_to: str, prefix: str) -> None:
    assert js_api(given, environ={"MESH_DOMAIN": set_to}) == prefix


@pytest.mark.parametrize("wrong", ["a b", "a.", ".", "a.>", "*", "d\u00fc"])
def test_what_is_no_domain_is_refused_and_its_variable_named(wrong: str) -> None:
    with pytest.raises(BadRequest, match="is no JetStream domain"):
        js_api(wrong, environ={})
    with pytest.raises(BadRequest, match=r"^bad_request: MESH_DOMAIN: "):
        js_api(environ={"MESH_DOMAIN": wrong})


@pytest.mark.case(300)
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://me:secret@host:4222", "nats://host:4222"),
        ("me:secret@host", "host"),
        ("nats://secret@host:4222", "nats://host:4222"),
        ("nats://host:4222", "nats://host:4222"),
        ("host", "host"),
        ("tls://[::1]:4222", "tls://[::1]:4222"),
        ("http://me:secret@host:8222/varz", "http://host:8222/varz"),
        ("nats://me:secret", "nats://me:***"),
        ("nats://me:sec:ret://@host", "nats://host"),
        ("nats://me:secret/word@host", "nats://host"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert "secret" not in shown_urls([url, url])


@pytest.mark.case(300)
@pytest.mark.parametrize("url", ["nats://me:secret", "nats://me:sec,secret@host:1", "nats://me:secret/w@h", "ws://me:secret@h"])
def test_what_is_said_of_a_malformed_address_has_no_secret(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked_urls(url)
    assert "sec" not in str(caught.value)
