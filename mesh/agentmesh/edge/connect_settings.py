"""Where a process connects, and as whom: arguments first, then the NATS context that they name, then the environment, then the
context that this names, then the project's file, then the defaults (docs/operations.md#connecting).

Each setting is taken from the first of these that has it. Who connects is one setting: credentials, nkey, user, token or the user
in a URL. The user in a URL counts only where that URL is connected to. `@FILE` for the URLs is the file that has them, which is
read again at each reconnect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from agentmesh.edge.address import DOMAIN_VARIABLE, URL_VARIABLE, js_api, naming, server_urls
from agentmesh.edge.login import Login, names_user, urls_of_file, without_users
from agentmesh.edge.nats_context import NatsContext, read_context
from agentmesh.errors import BadRequest

CONTEXT_VARIABLE = "MESH_CONTEXT"
LOGIN_VARIABLES = {
    "creds": "MESH_CREDS",
    "nkey": "MESH_NKEY",
    "user": "MESH_USER",
    "password": "MESH_PASSWORD",
    "token": "MESH_TOKEN",
    "tls_ca": "MESH_TLS_CA",
    "tls_cert": "MESH_TLS_CERT",
    "tls_key": "MESH_TLS_KEY",
    "tls_first": "MESH_TLS_FIRST",
    "inbox_prefix": "MESH_INBOX_PREFIX",
}
"""Variables of the fields of `Login`."""
_WHO = ("creds", "nkey", "user", "password", "token", "url_file")
_TLS = ("tls_cert", "tls_key")
_TRUTH = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_NOTHING = NatsContext("", "", Login())


class ConnectSettings(NamedTuple):
    """What `connection.connect` needs to know."""

    servers: list[str]
    api: str
    """Where the mesh's JetStream answers."""
    login: Login


def connect_settings(
    url: str | Sequence[str] | None = None,
    *,
    context: str | None = None,
    domain: str | None = None,
    login: Login | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> ConnectSettings:
    """What the arguments say, completed by what stands elsewhere.

    Raises:
        BadRequest: something is malformed, or a context cannot be read; says where it stands.
    """
    environ = os.environ if environ is None else environ
    url = ",".join(url) if url is not None and not isinstance(url, str) else url
    given = NatsContext(url or "", domain or "", (login or Login()).checked())
    variables = NatsContext(environ.get(URL_VARIABLE) or "", environ.get(DOMAIN_VARIABLE) or "", _from(environ))
    sources = [given, read_context(context, environ) if context else _NOTHING, variables]
    if not context and environ.get(CONTEXT_VARIABLE):
        with naming(CONTEXT_VARIABLE):
            sources.append(read_context(environ[CONTEXT_VARIABLE], environ))
    urls = next((source for source in sources if source.url.strip(", \t\r\n")), None)
    if urls is not None and urls.url.lstrip().startswith("@"):
        with naming(URL_VARIABLE if urls is variables else ""):
            opened = _of_file(urls)
        sources[sources.index(urls)] = opened
        urls = opened
    there = None if urls is None or urls is variables else urls.url
    api = next((source for source in sources if source.domain), None)
    return ConnectSettings(
        server_urls(there, environ=environ, directory=directory),
        js_api(None if api is None or api is variables else api.domain, environ=environ),
        _merged(sources, urls),
    )


def _of_file(source: NatsContext) -> NatsContext:
    """`source`, whose URLs are `@FILE`, with what that file says."""
    path = source.url.strip()[1:]
    urls = urls_of_file(path)
    login = source.login
    if names_user(urls) and not login.names_somebody:
        login = msgspec.structs.replace(login, url_file=path)
    return source._replace(url=",".join(without_users(urls)), login=login)


def _from(environ: Mapping[str, str]) -> Login:
    found = {name: text for name, variable in LOGIN_VARIABLES.items() if (text := environ.get(variable))}
    first = found.pop("tls_first", "")
    if first.lower() not in _TRUTH:
        raise BadRequest(f"{LOGIN_VARIABLES['tls_first']} is {first!r}; it is 1 or 0")
    try:
        return Login(**found, tls_first=_TRUTH[first.lower()]).checked()
    except BadRequest as error:
        raise BadRequest(f"{', '.join(LOGIN_VARIABLES[name] for name in found)}: {error.message}") from None


def _merged(sources: Sequence[NatsContext], urls: NatsContext | None) -> Login:
    chosen = Login()
    for source in reversed(sources):  # what comes later here stood first
        login = source.login
        if login.names_somebody or (source is urls and _has_user(source.url)):
            chosen = msgspec.structs.replace(chosen, **{name: getattr(login, name) for name in _WHO})
        if login.tls_cert:
            chosen = msgspec.structs.replace(chosen, **{name: getattr(login, name) for name in _TLS})
        rest = {name: value for name in ("tls_ca", "tls_first", "inbox_prefix") if (value := getattr(login, name))}
        chosen = msgspec.structs.replace(chosen, **rest)
    return chosen.checked()


def _has_user(urls: str) -> bool:
    try:
        return any(urlsplit(url if "://" in url else f"nats://{url}").username for url in map(str.strip, urls.split(",")))
    except ValueError:  # it is checked where it is used
        return False
