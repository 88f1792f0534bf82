"""Who connects, and whom it believes: by all that NATS offers, and what is wrong with it is said at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.edge.connect_settings import connect_settings
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.login import Credentials, Login
from agentmesh.errors import BadRequest, MeshError, NotPermitted, TlsFailed, Unavailable
from certificates import Authority
from keys import Operator, new_key
from support import Server, eventually, run

pytestmark = pytest.mark.processes

USER = new_key()
PASSWORD = "p@s/s:w%rd, #1"
"""What a URL cannot hold as it is."""
ESCAPED = "p%40s%2Fs%3Aw%25rd%2C%20%231"
USERS = f"""authorization {{ users: [
  {{ user: "shop", password: {PASSWORD!r}, permissions: {{ subscribe: {{ allow: ["_INBOX.shop.>"] }} }} }}
  {{ nkey: {USER.public}, permissions: {{ subscribe: {{ allow: ["_INBOX.{USER.public}.>"] }} }} }}
  {{ user: "odd", password: "p", permissions: {{ subscribe: {{ allow: ["answers.odd.>"] }} }} }}
] }}""".replace("'", '"')


@pytest.fixture(scope="module")
def users() -> Iterator[Server]:
    with Server(config=USERS) as server:
        yield server


async def hears(url: str, login: Login) -> tuple[str, str]:
    """Connect, ask the server something, and hear the answer. Returns where it was heard, and who asked."""
    t = await connect(url, name="test", login=login)
    try:
        reply = await t.request("$JS.API.INFO", timeout=5)
        assert reply.data.startswith(b"{"), reply
        return reply.subject, t._client.user
    finally:
        await t.close()


@pytest.mark.case(600)
@pytest.mark.case(602)
def test_a_user_connects_by_url_by_password_and_by_nkey_and_hears_only_its_own(users: Server, tmp_path: Path) -> None:
    seed = tmp_path / "user.nk"
    seed.write_text(f"{USER.seed}\n")

    async def main() -> None:
        at = users.url.removeprefix("nats://")
        for url, login, prefix, who in (
            (f"nats://shop:{ESCAPED}@{at}", Login(), "_INBOX.shop.", "user 'shop'"),
            (users.url, Login(user="shop", password=PASSWORD), "_INBOX.shop.", "user 'shop'"),
            (f"nats://odd:wrong@{at}", Login(user="shop", password=PASSWORD), "_INBOX.shop.", "user 'shop'"),
            (users.url, Login(nkey=str(seed)), f"_INBOX.{USER.public}.", f"user {USER.public!r} ({seed})"),
            (f"nats://odd:p@{at}", Login(inbox_prefix="answers.odd"), "answers.odd.", "user 'odd'"),
        ):
            heard, said = await hears(url, login)
            assert heard.startswith(prefix), (heard, login)
            assert said == who
        with pytest.raises(NotPermitted, match=r"user 'odd' to subscribe to _INBOX\.odd\."):
            await hears(f"nats://odd:p@{at}", Login())

    run(main())


@pytest.mark.case(600)
def test_a_token_connects(tmp_path: Path) -> None:
    with Server(config='authorization { token: "a%20b" }') as server:

        async def main() -> None:
            for url, login in (
                (server.url, Login(token="a%20b")),
                (server.url.replace("//", "//a%2520b@"), Login()),
            ):
                heard, who = await hears(url, login)
                assert heard.startswith("_INBOX.") and len(heard.split(".")) == 3
                assert "a%20b" not in who
            with pytest.raises(NotPermitted, match="the bearer of this token") as caught:
                await hears(server.url, Login(token="other"))
            assert "other" not in str(caught.value) and "other" not in repr(Login(token="other"))

        run(main())


@pytest.mark.case(600)
@pytest.mark.case(602)
@pytest.mark.case(603)
def test_credentials_files_connect_and_are_read_again_when_they_are_rotated(tmp_path: Path) -> None:
    operator, stranger = Operator(), Operator()
    with Server(config=operator.config()) as server:

        async def main() -> None:
            allow: dict[str, Any] = {"sub": {"allow": ["_INBOX.shop.>"]}}
            creds = operator.creds(tmp_path / "shop.creds", "shop", **allow)
            heard, who = await hears(server.url, Login(creds=str(creds)))
            assert heard.startswith("_INBOX.shop.") and who == f"user 'shop' ({creds})"

            for path, words in (
                (stranger.creds(tmp_path / "s.creds", "shop"), r"refuses the credentials of user 'shop' \(.*s\.creds\); put"),
                (
                    operator.creds(tmp_path / "old.creds", "shop", expires=time.time() - 60),
                    r"refuses the credentials of user 'shop' \(.*old\.creds, which expired at 20",
                ),
            ):
                with pytest.raises(NotPermitted, match=words):
                    await hears(server.url, Login(creds=str(path)))

            t = await connect(server.url, name="test", login=Login(creds=str(creds)))
            try:
                before = t._client._credentials.jwt()
                operator.creds(creds, "shop", **allow)
                server.restart()
                await eventually(lambda: t.connected and t._client._credentials.jwt() != before, what="the new credentials")
                assert (await t.request("$JS.API.INFO", timeout=5)).data
                creds.unlink()  # what cannot be read any more stays as it was
                server.restart()
                await eventually(lambda: not t.connected)
                await eventually(lambda: t.connected)
            finally:
                await t.close()

        run(main())


@pytest.mark.case(657)
def test_a_file_of_addresses_is_read_again_when_its_password_is_rotated(tmp_path: Path) -> None:
    def config(password: str) -> str:
        return f'authorization {{ users: [ {{ user: "shop", password: "{password}" }} ] }}'

    file = tmp_path / "shop.url"
    with Server(config=config("first")) as server:
        address = server.url.replace("//", "//shop:{}@")

        async def main() -> None:
            file.write_text(address.format("first"))
            servers, _, login = connect_settings(f"@{file}", environ={})
            assert servers == [server.url]
            t = await connect(servers, name="test", login=login)
            try:
                assert t.new_inbox().startswith("_INBOX.shop.")
                before = t._client._server_info["client_id"]
                file.write_text(address.format("second"))
                server.reload(config("second"))
                await eventually(lambda: "Reloaded server configuration" in server.log, what="the reload")
                await eventually(lambda: t.connected and t._client._server_info["client_id"] != before, what="a new connection")
                assert (await t.request("$JS.API.INFO", timeout=5)).data
            finally:
                await t.close()

        run(main())


@pytest.mark.case(601)
@pytest.mark.parametrize("first", [False, True], ids=["after", "first"])
def test_private_authorities_client_certificates_and_tls_first(tmp_path: Path, first: bool) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    more = f'ca_file: "{authority.path}"\nverify_and_map: true\n{"handshake_first: true" if first else ""}'
    users = 'authorization { users: [ { user: "CN=app" } ] }'
    cert, key = map(str, authority.certificate("app"))
    strange_cert, strange_key = map(str, other.certificate("stranger"))
    ca = str(authority.path)
    with Server(config=f"{authority.server(more=more)}\n{users}") as server:

        async def main() -> None:
            good = Login(tls_ca=ca, tls_cert=cert, tls_key=key, tls_first=first)
            for url in (server.url, server.url.replace("nats:", "tls:")):
                _, who = await hears(url, good)
                assert who == f"the bearer of the certificate {cert}"
            for login, words in (
                (Login(tls_ca=str(other.path), tls_cert=cert, tls_key=key, tls_first=first), r"is not trusted .*\(--tls-ca"),
                (Login(tls_ca=ca, tls_first=first), r"asks for a client's certificate: name one \(--tls-cert"),
                (Login(tls_ca=ca, tls_cert=strange_cert, tls_key=strange_key, tls_first=first), "client's certificate"),
            ):
                with pytest.raises(TlsFailed, match=words):
                    await hears(server.url, login)
            if first:
                with pytest.raises(Unavailable, match="--tls-first"):
                    await connect(server.url, name="test", login=Login(tls_ca=ca, tls_cert=cert, tls_key=key), connect_timeout=3)
            else:
                with pytest.raises(TlsFailed, match="leave out --tls-first"):
                    await hears(server.url, Login(tls_ca=ca, tls_cert=cert, tls_key=key, tls_first=True))

        run(main())


@pytest.mark.case(601)
def test_who_names_an_authority_sends_nothing_without_tls(users: Server, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(TlsFailed, match="offers no TLS"):
            await hears(users.url, Login(tls_ca=str(Authority(tmp_path).path), user="shop", password=PASSWORD))

    run(main())


@pytest.mark.case(602)
def test_a_server_that_others_have_named_gets_the_user_too() -> None:
    credentials = Credentials(Login(), ["nats://a:1", "nats://shop:p%40@b:2"])
    assert credentials.plain(_Url(None, None)) == ("shop", "p@", None)
    assert credentials.plain(_Url("own", "x")) == ("own", "x", None)
    assert credentials.inbox_prefix() == "_INBOX.shop"


class _Url:
    def __init__(self, username: str | None, password: str | None) -> None:
        self.username, self.password = username, password


@pytest.mark.case(602)
@pytest.mark.parametrize(
    ("login", "prefix"),
    [
        (Login(), "_INBOX"),
        (Login(user="a b", password="p"), "_INBOX"),
        (Login(user="a*", password="p"), "_INBOX"),
        (Login(user="a.", password="p"), "_INBOX"),
        (Login(user="team.shop", password="p"), "_INBOX.team.shop"),
        (Login(token="secret"), "_INBOX"),
        (Login(user="shop", password="p", inbox_prefix="private.x"), "private.x"),
    ],
)
def test_where_answers_are_heard(login: Login, prefix: str) -> None:
    assert Credentials(login, ["nats://a:1"]).inbox_prefix() == prefix


@pytest.mark.case(603)
def test_what_is_wrong_with_a_file_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    operator, authority = Operator(), Authority(tmp_path)
    good = operator.creds(tmp_path / "good.creds", "shop").read_text()
    cert, key = authority.certificate("app")
    files = {
        "no-seed": good.partition("-----BEGIN USER")[0],
        "no-jwt": good[good.index("-----BEGIN USER") :],
        "other-seed": good.partition("-----BEGIN USER")[0] + f"-----BEGIN USER NKEY SEED-----\n{new_key().seed}\n---\n",
        "no-claims": "-----BEGIN NATS USER JWT-----\nxx\n---\n" + good[good.index("-----BEGIN USER") :],
        "garbage": "nothing\n",
        "account": new_key(0).seed,
        "binary": "\u00e9",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    at = {name: str(tmp_path / name) for name in files}
    gone = str(tmp_path / "gone")
    wrong: list[tuple[Login, str]] = [
        (Login(creds=gone), "the credentials file .*gone cannot be read: No such file"),
        (Login(creds=at["no-seed"]), "no-seed is no credentials file: it lacks a user's seed"),
        (Login(creds=at["no-jwt"]), "no-jwt is no credentials file: it lacks a user's JWT"),
        (Login(creds=at["other-seed"]), "are not of one user"),
        (Login(creds=at["no-claims"]), "the JWT in .*no-claims cannot be read"),
        (Login(creds=at["binary"]), "binary is no credentials file"),
        (Login(nkey=gone), "the nkey file .*gone cannot be read"),
        (Login(nkey=at["garbage"]), "garbage holds no nkey's seed"),
        (Login(nkey=at["account"]), "account is not a user's"),
        (Login(tls_ca=gone), "gone holds no certificates of authorities in PEM"),
        (Login(tls_ca=at["garbage"]), "garbage holds no certificates of authorities in PEM"),
        (Login(tls_cert=gone, tls_key=str(key)), "the client certificate .*gone cannot be read"),
        (Login(tls_cert=str(cert), tls_key=gone), "the key of the client certificate .*gone cannot be read"),
        (Login(tls_cert=str(cert), tls_key=str(authority.certificate("another")[1])), "are no certificate and its"),
        (Login(tls_cert=str(cert)), "the key in it are no certificate and its unencrypted key"),
        (Login(tls_key=str(key)), "and no certificate"),
        (Login(creds=gone, nkey=gone), "creds and nkey are given"),
        (Login(user="a", password="b", token="c"), "user and token are given"),
        (Login(password="secret"), "and no user"),
        (Login(inbox_prefix="a.*"), "is no prefix of subjects"),
    ]
    for login, words in wrong:
        with pytest.raises(BadRequest, match=words) as caught:
            Credentials(login, ["nats://a:1"])
        assert "secret" not in str(caught.value) and "SU" + new_key().seed[2:4] not in str(caught.value)

    async def main() -> None:
        with pytest.raises(MeshError, match="cannot be read"):
            await connect("nats://127.0.0.1:1", name="test", login=Login(creds=gone))

    run(main())


@pytest.mark.case(603)
def test_no_secret_is_in_what_a_login_shows() -> None:
    shown = repr(Login(user="shop", password="secret1", tls_ca="ca.pem")) + repr(Login(token="secret2"))
    assert "secret" not in shown and "ca.pem" in shown and "shop" in shown


def test_a_connection_without_a_login_is_as_before() -> None:
    async def main() -> None:
        assert NatsTransport(["nats://a:1"], "test").new_inbox().startswith("_INBOX.")

    run(main())
