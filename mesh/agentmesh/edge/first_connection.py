"""When a first connection is not waited for any longer: all addresses have given an answer that no wait would change.

Wrong credentials and wrong TLS end it at once. An address that nobody listens on, or a name that does not resolve, may come
alive: that ends it when the caller's patience for it is over. Anything else (a server that says nothing, that is full, that is
just starting) is waited for.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import NamedTuple

from agentmesh.edge.refusals import bad_credentials, rejected, tls_failed
from agentmesh.errors import MeshError, TlsFailed, Unavailable


class AddressAnswer(Enum):
    """What an attempt to connect has shown of an address."""

    ABSENT = auto()
    """Nobody listens there, or its name does not resolve."""
    REJECTED = auto()
    """The server refuses the credentials."""
    NO_TLS = auto()
    """TLS cannot be made with it."""
    PASSING = auto()
    """It may answer otherwise in a moment."""


class Attempt(NamedTuple):
    """One attempt that has failed."""

    address: str
    """`host:port`."""
    user: str
    opened: bool
    """Whether somebody has taken the connection."""
    error: Exception


def answer_of(attempt: Attempt) -> AddressAnswer:
    """What a failed attempt shows."""
    error = attempt.error
    if isinstance(error, TlsFailed | ssl.SSLError | ssl.CertificateError):
        return AddressAnswer.NO_TLS
    if not attempt.opened:
        return (
            AddressAnswer.ABSENT if isinstance(error, OSError) and not isinstance(error, TimeoutError) else AddressAnswer.PASSING
        )
    return AddressAnswer.REJECTED if rejected(str(error)) else AddressAnswer.PASSING


class FirstConnection:
    """The answers of all addresses so far."""

    def __init__(self, addresses: Mapping[str, str], wait_s: float) -> None:
        """`addresses`: each as `host:port`, and as it was given; `wait_s`: how long a server that is not there is waited for."""
        self._given = addresses.values()
        self._answers: dict[str, tuple[AddressAnswer, Attempt] | None] = dict.fromkeys(addresses)
        self._wait_s = wait_s

    def failed(self, attempt: Attempt, elapsed_s: float) -> MeshError | None:
        """Take a failed attempt, so many seconds after the beginning. Returns the error to end with, or None to go on."""
        if attempt.address in self._answers:  # others the servers have named: they are tried, and decide nothing
            self._answers[attempt.address] = (answer_of(attempt), attempt)
        told = [found for found in self._answers.values() if found is not None and found[0] is not AddressAnswer.PASSING]
        if len(told) < len(self._answers):
            return None
        for answer, last in told:
            if answer is AddressAnswer.REJECTED:
                return bad_credentials(last.user, last.address)
        for answer, last in told:
            if answer is AddressAnswer.NO_TLS:
                return last.error if isinstance(last.error, TlsFailed) else tls_failed(last.address, last.error)
        if elapsed_s < self._wait_s:
            return None
        return no_server(self._given, reason_of(attempt.error))


def reason_of(error: Exception) -> str:
    """Why an address does not answer, for people."""
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "the name does not resolve" if isinstance(error, socket.gaierror) else str(error) or type(error).__name__


def still_waiting(attempt: Attempt, wait_s: float, patience_s: float) -> str:
    """What is waited for after a failed attempt, and how long: `wait_s` for a server that is not there, else `patience_s`."""
    seconds = wait_s if answer_of(attempt) is AddressAnswer.ABSENT else patience_s
    how_long = "until it does" if seconds == math.inf else f"up to {seconds:g} s"
    return f"no NATS server answers at {attempt.address} yet ({reason_of(attempt.error)}); waiting {how_long}"


def no_server(addresses: Iterable[str], reason: str) -> Unavailable:
    """The error when there is no server at any of the addresses."""
    return Unavailable(
        f"no NATS server answers at {','.join(addresses)} ({reason}); start one (`mesh up`), check the address, or wait for one "
        "that is starting (--wait 10)"
    )
