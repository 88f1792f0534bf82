"""A librarian: answers questions about the files of a directory, by listing, searching and reading them.

    export ANTHROPIC_API_KEY=...
    mesh up examples/librarian/librarian.py
    mesh start librarian --kind Librarian
    mesh ask librarian "Which guarantees does this project give when a node dies?"

The directory is this repository, unless the node's variable LIBRARIAN_ROOT names another; the option `folder` narrows it. The
tools never leave it, whatever the model asks for. A turn makes many calls; each answer of the model and each result of a tool is
in the journal before the next call is made, so killing the node in the middle costs one call at most.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from shelf import Shelf

from agentmesh import Agent, Idle, Init, tool
from agentmesh.backend import Response
from agentmesh.errors import MeshError
from agentmesh.tools import ToolCall, ToolError

ROOT = Path(os.environ.get("LIBRARIAN_ROOT") or Path(__file__).parents[2])
SYSTEM = """You answer questions about a directory of files. Look before you answer: list, search and read. Name the files, and
the lines in them, that your answer rests on. If they do not answer the question, say so; never guess. Be brief."""

type Line = Annotated[int, msgspec.Meta(ge=1)]


class Desk(msgspec.Struct):
    """What the librarian remembers besides the conversation."""

    folder: str = "."
    answered: int = 0


class Librarian(Agent[Desk]):
    """Options: `folder` (within the root), `model`, and `max_tokens`."""

    backend = "anthropic"

    async def init_agent(self, options: dict[str, Any]) -> Init[Desk]:
        model: dict[str, Any] = {name: options[name] for name in ("model", "max_tokens") if name in options}
        return Init(Desk(folder=options.get("folder", ".")), backend={"system": SYSTEM, **model})

    def activate_agent(self, state: Desk) -> None:
        # Not state: each process that takes the agent up makes its own.
        self.shelf = Shelf(ROOT, state.folder)

    @tool(effect="pure")
    def list_files(self, pattern: str = "**/*") -> list[str]:
        """List files, at most 500.

        Args:
            pattern: a glob relative to the directory, such as `docs/**/*.md`.
        """
        return self.shelf.names(pattern)

    @tool(effect="pure")
    def search(self, text: str, pattern: str = "**/*") -> str:
        """Find lines that contain a text, whatever its case. Returns at most 100, as `file:line: text`.

        Args:
            text: what to look for; not a regular expression.
            pattern: a glob of the files to look in.
        """
        return "\n".join(self.shelf.search(text, pattern)) or "no line contains it"

    @tool(effect="pure")
    def read_file(self, path: str, first: Line = 1, last: Line = 400) -> str:
        """Read lines of a file, numbered.

        Args:
            path: relative to the directory, as `list_files` gives it.
            first: number of the first line.
            last: number of the last line.
        """
        if last < first:
            raise ToolError(f"the last line ({last}) comes before the first ({first})")
        return self.shelf.read(path, first, last)

    @tool(effect="idempotent")
    def leave_note(self, title: str, text: str, call: ToolCall) -> str:
        """Leave a note for the people who look after the files: an error or a gap that was found in them.

        Args:
            title: one line.
            text: in Markdown.
        """
        # One call, one file: made again after a crash it writes the same file again.
        return self.shelf.note(call.key, title, text)

    tools = (list_files, search, read_file, leave_note)

    async def handle_response(self, ref: str, response: Response, state: Desk) -> Idle[Desk]:
        return Idle(msgspec.structs.replace(state, answered=state.answered + 1))

    async def handle_error(self, ref: str, error: MeshError, state: Desk) -> Idle[Desk]:
        return Idle(state)
