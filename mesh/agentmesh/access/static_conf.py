"""The file that a server's configuration includes: accounts, exports and imports, users with their lists and hashed passwords."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from agentmesh.access.layout import STREAMS_OUT, SYSTEM, THRESHOLD, callers_account, crossings, mesh_account
from agentmesh.access.roles import DEFAULT_OPERATIONS, Role, lists
from agentmesh.subjects import Subjects


class User(msgspec.Struct, frozen=True):
    """A user of the generated configuration."""

    name: str
    role: Role
    hashed: str
    """Its password, as bcrypt hashes it."""
    agents: tuple[str, ...] = ()
    """Of a caller: names and prefixes."""
    ops: tuple[str, ...] = DEFAULT_OPERATIONS
    """Of a caller: control requests."""


HEAD = """\
# Accounts and users of the mesh {root!r}. Made by `mesh access`: changes by hand are lost with its next run.
# In the server's configuration: include "{name}"; after a change: nats-server --signal reload
"""


def rendered(
    root: str, users: Iterable[User], *, threshold: str = THRESHOLD, name: str = "access.conf", extra: str = "", more: str = ""
) -> str:
    """The file.

    Args:
        root: the mesh's.
        threshold: how long the server remembers where answers to callers go, as a duration of NATS.
        name: what the file is called, for its head.
        extra: further lines of the mesh's account, each indented.
        more: further accounts, likewise.

    Raises:
        BadRequest: a caller's agents are none.
    """
    subjects = Subjects(root)
    everybody = sorted(users, key=lambda user: user.name)
    inside = [user for user in everybody if user.role != "caller"]
    callers = [user for user in everybody if user.role == "caller"]
    crossed = crossings(subjects, sorted({op for user in callers for op in user.ops}))
    mesh, outside = mesh_account(subjects), callers_account(subjects)
    lines = [
        HEAD.format(root=root, name=name) + "accounts {",
        f"  {SYSTEM} {{ }}",
        *([more.rstrip("\n")] if more else ()),
        f"  {mesh} {{",
        "    jetstream: enabled",
        *([extra.rstrip("\n")] if extra else ()),
        "    exports: [",
        # An answer finds its way for as long as one may take. A request has one answer, and the server forgets it with that
        # (docs/design/048-one-answer-to-a-request.md).
        *(f"      {{ service: {_text(one.exported)}, threshold: {_text(threshold)} }}" for one in crossed),
        *(f"      {{ stream: {_text(subject)} }}" for subject in STREAMS_OUT),
        "    ]",
        *_users(subjects, inside),
        "  }",
        f"  {outside} {{",
        "    imports: [",
        *(
            f"      {{ service: {{ account: {mesh}, subject: {_text(one.exported)} }}, to: {_text(one.local)}, share: true }}"
            for one in crossed
        ),
        *(f"      {{ stream: {{ account: {mesh}, subject: {_text(subject)} }} }}" for subject in STREAMS_OUT),
        "    ]",
        *_users(subjects, callers),
        "  }",
        "}",
        f"system_account: {SYSTEM}",
    ]
    return "\n".join(lines) + "\n"


def _users(subjects: Subjects, users: Sequence[User]) -> Iterator[str]:
    yield "    users: ["
    for user in users:
        granted = lists(user.role, subjects, user=user.name, agents=user.agents, ops=user.ops)
        yield f"      {{ user: {_text(user.name)}, password: {_text(user.hashed)}, permissions: {{"
        yield from _list("publish", granted.publish_allow)
        yield from _list("subscribe", granted.subscribe_allow)
        yield "      } }"
    yield "    ]"


def _list(what: str, allowed: Sequence[str]) -> Iterator[str]:
    if not allowed:
        yield f'        {what}: {{ deny: ">" }}'  # an empty list would allow everything
        return
    yield f"        {what}: {{ allow: ["
    yield from (f"          {_text(subject)}" for subject in allowed)
    yield "        ] }"


def _text(value: str) -> str:
    return json.dumps(value)
