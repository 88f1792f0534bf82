"""An agent's files on one machine: Claude Code's home and configuration, its working directory, its transcripts.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentmesh_node.backends.claude.failures import refused

COST = "cost-state"
"""Type of the entries in which Claude Code remembers the cost of a session. They are left out, so that each run counts from zero:
whether a transcript has the newest one depends on when its node was lost."""


class Files:
    """The files of one agent. Whatever must last is in the mesh: any of these files may be gone."""

    def __init__(self, directory: str, cwd: str | None) -> None:
        self._root = Path(directory)
        self.home = self._root / "home"
        self.config = self._root / "config"
        self.cwd = Path(cwd) if cwd is not None else self._root / "work"
        self._own_cwd = cwd is None

    def prepare(self) -> None:
        """Make missing directories, readable by this user alone.

        Raises:
            BackendError: the directory is another user's, or cannot be made; or the working directory that the options name
                does not exist. `details["reason"]` is `no_directory`.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            # In a directory for temporary files another user could have made it first.
            if self._root.stat().st_uid != os.getuid():
                raise refused(
                    "no_directory", f"{self._root} belongs to another user; set MESH_FILES to a directory of this node's"
                )
            for path in (self.home, self.config, *((self.cwd,) if self._own_cwd else ())):
                path.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise refused("no_directory", f"{self._root} cannot be made: {error.strerror}") from None
        if not self.cwd.is_dir():
            raise refused("no_directory", f"the working directory {self.cwd} does not exist on this node")

    def write(self, project: str, session: str, parts: Mapping[str, Sequence[Any]]) -> None:
        """Write a session where Claude Code looks for it. `parts` has the entries of its transcripts by subpath; the main
        transcript has an empty subpath."""
        for subpath, entries in parts.items():
            path = self._transcript(project, session, subpath)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(path, "w", encoding="utf-8", opener=_private) as file:
                file.writelines(json.dumps(e, separators=(",", ":")) + "\n" for e in entries if e.get("type") != COST)

    def renew(self, project: str, session: str) -> bool:
        """Prepare the session's main transcript, if it is here, for another run. Returns whether it is here."""
        entries = self.read(project, session)
        if entries is not None and any(entry.get("type") == COST for entry in entries):
            self.write(project, session, {"": entries})
        return entries is not None

    def read(self, project: str, session: str) -> list[Any] | None:
        """The entries of the session's main transcript; None if it is not here, or not whole."""
        try:
            with self._transcript(project, session, "").open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except (FileNotFoundError, ValueError):
            return None

    def forget(self, project: str, sessions: Iterable[str]) -> None:
        """Remove the files of these sessions."""
        for session in sessions:
            self._transcript(project, session, "").unlink(missing_ok=True)
            shutil.rmtree(self._transcript(project, session, "").with_suffix(""), ignore_errors=True)

    def remove(self) -> None:
        """Remove all but the working directory."""
        for path in (self.home, self.config):
            shutil.rmtree(path, ignore_errors=True)

    def _transcript(self, project: str, session: str, subpath: str) -> Path:
        directory = self.config / "projects" / project
        path = directory / f"{session}/{subpath}.jsonl" if subpath else directory / f"{session}.jsonl"
        if directory not in Path(os.path.normpath(path)).parents:
            raise ValueError(f"a transcript cannot lie at {path}")
        return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
