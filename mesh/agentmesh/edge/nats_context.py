"""Contexts of the NATS CLI (`nats context`): files that name servers, and who connects to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentmesh.edge.login import Login
from agentmesh.errors import BadRequest


class NatsContext(NamedTuple):
    """What a context sets; "" is not set."""

    url: str
    domain: str
    """A JetStream domain, or the prefix of its API, as `address.js_api` takes it."""
    login: Login


class _Stored(msgspec.Struct):
    url: str = ""
    token: str = ""
    user: str = ""
    password: str = ""
    creds: str = ""
    nkey: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    tls_first: bool = False
    jetstream_domain: str = ""
    jetstream_api_prefix: str = ""
    inbox_prefix: str = ""
    nsc: str = ""
    socks_proxy: str = ""
    user_jwt: str = ""
    user_seed: str = ""


_NOT_SUPPORTED = {
    "nsc": "save the credentials to a file, and name that (`creds`)",
    "user_jwt": "save the credentials to a file, and name that (`creds`)",
    "user_seed": "save the seed to a file, and name that (`nkey`)",
    "socks_proxy": "connect without a proxy",
}


def read_context(name: str, environ: Mapping[str, str] | None = None) -> NatsContext:
    """The context of that name, or in the file of that path, which has a `/`. Paths in it are as they stand, `~` is the home.

    Raises:
        BadRequest: there is none, it cannot be read, or it sets what is not supported.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".config") / "nats" / "context"
    path = Path(name).expanduser() if "/" in name else home / f"{name}.json"
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except FileNotFoundError:
        others = sorted(found.stem for found in home.glob("*.json"))
        there = f"there are {', '.join(others)}" if others else "`nats context save` makes one"
        raise BadRequest(f"there is no NATS context {name!r}, which would be {path}; {there}") from None
    except OSError as error:
        raise BadRequest(f"the NATS context {path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BadRequest(f"the NATS context {path} cannot be read: {error}") from None
    for field, instead in _NOT_SUPPORTED.items():
        if getattr(stored, field):
            raise BadRequest(f"the NATS context {path} sets {field!r}, which the mesh does not support: {instead}")
    login = Login(
        creds=_at_home(stored.creds, environ),
        nkey=_at_home(stored.nkey, environ),
        user=stored.user,
        password=stored.password,
        token=stored.token,
        tls_ca=_at_home(stored.ca, environ),
        tls_cert=_at_home(stored.cert, environ),
        tls_key=_at_home(stored.key, environ),
        tls_first=stored.tls_first,
        inbox_prefix=stored.inbox_prefix,
    )
    return NatsContext(stored.url, stored.jetstream_api_prefix or stored.jetstream_domain, login)


def _at_home(path: str, environ: Mapping[str, str]) -> str:
    home = environ.get("HOME")
    return f"{home}{path[1:]}" if home and path.startswith("~/") else path
