"""Users that sign, for tests: nkeys, and credentials files that an operator of ours has signed."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import nkeys


class Key(NamedTuple):
    """A key pair: `seed` signs, `public` names it."""

    seed: str
    public: str

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        return bytes(nkeys.from_seed(bytearray(self.seed.encode())).sign(data))


def new_key(kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
    """A new key of that kind: a user's, an account's or an operator's."""
    seed = str(nkeys.encode_seed(os.urandom(32), kind), "ascii")
    pair = nkeys.from_seed(bytearray(seed.encode()))
    return Key(seed, str(pair.public_key, "ascii"))


class Operator:
    """One that issues credentials for users of one account."""

    def __init__(self) -> None:
        self._operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)

    def config(self) -> str:
        """The lines of a server that believes it."""
        limits = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": True}
        jetstream = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        operator = _token(self._operator, self._operator.public, "op", {"type": "operator", "version": 2})
        nats = {"type": "account", "version": 2, "limits": {**limits, **jetstream}}
        account = _token(self._operator, self._account.public, "mesh", nats)
        system_key = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
        system = _token(self._operator, system_key.public, "sys", {"type": "account", "version": 2, "limits": limits})
        return (
            f"operator: {operator}\nsystem_account: {system_key.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{\n{self._account.public}: {account}\n{system_key.public}: {system}\n}}\n"
        )

    def creds(self, path: Path, name: str, *, expires: float = 0, **permissions: Any) -> Path:
        """A credentials file for a user of that name, good until that time, if one is given."""
        user = new_key()
        nats = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, **permissions}
        jwt = _token(self._account, user.public, name, nats, expires)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return path


def _token(signer: Key, subject: str, name: str, nats: dict[str, Any], expires: float = 0) -> str:
    claims = {
        "jti": os.urandom(8).hex(),
        "iat": int(time.time()),
        "iss": signer.public,
        "name": name,
        "sub": subject,
        "nats": nats,
    }
    if expires:
        claims["exp"] = int(expires)
    head = _encoded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    body = _encoded(json.dumps(claims).encode())
    return f"{head}.{body}.{_encoded(signer.sign(f'{head}.{body}'.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
