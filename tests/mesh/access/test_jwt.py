"""JWTs and keys as the servers' own library makes them."""

from __future__ import annotations

import base64
import json

import nkeys
import pytest

from agentmesh.access.jwt import credentials, key_of, new_key, signed
from agentmesh.edge.login import Credentials, Login
from agentmesh.errors import BadRequest


def decoded(part: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def test_keys_say_what_they_are_of_and_show_no_seed() -> None:
    for kind, first in (("operator", "O"), ("account", "A"), ("user", "U")):
        key = new_key(kind, bytes(range(32)))  # type: ignore[arg-type]
        assert key.public[0] == first and len(key.public) == 56 and key.seed.startswith(f"S{first}")
        assert key_of(key.seed, kind) == key  # type: ignore[arg-type]
        assert key.seed not in repr(key)
    seed = new_key("account", bytes(32)).seed
    for wrong in (seed, "SUnothing", ""):
        with pytest.raises(BadRequest, match="begins with SU") as caught:
            key_of(wrong, "user")
        assert not wrong or wrong not in str(caught.value)


def test_a_jwt_is_signed_and_says_what_it_is_about() -> None:
    account, user = new_key("account", bytes(32)), new_key("user", bytes(range(32)))
    jwt = signed(account, user.public, "shop", "user", {"tags": ["a:b"]}, at=1000.5, expires=2000)
    head, body, signature = jwt.split(".")
    assert decoded(head) == {"typ": "JWT", "alg": "ed25519-nkey"}
    claims = decoded(body)
    assert claims.pop("jti")
    assert claims == {
        "iat": 1000, "exp": 2000, "iss": account.public, "sub": user.public, "name": "shop",
        "nats": {"type": "user", "version": 2, "tags": ["a:b"]},
    }  # fmt: skip
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    assert nkeys.from_seed(bytearray(account.seed.encode())).verify(f"{head}.{body}".encode(), raw)
    assert "exp" not in decoded(signed(account, user.public, "shop", "user", {}, at=1).split(".")[1])


def test_a_credentials_file_is_what_connections_read(tmp_path: object) -> None:
    account, user = new_key("account", bytes(32)), new_key("user", bytes(range(32)))
    path = f"{tmp_path}/shop.creds"
    with open(path, "w") as file:
        file.write(credentials(signed(account, user.public, "shop", "user", {}, at=1), user.seed))
    assert Credentials(Login(creds=path), ["nats://a:1"]).inbox_prefix() == "_INBOX.shop"
