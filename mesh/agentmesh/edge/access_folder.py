"""The folder in which `mesh access` keeps the users of a mesh: what is known of them, the file for the server, a URL for each.

    STATE      who there is, with hashed passwords; all else is made of it
    CONF       what each server's configuration includes
    NAME.url   the address with user and password, for `--nats @NAME.url`

Every file is replaced as a whole, so that a server that reads in that moment reads the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from agentmesh.access import layout
from agentmesh.access.layout import THRESHOLD
from agentmesh.access.roles import DEFAULT_OPERATIONS, INSIDE, ROLES, Role, lists
from agentmesh.access.static_conf import User, rendered
from agentmesh.control_operations import operation
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BadRequest, NotFound, Unavailable
from agentmesh.names import root_token, token
from agentmesh.subjects import Subjects
from agentmesh.times import duration_s

STATE = "users.json"
SIGNED_STATE = "signed.json"
"""Of a folder whose users are signed (`agentmesh.edge.signed_folder`)."""
CONF = "access.conf"
COST = 5
"""bcrypt's, which the server pays at each connection: 3 ms at 5, 120 ms at 11. The passwords are random, so no more is needed."""
VERSION = 1
SHORTEST_S = 600
"""Shortest threshold, in seconds: the default of an agent's watchdog, so that an answer in time finds its way."""


class AccessState(msgspec.Struct, frozen=True):
    """What `users.json` holds."""

    root: str
    servers: str
    """Where users connect to: URLs, separated by commas."""
    threshold: str = THRESHOLD
    users: tuple[User, ...] = ()
    v: int = VERSION


class AccessFolder:
    """The users of one mesh, in a folder."""

    def __init__(self, path: Path, kept: AccessState) -> None:
        """Use `create` or `open_folder`."""
        self.path = path
        self.kept = kept

    @property
    def conf(self) -> Path:
        """The file for the server."""
        return self.path / CONF

    @property
    def users(self) -> tuple[User, ...]:
        """All users, by name."""
        return tuple(sorted(self.kept.users, key=lambda user: user.name))

    def url_file(self, name: str) -> Path:
        """The file with a user's address."""
        return self.path / f"{name}.url"

    def url(self, name: str) -> str:
        """A user's address, with its password."""
        return self.url_file(name).read_text().strip()

    # --- changes ------------------------------------------------------------------------------------------------------
    def add(self, name: str, role: str, agents: Sequence[str] = (), ops: Sequence[str] = DEFAULT_OPERATIONS) -> bool:
        """Add a user, or give one that there is other agents and operations; it keeps its password. Returns whether anything is
        new.

        Raises:
            BadRequest: there is no such role; the name is none, or has another role; agents or operations are wrong.
            Unavailable: bcrypt is not installed, or a file cannot be written.
        """
        made = checked_user(self.kept.root, name, role, agents, ops)
        known = self._known(name)
        if known is None:
            self._write_users([*self.kept.users, self._with_password(made)])
            return True
        same_role(name, known.role, made.role)
        changed = msgspec.structs.replace(made, hashed=known.hashed)
        if changed == known:
            return False
        self._write_users([changed if user.name == name else user for user in self.kept.users])
        return True

    def remove(self, name: str) -> None:
        """Remove a user.

        Raises:
            NotFound: there is none of that name.
            Unavailable: a file cannot be written.
        """
        required(self.kept.users, name, self.path)
        self._write_users([user for user in self.kept.users if user.name != name])
        self.url_file(name).unlink(missing_ok=True)

    def rotate(self, name: str) -> None:
        """Give a user another password.

        Raises:
            NotFound: there is none of that name.
            Unavailable: bcrypt is not installed, or a file cannot be written.
        """
        new = self._with_password(required(self.kept.users, name, self.path))
        self._write_users([new if user.name == name else user for user in self.kept.users])

    def move(self, servers: str) -> None:
        """Have all users connect to these servers; they keep their passwords.

        Raises:
            BadRequest: an address is none.
            Unavailable: a file cannot be read or written.
        """
        if servers == self.kept.servers:
            return
        for user in self.users:
            try:
                password = self.url(user.name).partition("@")[0].rpartition(":")[2]
            except OSError as error:
                raise Unavailable(f"{self.url_file(user.name)} cannot be read: {error.strerror}") from None
            self._write_url(user.name, password, servers)
        self.kept = msgspec.structs.replace(self.kept, servers=servers)
        self.write()

    # --- parts --------------------------------------------------------------------------------------------------------
    def _known(self, name: str) -> User | None:
        return next((user for user in self.kept.users if user.name == name), None)

    def _with_password(self, user: User) -> User:
        """`user` with a new password, which stands in its file."""
        password = SYSTEM.token(16)
        found = msgspec.structs.replace(user, hashed=_hashed(password))
        self._write_url(user.name, password, self.kept.servers)
        return found

    def _write_url(self, name: str, password: str, servers: str) -> None:
        urls = [_with_login(url, name, password) for url in servers.split(",")]
        write_whole(self.url_file(name), ",".join(urls) + "\n")

    def _write_users(self, users: Sequence[User]) -> None:
        self.kept = msgspec.structs.replace(self.kept, users=tuple(sorted(users, key=lambda user: user.name)))
        self.write()

    def write(self) -> None:
        """Write what all users share."""
        kept = self.kept
        # The state last: a change that was cut off before it can be given once more, and mends the rest. A user that the state
        # did not know any more, and the server's file did, could not be removed.
        write_whole(self.conf, rendered(kept.root, kept.users, threshold=kept.threshold, name=CONF))
        write_whole(self.path / STATE, msgspec.json.format(msgspec.json.encode(kept)).decode() + "\n")


