"""The verbs of `mesh access`: the users of a mesh and what they may do. They write files; servers take them by a reload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, Globals

if TYPE_CHECKING:
    from agentmesh.access.signed_conf import SignedUser
    from agentmesh.access.static_conf import User
    from agentmesh.edge.access_folder import AccessFolder
    from agentmesh.edge.signed_folder import SignedFolder
    from agentmesh.subjects import Subjects

Folder = Annotated[Path, Parameter(name="--dir", help="Folder of the users' files.")]
UserName = Annotated[str, Parameter(help="The user's name.")]
May = Annotated[list[str] | None, Parameter(negative="", help="Control requests that a caller may send, besides `status`.")]
DEFAULT = Path("access")
SIGNED_RELOAD = "after a change of one that there was, have each server read access.conf again: nats-server --signal reload"
LONGEST_S = 100_000 * 86_400
"""Longest that credentials may be good for; longer is for ever."""
RELOAD = "have each server read it again: nats-server --signal reload"

app = App(name="access", help="Make the users of a mesh, and say what they may do.")


@app.command
def init(*, dir: Folder = DEFAULT, jwt: bool = False, threshold: str | None = None, options: Globals = DEFAULTS) -> int:
    """Make a user for each role of the mesh's own processes, and the file that servers include.

    The addresses in the users' files are those of --nats.

    Parameters
    ----------
    jwt
        Sign users: an operator, accounts and a key for each role, and credentials instead of passwords. Servers then learn of no
        new user, only of those that are removed or rotated.
    threshold
        Longest time until an answer to a caller, as 36h; 24h by default.
    """
    from agentmesh.access.layout import THRESHOLD
    from agentmesh.edge.access_folder import create
    from agentmesh.edge.signed_folder import create_signed
    from agentmesh_client.cli.output import Printer

    if jwt:
        signed = create_signed(dir, root=options.root or "mesh", threshold=threshold or THRESHOLD)
        names = ", ".join(signed.creds(user.name).name for user in signed.users)
        Printer(options).note(
            f'{dir} has {names}; in each server\'s configuration: include "{signed.conf}". Keep {dir}/keys away from servers and '
            "from users, in two places: without them nothing can be signed, and who has them can be any user"
        )
        return exits.OK
    folder = create(
        dir, root=options.root or "mesh", servers=options.nats or "nats://127.0.0.1:4222", threshold=threshold or THRESHOLD
    )
    names = ", ".join(f"{user.name}.url" for user in folder.users)
    Printer(options).note(f'{dir} has {names}; in each server\'s configuration: include "{folder.conf}"')
    return exits.OK


@app.command
def add(
    name: UserName,
    role: str,
    /,
    *agents: str,
    may: May = None,
    expires: str | None = None,
    dir: Folder = DEFAULT,
    options: Globals = DEFAULTS,
) -> int:
    """Add a user, or give one other agents.

    Parameters
    ----------
    role
        node, supervisor, setup, operator, observer, or caller.
    agents
        Whom a caller may ask: names, and prefixes that end in a dot (team-a. is every agent below it).
    expires
        How long a signed user's credentials are good, as 30d or 12h; without it for ever.
    """
    from agentmesh.access.roles import DEFAULT_OPERATIONS
    from agentmesh.edge.access_folder import AccessFolder, changing
    from agentmesh.errors import BadRequest
    from agentmesh_client.cli.output import Printer

    ops = tuple(dict.fromkeys((*DEFAULT_OPERATIONS, *(op for given in may or () for op in given.split(",")))))
    printer = Printer(options)
    with changing(dir):
        folder = opened(dir)
        if not isinstance(folder, AccessFolder):
            if folder.add(name, role, agents, ops, lasts_s=_seconds(expires)):
                creds = folder.creds(name)
                printer.note(f"{name} connects with {creds} (--creds {creds}), at once; {SIGNED_RELOAD}")
            else:
                printer.note(f"{name} is there as it is asked for; mesh access rotate {name} gives it new credentials")
            return exits.OK
        if expires is not None:
            raise BadRequest("a password does not expire: --expires is for signed users (mesh access init --jwt)")
        if folder.add(name, role, agents, ops):
            printer.note(f"{name} connects with {folder.url_file(name)} (--nats @{folder.url_file(name)}); {RELOAD}")
        else:
            printer.note(f"{name} is there as it is asked for")
    return exits.OK


@app.command
def remove(name: UserName, /, *, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Remove a user. Servers cut it off when they read the file again."""
    from agentmesh.edge.access_folder import changing
    from agentmesh_client.cli.output import Printer

    with changing(dir):
        opened(dir).remove(name)
    Printer(options).note(f"{name} is gone; {RELOAD}")
    return exits.OK


