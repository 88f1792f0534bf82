"""Which server and which mesh: an argument, else the environment, else the project's file, else the default.

The order is the same for programs, for the processes that host agents and for the `mesh` command. Nothing is read at import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from agentmesh.errors import BadRequest
from agentmesh.names import root_token

URL_VARIABLE = "MESH_NATS_URL"
ROOT_VARIABLE = "MESH_ROOT"
URL_FILE = Path(".mesh") / "url"
"""Written by `mesh up` in its working directory, so that commands given there find its server."""
UP_ID = "dev"
"""The id of the node and of the supervisor of `mesh up`."""
UP_SERVER = "mesh-up"
"""What the server of `mesh up` calls itself. It ends with that node."""
DEFAULT_URL = "nats://127.0.0.1:4222"
DEFAULT_ROOT = "mesh"
DOMAIN_VARIABLE = "MESH_DOMAIN"
API = "$JS.API"
"""Where the server answers requests to JetStream, unless a domain says otherwise."""
_NO_PORT = re.compile(r"([^:/\[]*):(?!\d*(?:/|$))")


def server_urls(
    given: str | Sequence[str] | None = None, *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> list[str]:
    """The NATS servers to connect to: `given`, else `MESH_NATS_URL`, else `.mesh/url` in `directory`, else the default.

    Each of them may list several servers, separated by commas. `directory` is the current one by default.

    Raises:
        BadRequest: one of them is no server address; says where it stands, if it is not `given`.
    """
    if given is not None and not isinstance(given, str):
        given = ",".join(given)
    environ = os.environ if environ is None else environ
    file = (directory or Path()) / URL_FILE
    for source, text in (("", given), (URL_VARIABLE, environ.get(URL_VARIABLE)), (str(file), _text_of(file))):
        if text and text.strip(", \t\r\n"):
            with naming(source):
                return checked_urls(text)
    return [DEFAULT_URL]


def mesh_root(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> str:
    """The mesh's root token: `given`, else `MESH_ROOT`, else `mesh`.

    Raises:
        BadRequest: it cannot be a root; names the variable, if it stands there.
    """
    environ = os.environ if environ is None else environ
    if given:
        return root_token(given)
    with naming(ROOT_VARIABLE):
        return root_token(environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def js_api(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> str:
    """Where the mesh's JetStream answers: for the domain `given`, else that in `MESH_DOMAIN`, else the server's own. What has a
    dot is no domain, but the prefix itself.

    Raises:
        BadRequest: it can be neither.
    """
    environ = os.environ if environ is None else environ
    text = given or environ.get(DOMAIN_VARIABLE)
    if not text:
        return API
    with naming("" if given else DOMAIN_VARIABLE):
        tokens = text.split(".")
        if not all(tokens) or not text.isascii() or not text.isprintable() or set(text) & set(" *>"):
            raise BadRequest(f"{text!r} is no JetStream domain, as `hub`, and no prefix of its API, as `$JS.hub.API`")
    return text if len(tokens) > 1 else f"$JS.{text}.API"


def checked_urls(servers: str | Sequence[str]) -> list[str]:
    """The servers' URLs, listed or separated by commas.

    Raises:
        BadRequest: there is none, or one is no server address.
    """
    listed = servers.split(",") if isinstance(servers, str) else servers
    urls = [url.strip() for url in listed if url.strip()]
    if not urls:
        raise BadRequest("no server address given; for example nats://127.0.0.1:4222")
    for url in urls:
        scheme, separator, _ = url.partition("://")
        if separator and scheme not in ("nats", "tls"):
            raise BadRequest(f"{without_credentials(url)}: use nats:// or tls://")
        try:
            parts = urlsplit(url if separator else f"nats://{url}")
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise BadRequest(f"{without_credentials(url)} is no server address; for example nats://127.0.0.1:4222")
    return urls


def without_credentials(url: str) -> str:
    """`url` as it may be shown, whatever its scheme: without user and password, also where it is malformed."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    shown = rest.rpartition("@")[2]
    # Where the host is missing, or a comma in a password has cut the URL in two, what looks like a port is a secret.
    found = _NO_PORT.match(shown)
    return f"{scheme}{separator}{found[1]}:***" if found else scheme + separator + shown


def shown_urls(urls: Iterable[str]) -> str:
    """Several of them, joined by commas, as they may be shown."""
    return ",".join(without_credentials(url) for url in urls)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Have a `BadRequest` say where it stands: in `source`, if that is not empty."""
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"{source}: {error.message}" if source else error.message) from None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
