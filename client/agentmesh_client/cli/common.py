"""Shared by the verbs: global options, the connection, reading of arguments."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from agentmesh_client import Mesh

_GLOBAL = Group("Global options", sort_key=99)

AgentName = Annotated[str, Parameter(help="The agent's name.")]
TextArgument = Annotated[str, Parameter(help="The text; `-` reads it from stdin.", allow_leading_hyphen=True)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Pairs = Annotated[list[str] | None, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """Options that every verb takes."""

    nats: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """NATS servers, separated by commas, or @FILE with them; else MESH_NATS_URL, else .mesh/url, else 127.0.0.1:4222."""
    root: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """The mesh's root token; else MESH_ROOT, else "mesh"."""
    domain: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """JetStream domain of the mesh, if its server is behind a leaf node; else MESH_DOMAIN, else the server's own."""
    context: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """Context of the NATS CLI that says where to connect, and as whom; a name, or a path; else MESH_CONTEXT."""
    creds: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """File with a user's credentials; else MESH_CREDS."""
    nkey: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """File with the seed of a user's nkey; else MESH_NKEY. User and password, or a token, are never options (they would show in
    lists of processes): MESH_USER and MESH_PASSWORD, MESH_TOKEN, or in MESH_NATS_URL."""
    tls_ca: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """PEM file of the authorities to believe; else MESH_TLS_CA, else the system's."""
    tls_cert: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """PEM file of this client's certificate; else MESH_TLS_CERT."""
    tls_key: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """PEM file of its key; else MESH_TLS_KEY."""
    tls_first: Annotated[bool, Parameter(negative="", show_default=False, group=_GLOBAL)] = False
    """Make TLS before the server speaks; else MESH_TLS_FIRST=1."""
    inbox_prefix: Annotated[str | None, Parameter(group=_GLOBAL)] = None
    """Where answers are heard; else MESH_INBOX_PREFIX, else _INBOX.USER."""
    wait: Annotated[float, Parameter(group=_GLOBAL, validator=Number(gte=0, lte=86_400))] = 0.0
    """Seconds to wait for a server that is not there yet, and with `interrupt`, `cancel`, `stop` for what they withdraw."""
    output: Annotated[Literal["text", "json", "jsonl", "mermaid", "dot"], Parameter(name=("--output", "-o"), group=_GLOBAL)] = (
        "text"
    )
    """Format of stdout; jsonl prints one line per element; mermaid and dot are `graph`'s alone."""
    quiet: Annotated[bool, Parameter(negative="", show_default=False, group=_GLOBAL)] = False
    """No messages on stderr but errors."""
    debug: Annotated[bool, Parameter(negative="", show_default=False, group=_GLOBAL)] = False
    """Log in detail, and show where an error comes from."""


DEFAULTS = GlobalOptions()
Globals = Annotated[GlobalOptions, Parameter(parse=False)]
"""The global options as a verb gets them: `main` has parsed them, wherever they stood."""
RestToken = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
"""A token that is left to somebody else to parse."""
CONNECT_S = 3.0
"""Wait for a server. Short, because a person waits in front of the terminal."""


def any_verb(*tokens: RestToken, options: GlobalOptions = DEFAULTS) -> None:
    # What all verbs take, for the parser. It is never called, and would show a docstring in the help.
    raise NotImplementedError


@asynccontextmanager
async def session(options: GlobalOptions, timeout: float = CONNECT_S) -> AsyncIterator[Mesh]:
    """A connection to the mesh that the options name. For a server that accepts the connection and does not answer it waits up to
    the verb's own `timeout`, in seconds; for one that is not there no longer than `--wait` says.

    Raises:
        NotPermitted: the server refuses the credentials, now or when a lost connection is restored, or the replies.
        TlsFailed, Unavailable: see `agentmesh_client.connect`.
    """
    import asyncio

    import agentmesh_client
    from agentmesh.errors import NotPermitted

    level = logging.DEBUG if options.debug else logging.ERROR if options.quiet else logging.WARNING
    logging.basicConfig(level=level, format="mesh: %(message)s", stream=sys.stderr)
    async with agentmesh_client.connect(
        options.nats,
        root=options.root,
        domain=options.domain,
        name="mesh",
        connect_timeout=CONNECT_S,
        silent_timeout=timeout,
        wait_s=options.wait,
        context=options.context,
        creds=options.creds,
        nkey=options.nkey,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_first=options.tls_first,
        inbox_prefix=options.inbox_prefix,
    ) as mesh:
        refused: NotPermitted | None = None
        inboxes = mesh.inbox.rpartition(".")[0] + "."
        try:
            async with asyncio.timeout(None) as limit:

                def end(error: NotPermitted) -> None:
                    nonlocal refused
                    if refused is None and str(error.details.get("subject", inboxes)).startswith(inboxes):
                        refused = error
                        limit.reschedule(asyncio.get_running_loop().time())

                forget = mesh.transport.on_refused(end)
                try:
                    yield mesh
                finally:
                    forget()
        except TimeoutError:
            if refused is None:
                raise
            raise refused from None


def read_text(text: str) -> str:
    """`text`, or all of stdin for `-`. To be called before the event loop runs, so that Ctrl-C ends it."""
    return sys.stdin.read() if text == "-" else text


def json_object(text: str | None, option: str, example: str) -> dict[str, Any]:
    """The JSON object in `text`, which `option` was given; empty for None. `example` is such an object.

    Raises:
        BadRequest: it is none.
    """
    from agentmesh.errors import BadRequest

    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise BadRequest(f"{option} takes a JSON object, as in {option} '{example}'; {text!r} is none ({error})") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{option} takes a JSON object, as in {option} '{example}'; {text!r} is another value")
    return value


BUDGET_EXAMPLE = '{"usd": 2}'


def json_or_text(text: str) -> Any:
    """The JSON value in `text`, or `text` itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
