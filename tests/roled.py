"""Tests under roles: the same tests, with the mesh's processes and its clients logged in by role and everything else denied.

With `TEST_ROLES=1` in the environment (`make test-roles`) each test server that has no users of its own gets those of the roles,
for every mesh that a test may make on it. Nodes, supervisors, `mesh setup`, clients and commands log in as what they are;
what a test does itself to a server, as to look into streams or to forge messages, is done by a user that may do all. A refusal by
a server fails the test in which it happens, with the role and the subject.

With `TEST_ROLES=FOLDER` servers also trace what is sent, and what of each list was used is noted in that folder (`used.py`).
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import used
from agentmesh.access.roles import Role, lists
from agentmesh.subjects import Subjects

_SWITCH = os.environ.get("TEST_ROLES", "")
ENABLED = bool(_SWITCH)
TRACES = Path(_SWITCH) if ENABLED and _SWITCH != "1" else None
"""Where it is noted what of the lists was used."""
ACCOUNT = "MESH" if ENABLED else "$G"
"""Where the streams of test servers are."""
ROLES: tuple[Role, ...] = ("node", "supervisor", "setup", "operator")
TESTER = "tester"
"""The user of a connection that does not log in."""
_PASSWORD = "p"
_POOL = [f"t{number:07x}" for number in range(96)]
NAMED = ("mesh", "one", "two", "shown")
"""Roots that tests have by name."""
_roots = itertools.cycle(_POOL)
_OWN_USERS = re.compile(r"\b(accounts|authorization|operator|leafnodes|trusted_keys)\b")
_REFUSED = re.compile(r'(Publish|Subscription) Violation - (?:[^\n]*?User|Account) "([^"]*)".*?Subject "([^"]+)"')

ports: set[int] = set()
"""Those of servers that have the users of the roles."""
refusals: list[str] = []
"""What servers have refused since the last test."""


def next_root() -> str:
    """The root of a mesh that no other test on the same server has."""
    return next(_roots) if ENABLED else f"t{secrets.token_hex(4)}"


def user_of(role: str, root: str) -> str:
    return f"{role}-{root}"


@functools.cache
def _users() -> str:
    found = [f'{{ user: {TESTER}, password: "{_PASSWORD}" }}']
    for root in (*_POOL, *NAMED):
        for role in ROLES:
            user = user_of(role, root)
            granted = lists(role, Subjects(root), user=user)
            publish, subscribe = json.dumps(granted.publish_allow), json.dumps(granted.subscribe_allow)
            found.append(
                f'{{ user: "{user}", password: "{_PASSWORD}", permissions: {{'
                f" publish: {{ allow: {publish} }}, subscribe: {{ allow: {subscribe} }} }} }}"
            )
    return "\n".join(found)


def applies_to(own: str) -> bool:
    """Whether a server with these lines of configuration gets the users of the roles: it has none of its own."""
    return ENABLED and _OWN_USERS.search(own) is None


def configuration(own: str) -> str:
    """What a server's configuration needs besides `own`, for its users."""
    if not applies_to(own):
        return ""
    traced = "trace: true\nmax_traced_msg_len: 1" if TRACES is not None else ""
    return (
        f"accounts {{ SYS {{ }}\n MESH {{ jetstream: enabled\n users: [\n{_users()}\n] }} }}\n"
        f"system_account: SYS\nno_auth_user: {TESTER}\n{traced}\n"
    )


def logged_in(urls: str, role: str, root: str) -> str:
    """`urls` (joined by commas) as a process of that role reaches them; as they are where a server has no users of the roles."""
    each = urls.split(",")
    if not ENABLED or not all((port := url.rpartition(":")[2]).isdecimal() and int(port) in ports for url in each) or "@" in urls:
        return urls
    return ",".join(_with_user(url, user_of(role, root)) for url in each)


def _with_user(url: str, user: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme or 'nats'}://{user}:{_PASSWORD}@{rest}"


def command(program_is_node: bool, arguments: Sequence[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a command or a hosting process, logged in by its role."""
    given, env = list(arguments), dict(env)
    if not ENABLED or not given or given[0] == "up":
        return given, env
    role = given[0] if program_is_node and given[0] in ROLES else "operator"
    root = given[given.index("--root") + 1] if "--root" in given else env.get("MESH_ROOT", "mesh")
    if any(name in env for name in ("MESH_USER", "MESH_CREDS", "MESH_NKEY", "MESH_TOKEN")) or root not in (*_POOL, *NAMED):
        return given, env
    if "--nats" in given:
        at = given.index("--nats") + 1
        given[at] = logged_in(given[at], role, root)
    if "MESH_NATS_URL" in env:
        env["MESH_NATS_URL"] = logged_in(env["MESH_NATS_URL"], role, root)
    return given, env


def read(log: str) -> None:
    """Gather the refusals in what a server has logged."""
    refusals.extend(line for line in log.splitlines() if " Violation - " in line)
    if TRACES is not None:
        used.keep(log, TRACES)
