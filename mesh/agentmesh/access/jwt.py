"""JWTs of NATS and the keys that sign them: operators, accounts, users. Pure; needs the extra `nkeys`.

Their form is that of the servers' own library (github.com/nats-io/jwt, version 2).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from agentmesh.errors import BadRequest

type KeyKind = Literal["operator", "account", "user"]
type ClaimKind = Literal["operator", "account", "user", "authorization_response"]

_FIRST = {"operator": "O", "account": "A", "user": "U"}
_SEED_BYTES = 32
UNLIMITED = {
    "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": True,
}  # fmt: skip
"""An account without limits; what is left out is 0."""
JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
"""And with JetStream."""


class Key(msgspec.Struct, frozen=True):
    """A key pair."""

    seed: str
    """What signs: a secret."""
    public: str
    """What names it: 56 characters."""

    def __repr__(self) -> str:
        return f"Key({self.public})"


def new_key(kind: KeyKind, random: bytes) -> Key:
    """A key pair from 32 random bytes.

    Raises:
        BadRequest: the extra is not installed.
    """
    nkeys = _nkeys()
    prefixes = {
        "operator": nkeys.PREFIX_BYTE_OPERATOR, "account": nkeys.PREFIX_BYTE_ACCOUNT, "user": nkeys.PREFIX_BYTE_USER
    }  # fmt: skip
    return key_of(str(nkeys.encode_seed(random[:_SEED_BYTES], prefixes[kind]), "ascii"), kind)


def key_of(seed: str, kind: KeyKind) -> Key:
    """The key pair of a seed.

    Raises:
        BadRequest: it is not the seed of such a key; the seed is not in the message.
    """
    try:
        public = str(_nkeys().from_seed(bytearray(seed.encode())).public_key, "ascii")
    except BadRequest:
        raise
    except Exception:  # noqa: BLE001 - it raises errors of many kinds; the seed is in none of ours
        public = ""
    if not public.startswith(_FIRST[kind]):
        raise BadRequest(f"this is not the seed of an {kind}'s key, which begins with S{_FIRST[kind]}")
    return Key(seed, public)


def signed(
    signer: Key,
    subject: str,
    name: str,
    kind: ClaimKind,
    nats: Mapping[str, Any],
    *,
    at: float,
    expires: float = 0,
    audience: str = "",
) -> str:
    """A JWT.

    Args:
        signer: the operator's key for accounts, an account's or a signing key of it for users.
        subject: the public key of what it is about.
        nats: the claims of NATS, without `type` and `version`.
        at: seconds since 1970, now.
        expires: when it ends, likewise; 0 is never.
        audience: whom it is for: of an authorization response a server, of the user in it an account.
    """
    claims: dict[str, Any] = {
        "iat": int(at), "iss": signer.public, "name": name, "sub": subject, "nats": {**nats, "type": kind, "version": 2}
    }  # fmt: skip
    if audience:
        claims["aud"] = audience
    if expires:
        claims["exp"] = int(expires)
    claims["jti"] = base64.b32encode(hashlib.sha256(_json(claims)).digest()).decode().rstrip("=")
    text = f"{_url(_json({'typ': 'JWT', 'alg': 'ed25519-nkey'}))}.{_url(_json(claims))}"
    signature = _nkeys().from_seed(bytearray(signer.seed.encode())).sign(text.encode())
    return f"{text}.{_url(bytes(signature))}"


def credentials(jwt: str, seed: str) -> str:
    """A credentials file: what a user shows to a server, and what it signs with."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _nkeys() -> Any:
    try:
        import nkeys  # noqa: PLC0415 - an extra
    except ImportError:
        raise BadRequest("to sign JWTs the extra `nkeys` is needed: install agentmesh[nkeys]") from None
    return nkeys


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
