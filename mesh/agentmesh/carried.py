"""What travels with a request beside its body: one type, one header each (docs/protocol.md#what-a-request-carries). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from agentmesh.budget import Limits, limits_from
from agentmesh.errors import BadRequest
from agentmesh.headers import STATE_KEY, bounded_baggage, legible, trace_in
from agentmesh.identity import MAX_CHAIN, Party, bounded, chain_in, encoded
from agentmesh.times import MAX_TIME, format_time, parse_time, time_in_range

ROOT = "Mesh-Root"
PATH = "Mesh-Path"
DEADLINE = "Mesh-Deadline"
TIMEOUT = "Mesh-Timeout"
END_BY = "Mesh-End-By"
BUDGET = "Mesh-Budget"
CHAIN = "Mesh-Chain"
TIME_STAMP = "Nats-Time-Stamp"
"""When the server stored a message: in its copies and in what is read of it."""

MAX_BYTES = 4096
"""Most bytes that these headers take together, names and values, in what the mesh itself sends."""
MAX_PATH = 32
"""Most agents that a path names, the newest ones. Longer circles are found by probes."""
_TIMES = frozenset((DEADLINE, TIMEOUT, END_BY))
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_encode = msgspec.json.Encoder().encode


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has from the request on whose behalf it is made, or from its caller."""

    root: str | None = None
    """The request of a client that all this is for: `<agent>/<ref>`."""
    path: tuple[str, ...] = ()
    """The agents that wait for its outcome in the middle of a turn, the sender last; empty if none does."""
    trace: dict[str, str] = {}
    """W3C trace context, by its headers."""
    deadline: float | None = None
    """By when its turn must begin (seconds since the epoch)."""
    end_by: float | None = None
    """By when it ends, with or without an answer (seconds since the epoch)."""
    budget: Limits | None = None
    """What it may cost."""
    chain: tuple[Party, ...] = ()
    """On whose behalf it is made, the oldest first; empty where no user is known (agentmesh.identity)."""

    def headers(self) -> dict[str, str]:
        """The headers that bear it, of at most `MAX_BYTES` together.

        Where they would be more, members of `baggage` are left out, from its end; then those of `tracestate` that are not the
        mesh's; then the oldest agents of the path; then those of the chain, but never its user. The rest always fits.
        """
        found = dict(self.trace)
        if self.root is not None:
            found[ROOT] = self.root
        if self.deadline is not None:
            found[DEADLINE] = format_time(self.deadline)
        if self.end_by is not None:
            found[END_BY] = format_time(self.end_by)
        if self.budget is not None:
            found[BUDGET] = _encode(self.budget).decode()
        chain = bounded(self.chain, MAX_CHAIN) if self.chain else ()
        if chain:
            found[CHAIN] = encoded(chain)
        path = self.path[-MAX_PATH:]
        if path:
            found[PATH] = ",".join(path)
        if (over := size_of(found) - MAX_BYTES) <= 0:
            return found
        if "baggage" in found:
            _shorten(found, "baggage", bounded_baggage(found["baggage"], len(found["baggage"]) - over))
        if "tracestate" in found and size_of(found) > MAX_BYTES:
            own, _, _ = found["tracestate"].partition(",")
            _shorten(found, "tracestate", own if own.startswith(STATE_KEY + "=") else "")
        while size_of(found) > MAX_BYTES and len(path) > 1:
            path = path[1:]
            found[PATH] = ",".join(path)
        while size_of(found) > MAX_BYTES and len(chain) > 2:
            chain = bounded(chain, len(chain) - 1)
            found[CHAIN] = encoded(chain)
        return found


def _shorten(headers: dict[str, str], name: str, value: str) -> None:
    if value:
        headers[name] = value
    else:
        del headers[name]


def size_of(headers: Mapping[str, str]) -> int:
    """Bytes of these headers: names and values."""
    return sum(len(name) + len(value) for name, value in headers.items())


NOTHING_CARRIED = Carried()


def carried_in(headers: Mapping[str, str], *, prompt: bool, trusted: bool, stored_at: float | None) -> tuple[Carried, str | None]:
    """What a message carries, as far as its lane takes it, and what is wrong with the part that cannot be read.

    Args:
        headers: the message's.
        prompt: whether it is a prompt; others have neither budget nor end.
        trusted: whether only nodes publish to its lane: on the others root, path and chain are ignored.
        stored_at: when the server stored it (seconds since the epoch); by default its headers say.
    """
    found: dict[str, object] = {}
    trace = trace_in(headers)
    if "traceparent" in trace or "baggage" in trace:  # W3C: baggage goes without a trace, too
        found["trace"] = trace
    if trusted:
        path = headers.get(PATH)
        if path:
            found["path"] = tuple(path.split(","))
        if CHAIN in headers and (chain := chain_in(headers[CHAIN])):
            found["chain"] = chain
        if prompt and ROOT in headers:
            found["root"] = legible(headers[ROOT])
    problem: str | None = None
    try:
        if not _TIMES.isdisjoint(headers):
            found["deadline"] = _latest_start(headers, stored_at, prompt=prompt)
            if prompt and END_BY in headers:
                found["end_by"] = time_in_range(headers[END_BY])
        if prompt and BUDGET in headers:
            found["budget"] = limits_from(headers[BUDGET])
    except BadRequest as error:
        problem = error.message
    return (Carried(**found) if found else NOTHING_CARRIED), problem  # type: ignore[arg-type]


def parse_timeout(text: str) -> float:
    """The seconds that the header `Mesh-Timeout` gives a request, counted from when the server stored it.

    Raises:
        BadRequest: it is no decimal number above 0.
    """
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not seconds:
        raise BadRequest(f"{TIMEOUT} is a number of seconds above 0, as 30 or 2.5; this is {text[:40]!r}")
    return seconds


def _latest_start(headers: Mapping[str, str], stored_at: float | None, *, prompt: bool) -> float | None:
    """By when the turn of a message must begin, in seconds since the epoch; None if it does not say. The soonest counts of
    deadline, time-out and end.

    Raises:
        BadRequest: one of them cannot be read.
    """
    bounds: list[float] = []
    if DEADLINE in headers:
        bounds.append(time_in_range(headers[DEADLINE]))
    if prompt and END_BY in headers:
        bounds.append(time_in_range(headers[END_BY]))
    if TIMEOUT in headers:
        seconds = parse_timeout(headers[TIMEOUT])
        if stored_at is None and TIME_STAMP in headers:
            stored_at = parse_time(headers[TIME_STAMP])
        if stored_at is not None:
            bounds.append(min(MAX_TIME, stored_at + seconds))
    return min(bounds, default=None)
