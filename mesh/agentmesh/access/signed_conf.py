"""The layout with signed users: an operator, the accounts as JWTs with a signing key for each role, and credentials.

Servers get one file, which changes only when a user is revoked. A user's JWT is short, since its lists are a template in the
account's: only a caller's agents and control requests stand in it, as tags. (A JWT with the lists of a node is longer than a
server takes on one line.) In a template a queue group cannot be named, so there a node hears the gateway's subjects in any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agentmesh.access.jwt import JETSTREAM, UNLIMITED, Key, credentials, signed
from agentmesh.access.layout import STREAMS_OUT, SYSTEM, THRESHOLD, callers_account, crossings, mesh_account
from agentmesh.access.roles import DEFAULT_OPERATIONS, INSIDE, ROLES, Role, below, is_prefix, lists
from agentmesh.errors import BadRequest
from agentmesh.subjects import Subjects
from agentmesh.times import duration_s

LONGEST_JWT = 3_000
"""Characters of a user's JWT: with what else a client says it must fit a line of 4,096 (`max_control_line`)."""
NAME, AGENTS, EXACT, MAY = "{{name()}}", "{{tag(agents)}}", "{{tag(exact)}}", "{{tag(may)}}"
"""What a template has of a user; a user with several tags of a name gets each subject with each of them."""
_STANDING, _OPERATION = "standing-for-agents", "status"
_NANOSECONDS = 1_000_000_000


class Keys(msgspec.Struct, frozen=True):
    """All keys of the layout. Their seeds are secrets, and no server needs one."""

    operator: Key
    system: Key
    mesh: Key
    callers: Key
    roles: dict[Role, Key]
    """What signs users of each role: a signing key of that role's account. With a role's key nobody makes users of another."""

    def account_of(self, role: Role) -> Key:
        """The account in which users of a role are."""
        return self.callers if role == "caller" else self.mesh


