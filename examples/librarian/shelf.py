"""The files that the librarian may see: a directory, and nothing outside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from agentmesh.tools import ToolError

LISTED = 500
FOUND = 100
LARGEST = 1 << 20
"""Size in bytes of the largest file that is searched or read."""
NOTES = "librarian-notes"


class Shelf:
    """A directory below `root`. Paths that lead out of it, through links or otherwise, name no file; nor do hidden ones."""

    def __init__(self, root: Path, folder: str = ".") -> None:
        """
        Raises:
            ToolError: the folder is not below the root.
        """
        top = root.resolve()
        self.directory = (top / folder).resolve()
        if not self.directory.is_relative_to(top):
            raise ToolError(f"{folder} is not below the librarian's root")

    def names(self, pattern: str) -> list[str]:
        """Files that match a glob, sorted."""
        return list(islice((str(path.relative_to(self.directory)) for path in self._files(pattern)), LISTED))

    def search(self, text: str, pattern: str) -> list[str]:
        """Lines that contain `text`."""
        if not text.strip():
            raise ToolError("search for something")
        return list(islice(self._lines_with(text.lower(), pattern), FOUND))

    def read(self, path: str, first: int, last: int) -> str:
        """Lines of a file, numbered from 1."""
        lines = self._text(self._inside(path)).splitlines()
        chosen = lines[first - 1 : last]
        if not chosen:
            raise ToolError(f"{path} has {len(lines)} lines")
        more = f"\n[{len(lines) - last} more lines]" if last < len(lines) else ""
        return "\n".join(f"{number}: {line}" for number, line in enumerate(chosen, first)) + more

    def note(self, key: str, title: str, text: str) -> str:
        """Write a note; the same key writes the same file."""
        folder = self.directory / NOTES
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.md"
        path.write_text(f"# {title}\n\n{text}\n")
        return str(path.relative_to(self.directory))

    def _files(self, pattern: str) -> Iterator[Path]:
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise ToolError("a pattern is relative to the directory, and does not lead out of it")
        for path in sorted(self.directory.glob(pattern)):
            if self._visible(path) and path.is_file():
                yield path

    def _visible(self, path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(self.directory).parts)
        return not hidden and path.resolve().is_relative_to(self.directory)

    def _inside(self, name: str) -> Path:
        path = self.directory / name
        if (
            not path.resolve().is_relative_to(self.directory)
            or ".." in path.parts
            or not self._visible(path)
            or not path.is_file()
        ):
            raise ToolError(f"there is no file {name}; list_files says which there are")
        return path

    def _lines_with(self, text: str, pattern: str) -> Iterator[str]:
        for path in self._files(pattern):
            if path.stat().st_size > LARGEST:
                continue
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if text in line.lower():
                    yield f"{path.relative_to(self.directory)}:{number}: {line.strip()[:200]}"

    def _text(self, path: Path) -> str:
        if path.stat().st_size > LARGEST:
            raise ToolError(f"{path.name} is too large to read")
        try:
            return path.read_text()
        except UnicodeDecodeError:
            raise ToolError(f"{path.name} is not text") from None
