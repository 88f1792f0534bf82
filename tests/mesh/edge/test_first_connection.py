"""When a first connection ends: at once where no wait would change the answers, else when the patience is over."""

from __future__ import annotations

import socket
import ssl

import pytest

from agentmesh.edge.first_connection import AddressAnswer, Attempt, FirstConnection, answer_of
from agentmesh.edge.refusals import tls_failed, who
from agentmesh.errors import NotPermitted, TlsFailed, Unavailable

A, B, OTHER = "a:1", "b:1", "named-by-a-server:1"
REFUSED = ConnectionRefusedError(111, "Connect call failed")
REJECTED = Exception("nats: 'Authorization Violation'")


def attempt(error: Exception, address: str = A, *, opened: bool = False) -> Attempt:
    return Attempt(address, "user 'op'", opened, error)


@pytest.mark.parametrize(
    ("failed", "answer"),
    [
        (attempt(REFUSED), AddressAnswer.ABSENT),
        (attempt(socket.gaierror(-2, "Name or service not known")), AddressAnswer.ABSENT),
        (attempt(OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b")), AddressAnswer.ABSENT),
        (attempt(TimeoutError()), AddressAnswer.PASSING),
        (attempt(REJECTED, opened=True), AddressAnswer.REJECTED),
        (attempt(Exception("nats: 'User Authentication Expired'"), opened=True), AddressAnswer.REJECTED),
        (attempt(Exception("nats: 'Authentication Timeout'"), opened=True), AddressAnswer.PASSING),
        (attempt(Exception("nats: 'maximum connections exceeded'"), opened=True), AddressAnswer.PASSING),
        (attempt(ConnectionResetError(), opened=True), AddressAnswer.PASSING),
        (attempt(ssl.SSLError(1, "wrong version number"), opened=True), AddressAnswer.NO_TLS),
        (attempt(ssl.SSLCertVerificationError("unknown authority"), opened=True), AddressAnswer.NO_TLS),
        (attempt(tls_failed(A, None), opened=True), AddressAnswer.NO_TLS),
    ],
)
def test_what_an_attempt_shows(failed: Attempt, answer: AddressAnswer) -> None:
    assert answer_of(failed) is answer


@pytest.mark.case(302)
def test_no_server_ends_when_the_patience_is_over_and_at_once_without_any() -> None:
    assert isinstance(FirstConnection({A: "nats://a"}, 0).failed(attempt(REFUSED), 0), Unavailable)
    patient = FirstConnection({A: "nats://a"}, 10)
    assert patient.failed(attempt(REFUSED), 9.9) is None
    ended = patient.failed(attempt(REFUSED), 10)
    assert isinstance(ended, Unavailable)
    assert "no NATS server answers at nats://a (" in ended.message


def test_all_addresses_are_asked_first() -> None:
    several = FirstConnection({A: A, B: B}, 0)
    assert several.failed(attempt(REFUSED, A), 0) is None
    assert several.failed(attempt(REFUSED, OTHER), 0) is None
    assert several.failed(attempt(TimeoutError(), B), 0) is None, "it may answer yet"
    assert isinstance(several.failed(attempt(REFUSED, B), 0), Unavailable)


def test_what_cannot_change_is_not_waited_for() -> None:
    both = FirstConnection({A: A, B: B}, 60)
    assert both.failed(attempt(REFUSED, A), 0) is None
    ended = both.failed(attempt(REJECTED, B, opened=True), 0)
    assert isinstance(ended, NotPermitted)
    assert "b:1 refuses the credentials of user 'op'" in ended.message
    assert isinstance(FirstConnection({A: "nats://a"}, 60).failed(attempt(ssl.SSLError(1, "no"), opened=True), 0), TlsFailed)


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [("op", "secret", "user 'op'"), ("secret", None, "the bearer of this token"), (None, None, "a client without credentials")],
)
def test_a_user_is_named_and_a_token_is_not(user: str | None, password: str | None, said: str) -> None:
    assert who(user, password) == said