class SignedUser(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user of this layout, without its secret."""

    name: str
    role: Role
    public: str
    agents: tuple[str, ...] = ()
    """Of a caller: names and prefixes."""
    ops: tuple[str, ...] = DEFAULT_OPERATIONS
    """Of a caller: control requests."""
    lasts_s: float = 0
    """For how long it is given credentials, in seconds; 0 is for ever."""
    expires: float = 0
    """When those that it has end: seconds since 1970; 0 is never."""


class Revoked(msgspec.Struct, frozen=True):
    """What was signed for a user until `at` (seconds since 1970) is good no more."""

    public: str
    role: Role
    at: float
    expires: float = 0
    """When it would have ended anyway; 0 is never."""


class SignedAccount(NamedTuple):
    """An account's claims, once they are signed."""

    public: str
    jwt: str


def all_keys(make: Mapping[str, Key]) -> Keys:
    """The keys of the layout by their names (`key_names`)."""
    return Keys(make["operator"], make["system"], make["mesh"], make["callers"], {role: make[f"role-{role}"] for role in ROLES})


def key_names() -> tuple[str, ...]:
    """What the keys are called, the operator's first; all others are accounts'."""
    return ("operator", "system", "mesh", "callers", *(f"role-{role}" for role in ROLES))


def rendered(
    root: str,
    keys: Keys,
    *,
    made: float,
    ops: Sequence[str],
    revoked: Sequence[Revoked] = (),
    threshold: str = THRESHOLD,
    extra: Sequence[str] = (),
) -> str:
    """The file that each server's configuration includes.

    The same layout gives the same bytes: a server takes no reload that changes its operator, and one that changes the mesh's
    account makes its exports anew, so that answers on their way to callers are lost. So a revoked user stands in its own account.

    Args:
        root: the mesh's.
        made: when the keys were, in seconds since 1970.
        ops: the control requests that some caller may send.
        threshold: how long the server remembers where answers to callers go, as a duration of NATS.
        extra: lines that go before all else.
    """
    accounts = _accounts(Subjects(root), keys, made=made, ops=ops, revoked=revoked, threshold_s=duration_s(threshold))
    operator = signed(keys.operator, keys.operator.public, f"{root}-operator", "operator", _operator(keys), at=made)
    head = f"# Operator and accounts of the mesh {root!r}. Made by `mesh access`: changes by hand are lost with its next run."
    named = {keys.system.public: SYSTEM, keys.mesh.public: mesh_account(Subjects(root))}
    lines = [
        head,
        '# In the server\'s configuration: include "access.conf"; after a change: nats-server --signal reload. No secrets.',
        *extra,
        f"operator: {operator}",
        f"system_account: {keys.system.public}",
        "resolver: MEMORY",
        "resolver_preload: {",
    ]
    for account in accounts:
        lines += [f"  # {named.get(account.public, callers_account(Subjects(root)))}", f"  {account.public}: {account.jwt}"]
    return "\n".join([*lines, "}"]) + "\n"


def user_credentials(keys: Keys, user: SignedUser, own: Key, *, at: float) -> str:
    """The credentials file of a user whose key is `own`.

    Raises:
        BadRequest: it has more agents or control requests than a JWT can name; or a caller has no agents.
    """
    tags = []
    if user.role == "caller":
        if not user.agents:
            raise BadRequest("a caller needs agents: names, or prefixes that end in a dot (`team-a.` is every agent below it)")
        tags += [f"agents:{below(agent)}" for agent in user.agents]
        tags += [f"exact:{agent}" for agent in user.agents if not is_prefix(agent)]
        tags += [f"may:control-{op}" for op in user.ops]
    nats: dict[str, Any] = {"issuer_account": keys.account_of(user.role).public}
    if tags:
        nats["tags"] = tags
    jwt = signed(keys.roles[user.role], own.public, user.name, "user", nats, at=at, expires=user.expires)
    if len(jwt) > LONGEST_JWT:
        raise BadRequest(
            f"{len(user.agents)} agents and {len(user.ops)} control requests make credentials of {len(jwt)} characters, and "
            f"servers take some {LONGEST_JWT}: give a prefix that ends in a dot instead of names, or make several users"
        )
    return credentials(jwt, own.seed)


def template(role: Role, subjects: Subjects) -> dict[str, Any]:
    """What users of a role may do, as a template of its signing key: the role's lists, with a user's tags for its agents."""
    granted = lists(role, subjects, user=NAME, agents=(_STANDING,) if role == "caller" else (), ops=(_OPERATION,))
    # A queue group is refused in a template.
    heard = [subject.partition(" ")[0] for subject in granted.subscribe_allow]
    return {
        "pub": {"allow": [_with_tags(subject) for subject in granted.publish_allow]},
        "sub": {"allow": list(dict.fromkeys(heard))},
        "subs": -1, "data": -1, "payload": -1,
    }  # fmt: skip


def _with_tags(subject: str) -> str:
    subject = subject.replace(f".control-{_OPERATION}.", f".{MAY}.")
    # A direct get honours wildcards in its own subject, so only one that ends in a name is given.
    return subject.replace(_STANDING, EXACT if subject.startswith("$JS.") else AGENTS)


def _operator(keys: Keys) -> dict[str, Any]:
    return {"system_account": keys.system.public}


def _accounts(
    subjects: Subjects, keys: Keys, *, made: float, ops: Sequence[str], revoked: Sequence[Revoked], threshold_s: int
) -> list[SignedAccount]:
    crossed = crossings(subjects, ops)
    exports: list[dict[str, Any]] = [
        {
            "name": one.exported, "subject": one.exported, "type": "service", "response_type": "Singleton",
            "response_threshold": threshold_s * _NANOSECONDS,
        }
        for one in crossed
    ]  # fmt: skip
    exports += [{"name": subject, "subject": subject, "type": "stream"} for subject in STREAMS_OUT]
    imports: list[dict[str, Any]] = [
        {
            "name": one.local, "subject": one.exported, "local_subject": one.local, "account": keys.mesh.public,
            "type": "service", "share": True,
        }
        for one in crossed
    ]  # fmt: skip
    imports += [{"name": subject, "subject": subject, "account": keys.mesh.public, "type": "stream"} for subject in STREAMS_OUT]

    def account(key: Key, name: str, roles: Sequence[Role], more: Mapping[str, Any]) -> SignedAccount:
        scopes = [
            {"kind": "user_scope", "key": keys.roles[role].public, "role": role, "template": template(role, subjects)}
            for role in roles
        ]
        since = {one.public: int(one.at) for one in revoked if one.role in roles}
        nats = {"limits": UNLIMITED, "signing_keys": scopes, "revocations": since, **more}
        changed = max([made, *since.values()])
        return SignedAccount(key.public, signed(keys.operator, key.public, name, "account", nats, at=changed))

    return [
        SignedAccount(
            keys.system.public, signed(keys.operator, keys.system.public, SYSTEM, "account", {"limits": UNLIMITED}, at=made)
        ),
        account(keys.mesh, mesh_account(subjects), INSIDE, {"limits": {**UNLIMITED, **JETSTREAM}, "exports": exports}),
        account(keys.callers, callers_account(subjects), ("caller",), {"imports": imports}),
    ]
