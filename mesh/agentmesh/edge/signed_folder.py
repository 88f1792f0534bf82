"""The folder of `mesh access init --jwt`: the keys that sign, the file for the servers, credentials for each user.

    signed.json    who there is, and who is revoked; no secrets
    access.conf    what each server's configuration includes; no secrets
    keys/NAME.nk   seeds of the operator, of the accounts, of each role's signing key: kept away from servers
    NAME.creds     a user's credentials, for `--creds NAME.creds`

The operator's and the accounts' seeds are needed by nobody who only adds users of a role: that role's key is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from agentmesh.access.jwt import Key, key_of, new_key
from agentmesh.access.layout import THRESHOLD
from agentmesh.access.roles import DEFAULT_OPERATIONS, INSIDE
from agentmesh.access.signed_conf import Keys, Revoked, SignedUser, all_keys, key_names, rendered, user_credentials
from agentmesh.control_operations import GIVEN
from agentmesh.edge.access_folder import (
    CONF,
    SIGNED_STATE,
    checked_root,
    checked_threshold,
    checked_user,
    make_folder,
    must_be_new,
    required,
    same_role,
    write_whole,
)
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BadRequest

VERSION = 1


class SignedState(msgspec.Struct, frozen=True):
    """What `signed.json` holds."""

    root: str
    made: float
    """When the keys were, in seconds since 1970."""
    threshold: str = THRESHOLD
    users: tuple[SignedUser, ...] = ()
    revoked: tuple[Revoked, ...] = ()
    v: int = VERSION


class SignedFolder:
    """The signed users of one mesh, in a folder."""

    def __init__(self, path: Path, kept: SignedState, keys: Keys) -> None:
        """Use `create_signed` or `open_signed`."""
        self.path, self.kept, self._keys = path, kept, keys

    @property
    def conf(self) -> Path:
        """The file for the servers."""
        return self.path / CONF

    @property
    def users(self) -> tuple[SignedUser, ...]:
        """All users, by name."""
        return self.kept.users

    def creds(self, name: str) -> Path:
        """The file with a user's credentials."""
        return self.path / f"{name}.creds"

    def add(
        self,
        name: str,
        role: str,
        agents: Sequence[str] = (),
        ops: Sequence[str] = DEFAULT_OPERATIONS,
        *,
        lasts_s: float = 0,
    ) -> bool:
        """Add a user, or give one that there is other agents, operations and time: that is a new key, and the old one is revoked.
        Returns whether anything is new.

        Args:
            lasts_s: seconds until its credentials end; 0 is never.

        Raises:
            BadRequest: as `AccessFolder.add`; or its agents are more than a JWT can name.
            Unavailable: a file cannot be written.
        """
        plain = checked_user(self.kept.root, name, role, agents, ops)
        known = next((user for user in self.users if user.name == name), None)
        if known is not None:
            same_role(name, known.role, plain.role)
            if (known.agents, known.ops, known.lasts_s) == (plain.agents, plain.ops, lasts_s):
                return False
        made = SignedUser(name=name, role=plain.role, public="", agents=plain.agents, ops=plain.ops, lasts_s=lasts_s)
        self._issue(made, instead_of=known)
        return True

    def remove(self, name: str) -> None:
        """Remove a user: what it has is good no more.

        Raises:
            NotFound: there is none of that name.
            Unavailable: a file cannot be written.
        """
        known = required(self.users, name, self.path)
        self._write([user for user in self.users if user.name != name], revoked=known)
        self.creds(name).unlink(missing_ok=True)

    def rotate(self, name: str) -> None:
        """Give a user another key, for as long as it was given one before; the old one is revoked.

        Raises:
            NotFound: there is none of that name.
            Unavailable: a file cannot be written.
        """
        known = required(self.users, name, self.path)
        self._issue(known, instead_of=known)

    def write(self) -> None:
        """Write the servers' file again.

        Raises:
            Unavailable: it cannot be written.
        """
        self._write(self.kept.users)

    def _issue(self, user: SignedUser, *, instead_of: SignedUser | None) -> None:
        now = SYSTEM.now()
        own = new_key("user", _random())
        expires = now + user.lasts_s if user.lasts_s else 0
        user = msgspec.structs.replace(user, public=own.public, expires=expires)
        # A caller's new credentials are good before any server has read anything; so they are there before the old ones end.
        write_whole(self.creds(user.name), user_credentials(self._keys, user, own, at=now))
        self._write([*(one for one in self.users if one.name != user.name), user], revoked=instead_of)

    def _write(self, users: Sequence[SignedUser], *, revoked: SignedUser | None = None) -> None:
        now, kept = SYSTEM.now(), self.kept
        ended = [one for one in kept.revoked if not one.expires or one.expires > now]
        if revoked is not None:
            ended.append(Revoked(revoked.public, revoked.role, now, revoked.expires))
        by_name = tuple(sorted(users, key=lambda user: user.name))
        self.kept = kept = msgspec.structs.replace(kept, users=by_name, revoked=tuple(ended))
        text = rendered(kept.root, self._keys, made=kept.made, ops=GIVEN, revoked=kept.revoked, threshold=kept.threshold)
        write_whole(self.conf, text)  # before the state, as in `AccessFolder.write`
        write_whole(self.path / SIGNED_STATE, msgspec.json.format(msgspec.json.encode(kept)).decode() + "\n")


def create_signed(path: Path, *, root: str, threshold: str = THRESHOLD) -> SignedFolder:
    """Make the folder and all keys, with a user for each role inside the mesh, named after it.

    Raises:
        BadRequest: it is there already; the root or the threshold is none; or the extra `nkeys` is not installed.
        Unavailable: a file cannot be written.
    """
    must_be_new(path)
    checked_root(root)
    checked_threshold(threshold)
    made = {name: new_key("operator" if name == "operator" else "account", _random()) for name in key_names()}
    make_folder(path)
    make_folder(path / "keys")
    for name, key in made.items():
        write_whole(_seed_file(path, name), key.seed + "\n")
    folder = SignedFolder(path, SignedState(root, float(int(SYSTEM.now())), threshold), all_keys(made))
    for role in INSIDE:
        folder._issue(SignedUser(name=role, role=role, public="", ops=()), instead_of=None)
    return folder


def open_signed(path: Path) -> SignedFolder:
    """The folder as it is.

    Raises:
        BadRequest: what it holds cannot be read.
    """
    try:
        kept = msgspec.json.decode((path / SIGNED_STATE).read_bytes(), type=SignedState)
    except (OSError, msgspec.DecodeError) as error:
        raise BadRequest(f"{path / SIGNED_STATE} is none that `mesh access` has written: {error}") from None
    return SignedFolder(path, kept, all_keys({name: _key(path, name) for name in key_names()}))


def _key(path: Path, name: str) -> Key:
    file = _seed_file(path, name)
    try:
        seed = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise BadRequest(f"the seed {file} cannot be read ({error}); put it back, as nothing can be signed without it") from None
    return key_of(seed, "operator" if name == "operator" else "account")


def _seed_file(path: Path, name: str) -> Path:
    return path / "keys" / f"{name}.nk"


def _random() -> bytes:
    return bytes.fromhex(SYSTEM.token(32))
