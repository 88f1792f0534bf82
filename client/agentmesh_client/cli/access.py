"""The verbs of `mesh access`: the users of a mesh and what they may do. They write files; servers take them by a reload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import App, Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, Globals

if TYPE_CHECKING:
    from agentmesh.access.static_conf import User
    from agentmesh.subjects import Subjects

Folder = Annotated[Path, Parameter(name="--dir", help="Folder of the users' files.")]
UserName = Annotated[str, Parameter(help="The user's name.")]
May = Annotated[list[str] | None, Parameter(negative="", help="Control requests that a caller may send, besides `status`.")]
DEFAULT = Path("access")
RELOAD = "have each server read it again: nats-server --signal reload"

app = App(name="access", help="Make the users of a mesh, and say what they may do.")


@app.command
def init(*, dir: Folder = DEFAULT, threshold: str | None = None, options: Globals = DEFAULTS) -> int:
    """Make a user for each role of the mesh's own processes, and the file that servers include.

    The addresses in the users' files are those of --nats.

    Parameters
    ----------
    threshold
        Longest time until an answer to a caller, as 36h; 24h by default.
    """
    from agentmesh.access.layout import THRESHOLD
    from agentmesh.edge.access_folder import create
    from agentmesh_client.cli.output import Printer

    folder = create(
        dir, root=options.root or "mesh", servers=options.nats or "nats://127.0.0.1:4222", threshold=threshold or THRESHOLD
    )
    names = ", ".join(f"{user.name}.url" for user in folder.users)
    Printer(options).note(f'{dir} has {names}; in each server\'s configuration: include "{folder.conf}"')
    return exits.OK


@app.command
def add(name: UserName, role: str, /, *agents: str, may: May = None, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Add a user, or give one other agents.

    Parameters
    ----------
    role
        node, supervisor, setup, operator, observer, or caller.
    agents
        Whom a caller may ask: names, and prefixes that end in a dot (team-a. is every agent below it).
    """
    from agentmesh.access.roles import DEFAULT_OPERATIONS
    from agentmesh.edge.access_folder import open_folder
    from agentmesh_client.cli.output import Printer

    folder = open_folder(dir)
    ops = tuple(dict.fromkeys((*DEFAULT_OPERATIONS, *(op for given in may or () for op in given.split(",")))))
    printer = Printer(options)
    if folder.add(name, role, agents, ops):
        printer.note(f"{name} connects with {folder.url_file(name)} (--nats @{folder.url_file(name)}); {RELOAD}")
    else:
        printer.note(f"{name} is there as it is asked for")
    return exits.OK


@app.command
def remove(name: UserName, /, *, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Remove a user. Servers cut it off when they read the file again."""
    from agentmesh.edge.access_folder import open_folder
    from agentmesh_client.cli.output import Printer

    open_folder(dir).remove(name)
    Printer(options).note(f"{name} is gone; {RELOAD}")
    return exits.OK


@app.command
def rotate(name: UserName, /, *, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """Give a user another password. Who is connected is cut off at the reload, and reads the file of its address again."""
    from agentmesh.edge.access_folder import open_folder
    from agentmesh_client.cli.output import Printer

    folder = open_folder(dir)
    folder.rotate(name)
    Printer(options).note(f"{folder.url_file(name)} has the new password; {RELOAD}")
    return exits.OK


@app.command(name="list")
def list_users(*, dir: Folder = DEFAULT, options: Globals = DEFAULTS) -> int:
    """List the users, with what they may do, and how far the mesh knows who sends their mail."""
    from agentmesh.edge.access_folder import open_folder
    from agentmesh.subjects import Subjects
    from agentmesh_client.cli.output import Printer

    folder = open_folder(dir)
    subjects = Subjects(folder.kept.root)

    def row(user: UserShown) -> list[str]:
        return [user.name, user.role, ", ".join(user.agents) or "-", ", ".join(user.ops) or "-", user.mail]

    shown = [UserShown(user.name, user.role, user.agents, user.ops, _mail_of(user, subjects)) for user in folder.users]
    Printer(options).table(shown, ("NAME", "ROLE", "AGENTS", "MAY", "MAIL"), row, nothing="there are no users")
    return exits.OK


class UserShown(NamedTuple):
    """A user as it is listed: without its password's hash."""

    name: str
    role: str
    agents: tuple[str, ...]
    ops: tuple[str, ...]
    mail: str
    """`verified`, `unverified` or `none`."""


def _mail_of(user: User, subjects: Subjects) -> str:
    """Whether mail of this user bears its name: what is published straight to an agent's inbox bears none."""
    from agentmesh.access.roles import lists

    granted = lists(user.role, subjects, user=user.name, agents=user.agents, ops=user.ops).publish_allow
    if user.role == "caller":
        return "verified"
    return "unverified" if any(subject.startswith(subjects.inbox("")) for subject in granted) else "none"