@app.command
def rotate(name: UserName, /, *, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Give a user another password, or other credentials. Who is connected is cut off at the reload, and reads its file again."""
    from agentmesh.edge.access_folder import AccessFolder, changing
    from agentmesh_client.cli.output import Printer

    with changing(dir):
        folder = opened(dir)
        folder.rotate(name)
    new = folder.url_file(name) if isinstance(folder, AccessFolder) else folder.creds(name)
    Printer(options).note(f"{new} has what is new; to have what it was before refused, {RELOAD}")
    return exits.OK


@app.command
def refresh(*, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Write the servers' file again, with the lists of this build: after an upgrade. Users stay as they are."""
    from agentmesh.edge.access_folder import changing
    from agentmesh_client.cli.output import Printer

    with changing(dir):
        folder = opened(dir)
        folder.write()
    Printer(options).note(f"{folder.conf} has the lists of this build; {RELOAD}")
    return exits.OK


@app.command(name="list")
def list_users(*, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """List the users, with what they may do, and how far the mesh knows who sends their mail."""
    from agentmesh.subjects import Subjects
    from agentmesh_client.cli.output import Printer

    folder = opened(dir)
    subjects = Subjects(folder.kept.root)

    def row(user: UserShown) -> list[str]:
        return [user.name, user.role, ", ".join(user.agents) or "-", ", ".join(user.ops) or "-", user.expires or "-", user.mail]

    shown = [
        UserShown(user.name, user.role, user.agents, user.ops, _end_of(user), _mail_of(user, subjects)) for user in folder.users
    ]
    Printer(options).table(shown, ("NAME", "ROLE", "AGENTS", "MAY", "EXPIRES", "MAIL"), row, nothing="there are no users")
    return exits.OK


class UserShown(msgspec.Struct, frozen=True):
    """A user as it is listed: without its password's hash."""

    name: str
    role: str
    agents: tuple[str, ...]
    ops: tuple[str, ...]
    expires: str | None
    """When a signed user's credentials end; None: never."""
    mail: str
    """`verified`, `unverified` or `none`."""


def opened(path: Path) -> AccessFolder | SignedFolder:
    """The folder of users as it is, of either kind. Raises as `open_folder`, `open_signed`."""
    from agentmesh.edge.access_folder import SIGNED_STATE, open_folder
    from agentmesh.edge.signed_folder import open_signed

    return open_signed(path) if (path / SIGNED_STATE).exists() else open_folder(path)


def _seconds(text: str | None) -> float:
    """How long `--expires` says.

    Raises:
        BadRequest: it says nothing that is a time.
    """
    from agentmesh.errors import BadRequest
    from agentmesh.times import duration_s

    if text is None:
        return 0
    try:
        found = duration_s(text, "dhm")
    except BadRequest:
        found = 0
    if not 0 < found <= LONGEST_S:
        raise BadRequest(f"{text!r} is no time for --expires: write 30d, 12h or 90m, and at most {LONGEST_S // 86_400} days")
    return found


def _end_of(user: User | SignedUser) -> str | None:
    from agentmesh.access.static_conf import User
    from agentmesh.wire import format_time

    return None if isinstance(user, User) or not user.expires else format_time(user.expires)


def _mail_of(user: User | SignedUser, subjects: Subjects) -> str:
    """Whether mail of this user bears its name: what is published straight to an agent's inbox bears none."""
    from agentmesh.access.roles import lists

    granted = lists(user.role, subjects, user=user.name, agents=user.agents, ops=user.ops).publish_allow
    if user.role == "caller":
        return "verified"
    return "unverified" if subjects.inbox(">") in granted else "none"