class Named(Protocol):
    """A user of either kind."""

    @property
    def name(self) -> str: ...


def required[U: Named](users: Sequence[U], name: str, path: Path) -> U:
    """The user of that name in a folder.

    Raises:
        NotFound: there is none.
    """
    known = next((user for user in users if user.name == name), None)
    if known is None:
        raise NotFound(f"there is no user {name!r} in {path}; see `mesh access list`")
    return known


def same_role(name: str, known: Role, wanted: Role) -> None:
    """Refuse another role for a user that there is.

    Raises:
        BadRequest: it is another.
    """
    if known != wanted:
        raise BadRequest(f"{name!r} is a user with the role {known}; remove it first: `mesh access remove {name}`")


def create(path: Path, *, root: str, servers: str, threshold: str = THRESHOLD) -> AccessFolder:
    """Make the folder, with a user for each role inside the mesh, named after it.

    Raises:
        BadRequest: it is there already; or the root or a server's address is none.
        Unavailable: bcrypt is not installed, or a file cannot be written.
    """
    must_be_new(path)
    checked_root(root)
    checked_threshold(threshold)
    for url in servers.split(","):
        _with_login(url, "user", "password")
    _hashed("")  # what is missing is said before anything is written
    make_folder(path)
    folder = AccessFolder(path, AccessState(root, servers, threshold))
    folder._write_users([folder._with_password(User(role, role, "", (), ())) for role in INSIDE])
    return folder


def open_folder(path: Path) -> AccessFolder:
    """The folder as it is.

    Raises:
        NotFound: it is none.
        BadRequest: what it holds cannot be read.
    """
    try:
        kept = msgspec.json.decode((path / STATE).read_bytes(), type=AccessState)
    except FileNotFoundError:
        raise NotFound(f"{path} has no users; make them with `mesh access init`, or name the folder with --dir") from None
    except OSError as error:
        raise BadRequest(f"{path / STATE} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"{path / STATE} is none that `mesh access` has written: {error}") from None
    return AccessFolder(path, kept)


def checked_user(root: str, name: str, role: str, agents: Sequence[str], ops: Sequence[str]) -> User:
    """A user without a password.

    Raises:
        BadRequest: there is no such role; the name is none; agents or operations are wrong.
    """
    token(name, "user")
    if name.startswith("_"):
        raise BadRequest(f"{name!r} begins with _, as only names of the mesh do")
    known: Role | None = next((one for one in ROLES if one == role), None)
    if known is None:
        raise BadRequest(f"there is no role {role!r}; there are: {', '.join(ROLES)}")
    if known != "caller" and agents:
        raise BadRequest(f"only a caller has agents; a {known} has none")
    allowed = tuple(operation(op).name for op in ops) if known == "caller" else ()
    user = User(name, known, "", tuple(agents), allowed)
    lists(known, Subjects(root), user=name, agents=user.agents, ops=user.ops)
    return user


def _hashed(password: str) -> str:
    try:
        import bcrypt  # noqa: PLC0415 - an extra
    except ImportError:
        raise Unavailable("passwords are hashed by an extra: install agentmesh[access]") from None
    found: bytes = bcrypt.hashpw(password.encode(), bcrypt.gensalt(COST, prefix=b"2a"))
    return found.decode()


def _with_login(url: str, user: str, password: str) -> str:
    """A server's address with a login.

    Raises:
        BadRequest: it is none, or has a login already.
    """
    scheme, mark, rest = url.strip().partition("://")
    if not mark:
        scheme, rest = "nats", url.strip()
    if scheme not in ("nats", "tls") or not rest or "@" in rest:
        raise BadRequest(f"{url!r} is no address of a server without a user: write nats://HOST:4222, or tls://HOST:4222")
    return f"{scheme}://{user}:{password}@{rest}"


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keep a folder of users for one change, so that none is lost to another that is made at the same time.

    Raises:
        Unavailable: another process changes it.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield  # opening its state says what is the matter
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(f"another process changes the users in {path} now; give the command again") from None
        yield
    finally:
        os.close(held)


def checked_root(root: str) -> None:
    """Refuse a root of which no accounts can be named.

    Raises:
        BadRequest: it is no root, or its account would be the server's own.
    """
    if root_token(root).upper() == layout.SYSTEM:
        raise BadRequest(f"the account of a mesh {root!r} would be that of the server itself: choose another root (--root)")


def checked_threshold(text: str) -> str:
    """A time that the server's configuration takes.

    Raises:
        BadRequest: it is none, or shorter than `SHORTEST_S`.
    """
    try:
        enough = duration_s(text) >= SHORTEST_S
    except BadRequest:
        enough = False
    if not enough:
        raise BadRequest(f"{text!r} is no time for --threshold: write 24h, 90m or 1h30m, and at least {SHORTEST_S // 60} minutes")
    return text


def must_be_new(path: Path) -> None:
    """Refuse a folder that has users.

    Raises:
        BadRequest: it has.
    """
    if (path / STATE).exists() or (path / SIGNED_STATE).exists():
        raise BadRequest(f"{path} has users already; see `mesh access list`, or name another folder")


def make_folder(path: Path) -> None:
    """Make it, if it is not there; only its owner may look into it.

    Raises:
        Unavailable: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the folder {path} cannot be made: {error.strerror}") from None


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole; only its owner may read it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from None
