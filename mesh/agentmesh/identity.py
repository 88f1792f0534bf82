"""On whose behalf a request is made: parties and their chain, the oldest first (docs/security.md#on-whose-behalf). Pure.

A user is known where the NATS server has said so: of a request that came through an import from another account. Each agent that
hands a request on adds itself. What nobody has verified begins with `UNVERIFIED`, and is not handed on.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
from msgspec import structs

from agentmesh.errors import InvalidAgent
from agentmesh.headers import readable

MAX_NAME = 256
"""Most characters of a user's name or an account's that are believed. A longer one, or one that is not printable ASCII, counts as
not known: cut short it could be another's."""
MAX_CHAIN = 32
"""Most parties that a chain names: the first one, and the newest of the others."""


class Party(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One on whose behalf something is asked."""

    kind: Literal["user", "agent", "unverified"]
    name: str = ""
    """Of the user or the agent; empty if it is not known."""
    account: str = ""
    """Of a user: its NATS account."""

    def __str__(self) -> str:
        if self.kind == "user":
            return f"user {self.name or '(not told)'} of {self.account}"
        return f"agent {self.name}" if self.kind == "agent" else self.kind


type Chain = tuple[Party, ...]

UNVERIFIED = Party(kind="unverified")
UNKNOWN: Chain = (UNVERIFIED,)
"""Of a request that comes from no agent and of whose user nothing is known."""
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(tuple[Party, ...])


def user_of(account: str | None, user: str | None) -> Chain:
    """The chain of a request of this user; empty if not even its account is known."""
    if not account or not _is_name(account):
        return ()
    return (Party(kind="user", name=user if user and _is_name(user) else "", account=account),)


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and readable(text)


def handed_on(chain: Chain, agent: str) -> Chain:
    """The chain of what `agent` asks on behalf of a request with this chain: empty if that begins with nobody."""
    return bounded((*chain, Party(kind="agent", name=agent)), MAX_CHAIN) if chain else ()


def bounded(chain: Chain, most: int) -> Chain:
    """`chain` with at most `most` parties, at least two: the first, whom all is for, and the newest of the others."""
    return chain if len(chain) <= most else (chain[0], *chain[1 - most :])


def whole(chain: Chain, sender: str | None) -> Chain:
    """The chain of a request as its agent sees it: as it came, or, where none came, as far as its lane tells."""
    if chain:
        return chain
    return UNKNOWN if sender is None else (UNVERIFIED, Party(kind="agent", name=sender))


def behalf(chain: Chain, agent: str) -> Chain:
    """On whose behalf `agent` calls a tool that is no part of it, as if that were another agent: `chain` is its request's."""
    known = chain if chain and chain[0].kind == "user" else ()
    return whole(handed_on(known, agent), agent)


def as_meta(chain: Chain) -> list[dict[str, str]]:
    """`chain` as JSON data, for a call of a tool in another program."""
    return [{name: value for name, value in structs.asdict(party).items() if value} for party in chain]


def encoded(chain: Chain) -> str:
    """`chain` as a header has it."""
    text = _encoder.encode(chain).decode()
    return text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":"))


def chain_in(text: str) -> Chain:
    """The chain in a header of a trusted lane; empty if it cannot be read, or begins with no user."""
    try:
        chain = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return ()
    return bounded(chain, MAX_CHAIN) if chain and chain[0].kind == "user" and chain[0].account else ()


def told(chain: Chain) -> str:
    """`chain` in one line for people."""
    return " -> ".join(map(str, chain))


# --- who may ask ------------------------------------------------------------------------------------------------------
type Policy = Callable[[Any], bool]
"""Is given the request, and says whether it may be handled."""

_PATTERN = re.compile(r"(?:(user|agent|account):)?([!-~]+)")


def callers_of(declared: object, of: str) -> tuple[str, ...] | Policy | None:
    """What a class says of its callers: patterns, or a function of the request; None: all may ask. `of`: its name, for errors.

    Raises:
        InvalidAgent: it is neither.
    """
    if declared is None:
        return None
    if isinstance(declared, staticmethod):
        declared = declared.__func__
    if callable(declared):
        _check_function(declared, of)
        return declared
    if isinstance(declared, str) or not isinstance(declared, Iterable):
        raise InvalidAgent(f"{of}: `callers` is a list of patterns, or a function of the request, not {declared!r}")
    patterns = tuple(declared)
    for pattern in patterns:
        match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
        if match is None or ":" in match[2] or "[" in match[2] or "?" in match[2]:
            raise InvalidAgent(
                f"{of}: {pattern!r} is no pattern of `callers`; it is a name or has `*` in it, as 'shop', 'team-a.*', "
                "'user:shop', 'agent:team-a.*' or 'account:TEAM'"
            )
    return patterns


def _check_function(function: Callable[..., Any], of: str) -> None:
    """
    Raises:
        InvalidAgent: it is no plain function of the request.
    """
    try:
        inspect.signature(function).bind(None)
        fits = not inspect.iscoroutinefunction(function)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InvalidAgent(f"{of}: the function `callers` takes the request alone (no `self`), is not async, and returns a bool")


def refusal(policy: tuple[str, ...] | Policy, chain: Chain, request: Any) -> str | None:
    """Why a request with this whole chain may not be handled; None: it may.

    A pattern is for the user on whose behalf the request is made, or for the agent that sends it; before it `user:`, `agent:` and
    `account:` say which alone.
    """
    if callable(policy):
        try:
            permitted = policy(request)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and what cannot be decided is refused
            return f"the function `callers` of this agent cannot decide: {type(error).__name__}: {error}"
        return None if permitted is True else _why(chain, "the function `callers` of this agent refuses it")
    if any(_matches(pattern, chain) for pattern in policy):
        return None
    return _why(chain, f"this agent takes requests of {', '.join(policy) or 'nobody'} alone")


def _matches(pattern: str, chain: Chain) -> bool:
    kind, _, name = pattern.rpartition(":")
    first, last = chain[0], chain[-1]
    if first.kind == "user" and first.name and kind in ("", "user") and fnmatch.fnmatchcase(first.name, name):
        return True
    if first.kind == "user" and kind == "account" and fnmatch.fnmatchcase(first.account, name):
        return True
    return last.kind == "agent" and kind in ("", "agent") and fnmatch.fnmatchcase(last.name, name)


def _why(chain: Chain, rule: str) -> str:
    text = f"{rule}, and this one is of {told(chain)}"
    if chain[0].kind == "unverified":
        return (
            f"{text}: no user is known behind it; callers are known whose requests come from an account of their own "
            "(docs/security.md#on-whose-behalf)"
        )
    if not chain[0].name:
        return f"{text}: the import of that account must say `share: true`, or the user is not told"
    return text
