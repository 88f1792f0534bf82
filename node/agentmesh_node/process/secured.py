"""The users of `mesh up --secure`: a folder beside the store, which the server includes (docs/security.md)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agentmesh.access.layout import mesh_account
from agentmesh.access.roles import Role
from agentmesh.edge.access_folder import STATE, AccessFolder, changing, create, open_folder
from agentmesh.edge.login import Login
from agentmesh.errors import BadRequest
from agentmesh.subjects import Subjects
from agentmesh_node.process.address import MeshAddress

FOLDER = "access"
NO_ADDRESS = "nats://127.0.0.1:4222"
"""Stands in the users' files until the server has its port."""


class SecuredStore:
    """The data directory of a mesh whose server knows its users."""

    def __init__(self, data: Path, root: str) -> None:
        """
        Raises:
            BadRequest: the users are another mesh's; or what is stored here is of a mesh without users.
            Unavailable: bcrypt is not installed, or a file cannot be written.
        """
        path = data / FOLDER
        with changing(path):
            known = (path / STATE).exists()
            self.folder: AccessFolder = open_folder(path) if known else create(path, root=root, servers=NO_ADDRESS)
        if self.folder.kept.root != root:
            raise BadRequest(f"{path} has the users of the mesh {self.folder.kept.root!r}; choose another directory (--data)")
        stored = data / "nats" / "jetstream"
        account = mesh_account(Subjects(root))
        if any((stored / "$G").glob("streams/*")) and not (stored / account).exists():
            raise BadRequest(
                f"{data} holds a mesh without users. It goes on with them once its folder has the account's name; while it does "
                f"not run: mv '{stored}/$G' '{stored}/{account}'"
            )
        with changing(path):
            self.folder.write()  # the server is about to read it: it has the lists of this build then

    @property
    def include(self) -> str:
        """The file of the users, from where the server's configuration lies: `include` takes no other path."""
        return f"../{FOLDER}/{self.folder.conf.name}"

    def listens(self, url: str) -> None:
        """Have the users' files name the server's address.

        Raises:
            Unavailable: a file cannot be written.
        """
        with changing(self.folder.path):
            self.folder.move(url)

    def address(self, role: Role, where: MeshAddress, url: str) -> MeshAddress:
        """`where` for a process with this role."""
        login = Login(url_file=str(self.folder.url_file(role)))
        return msgspec.structs.replace(where, servers=[url], login=login)
