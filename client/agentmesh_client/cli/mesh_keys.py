"""The `Mesh-Key` of a request as a command is given it: in a file or a variable, so that no list of processes shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

VARIABLE = "MESH_KEY"
KEY_BYTES = 24

MeshKey = Annotated[
    str | None,
    Parameter(
        help="The request's own key (Mesh-Key), as @FILE; else MESH_KEY. Who has it not can neither poll nor cancel the request. "
        "`ask` and `tell` make the file (0600), with a random key, if it is not there."
    ),
]


def key_in(given: str | None, *, make: bool = False) -> str | None:
    """The key that an option or the variable `MESH_KEY` gives: as it is, or the content of `@FILE`. None: neither gives one.

    `make`: a file that is not there is made, with a random key.

    Raises:
        BadRequest: it can be no key, or the file can be neither read nor made.
    """
    from agentmesh.edge.clock import SYSTEM
    from agentmesh.errors import BadRequest
    from agentmesh.keys import digest_of

    text = given if given is not None else os.environ.get(VARIABLE)
    if not text:
        return None
    if text.startswith("@"):
        file = Path(text[1:])
        try:
            if make and not file.exists():
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
                    made.write(SYSTEM.token(KEY_BYTES) + "\n")
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"the request's key cannot be read from {str(file)!r}: {error}") from None
    digest_of(text)
    return text
