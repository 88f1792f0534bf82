"""What the servers say of themselves: settings, clocks, health. Only monitoring pages and the system account tell of all."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agentmesh.edge import connection
from agentmesh.edge.address import without_credentials
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.first_connection import reason_of
from agentmesh.edge.transport import Message
from agentmesh.errors import Unavailable

LOOK_S = 2.0
"""Wait for one answer."""
ALWAYS = "always"
_SECOND = 1_000_000_000


class ServerReport(msgspec.Struct, kw_only=True):
    """One server. What could not be learnt is None."""

    name: str
    version: str | None = None
    max_payload: int | None = None
    sync: str | None = None
    """When it writes to its disk: `always`, or seconds as in `120s`."""
    password: bool | None = None
    """Whether it asks clients who they are."""
    clock_ahead_s: float | None = None
    """How far its clock is ahead of this machine's."""


class Pages(NamedTuple):
    """What could be learnt of all servers, and where it was read."""

    servers: list[ServerReport]
    source: str | None


async def look(monitors: Sequence[str], system: str | None, directory: Path | None) -> Pages:
    """The servers' settings and clocks.

    Args:
        monitors: base URLs of their monitoring pages.
        system: address of one of them with a user of the system account.
        directory: where `mesh up` may have left its server's configuration.

    Raises:
        Unavailable: a monitoring page, or the servers by `system`, cannot be asked.
    """
    if monitors:
        pages = await asyncio.gather(*(asyncio.to_thread(_page, url) for url in monitors))
        return Pages([_facts(*page) for page in pages], "the monitoring pages")
    if system is not None:
        return Pages([_facts(*page) for page in await _ping(system)], "the system account")
    text = await asyncio.to_thread(_local, directory) if directory is not None else None
    if text is not None:
        return Pages([ServerReport(name="mesh up", sync=text)], "the configuration that `mesh up` has written")
    return Pages([], None)


async def ailing(monitors: Sequence[str]) -> list[str]:
    """The health problems that the servers of these monitoring pages report.

    Raises:
        Unavailable: a page cannot be read.
    """
    found = await asyncio.gather(*(asyncio.to_thread(_ailing, url) for url in monitors))
    return [text for texts in found for text in texts]


async def exports(monitors: Sequence[str], account: str) -> list[str]:
    """The subjects of the services that this account exports, as these monitoring pages tell.

    Raises:
        Unavailable: a page cannot be read.
    """
    path = f"accountz?acc={urllib.parse.quote(account)}"
    pages = await asyncio.gather(*(asyncio.to_thread(_read, url, path) for url in monitors if account))
    details = [page.get("account_detail") or {} for page in pages]
    return sorted(
        {str(one.get("subject")) for detail in details for one in detail.get("exports") or () if one.get("type") == "service"}
    )


def ahead(stamp: str, sent: float, heard: float) -> float:
    """How far a clock that says `stamp` is ahead of this machine's, which read `sent` and `heard` before and behind it."""
    moment = dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp)).timestamp()
    return moment - (sent + heard) / 2


def _facts(page: dict[str, Any], sent: float, heard: float) -> ServerReport:
    """What a server's general page (`varz`) says."""
    config = (page.get("jetstream") or {}).get("config") or {}
    sync = f"{config['sync_interval'] / _SECOND:.15g}s" if "sync_interval" in config else None
    return ServerReport(
        name=str(page.get("server_name") or page.get("server_id", "?")),
        version=page.get("version"),
        max_payload=page.get("max_payload"),
        sync=ALWAYS if config.get("sync_always") else sync,
        password=bool(page.get("auth_required")),
        clock_ahead_s=ahead(page["now"], sent, heard) if "now" in page else None,
    )


def _page(url: str) -> tuple[dict[str, Any], float, float]:
    sent = SYSTEM.now()
    return _read(url, "varz"), sent, SYSTEM.now()


def _read(url: str, path: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise _no_page(url)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/{path}", timeout=LOOK_S) as response:
            return msgspec.json.decode(response.read(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise Unavailable(f"the monitoring page {without_credentials(url)} cannot be read: {_reason(error)}") from None
    except http.client.HTTPException:  # no HTTP, as on the port for clients; or no URL, and the text has a piece of it
        raise _no_page(url) from None


def _reason(error: Exception) -> str:
    """What is wrong with a page; what is wrong with its server is inside of the library's error."""
    inner = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError) else error
    return reason_of(inner)


def _no_page(url: str) -> Unavailable:
    return Unavailable(f"{without_credentials(url)} is no monitoring page; for example http://127.0.0.1:8222")


def _ailing(url: str) -> list[str]:
    """The health problems that a server reports of itself."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/healthz?details=true", timeout=LOOK_S):
            return []
    except urllib.error.HTTPError as error:
        with error:
            try:
                said = msgspec.json.decode(error.read(), type=dict[str, Any])
            except msgspec.DecodeError:
                said = {}
        found = [str(one.get("error", one)) for one in said.get("errors") or ()]
        return found or [str(said.get("error") or f"{without_credentials(url)} answers {error.code}")]
    except OSError as error:
        raise Unavailable(f"the monitoring page {without_credentials(url)} cannot be read: {_reason(error)}") from None
    except http.client.HTTPException:
        raise _no_page(url) from None


async def _ping(system: str) -> list[tuple[dict[str, Any], float, float]]:
    """The reports that every server of the cluster gives to a user of the system account."""
    pages: list[tuple[dict[str, Any], float, float]] = []
    sent = 0.0

    def take(message: Message) -> None:
        if message.data:
            pages.append((msgspec.json.decode(message.data).get("data") or {}, sent, SYSTEM.now()))

    transport = await connection.connect(system, name="mesh-doctor")
    try:
        inbox = transport.new_inbox()
        await transport.subscribe(inbox, take)
        await transport.flush()
        sent = SYSTEM.now()
        await transport.publish("$SYS.REQ.SERVER.PING.VARZ", reply=inbox)
        await asyncio.sleep(LOOK_S)  # it is not known how many will answer
    finally:
        await transport.close()
    if not pages:
        raise Unavailable("no server answers the user of --system; it must belong to the system account")
    return pages


def _local(directory: Path) -> str | None:
    try:
        text = (directory / "nats" / "nats-server.conf").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'sync_interval: "([^"]+)"', text)
    return found[1] if found else None
