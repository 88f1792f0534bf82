"""Settings of servers and users that differ, or that nobody can have meant. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from agentmesh_client.doctor.facts import Facts
from agentmesh_client.doctor.findings import Finding, some
from agentmesh_client.doctor.servers import ALWAYS, ServerReport

_READS_ANY = re.compile(r"\$JS\.API\.(STREAM\.MSG|DIRECT)\.GET\.[^.]+")
"""Reads of a stream whose subject does not say what of it is read."""
LONGEST_SYNC_S = 3600.0
"""Nobody means a longer interval."""

_DIFFER: tuple[tuple[str, Callable[[ServerReport], str | None], str], ...] = (
    (
        "max_payload",
        lambda server: None if server.max_payload is None else str(server.max_payload),
        "what one takes another refuses, and streams are made for one of them: set it alike on all",
    ),
    ("version", lambda server: server.version, "finish the upgrade"),
    ("sync_interval", lambda server: server.sync, "the weakest counts: set it alike on all"),
)
"""By the name of a setting: how it is read, and what to do where servers differ in it."""


def findings(facts: Facts) -> Iterator[Finding]:
    """What is wrong with settings."""
    for name, value in sorted(facts.sync.items()):
        if is_too_long(value):
            yield Finding(
                "problem",
                f"{name} writes to its disk every {value}: NATS reads `sync_interval: 2m` without quotes as 2,000,000 s; write "
                'sync_interval: "2m", or sync_interval: always',
            )
    for setting, read, cure in _DIFFER:
        values = {server.name: found for server in facts.servers if (found := read(server)) is not None}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name}: {found}" for name, found in sorted(values.items()))
            yield Finding("warning", f"the servers differ in {setting} ({shown}): {cure}")
    yield from _of_users(facts)


def is_too_long(sync: str) -> bool:
    """Whether an interval, as `ServerReport.sync` has it, is longer than anybody means."""
    try:
        return sync != ALWAYS and float(sync.removesuffix("s")) > LONGEST_SYNC_S
    except ValueError:
        return False  # as `mesh up` has written it, with another unit


def _asked(root: str) -> tuple[str, ...]:
    """How subjects begin at which agents are asked, other than those of `mesh access`, which are below `<root>.caller`."""
    return tuple(f"{root}.{lane}." for lane in ("ask", "tell", "event-to", "poll", "inbox", "notify"))


def _of_caller(facts: Facts) -> Iterator[Finding]:
    """A user that is given some agents only, and may read what is of all."""
    allowed = facts.publish.get("allow") or []
    asks = [subject for subject in allowed if subject.startswith(_asked(facts.root))]
    wide = [subject for subject in allowed if _READS_ANY.fullmatch(subject)]
    if wide and asks and not any(subject in (f"{facts.root}.ask.>", f"{facts.root}.inbox.>") for subject in asks):
        yield Finding(
            "warning",
            f"the user {facts.user} is given some agents only, and may read the mail, outcomes or specs of all ({some(wide)}): "
            "such a request names in its body what it reads. Make callers by `mesh access add NAME caller AGENTS`, in an account "
            "of their own (docs/security.md#the-layout)",
        )


def _of_users(facts: Facts) -> Iterator[Finding]:
    if not facts.password:
        yield Finding(
            "warning",
            "the server lets in who gives no password: any client that reaches its port can read and change everything that this "
            "user can; give nodes, supervisors, operators and callers users of their own (docs/operations.md#users)",
        )
    elif not any(facts.publish.values()) and not any(facts.subscribe.values()):
        yield Finding(
            "warning",
            f"the user {facts.user or 'of this connection'} has no restrictions: it may write to journals and delete streams; "
            "restrict each user to what it needs (docs/operations.md#users)",
        )
    yield from _of_caller(facts)
    if any(subject.startswith(_asked(facts.root)) for subject in facts.exports):
        yield Finding(
            "warning",
            "callers in other accounts reach this mesh by exports that `mesh access` has not made, and no server tells their "
            'threshold: look for threshold: "24h" at each service in the configuration; without one the server forgets after two '
            "to four minutes where an answer goes (docs/security.md#the-layout)",
        )
    open_ones = [server.name for server in facts.servers if server.password is False]
    if open_ones and facts.password:
        yield Finding("warning", f"{', '.join(open_ones)} asks no client for a password: set users there, too")
