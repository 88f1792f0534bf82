"""Versions of the code of agents: a node tells one for each kind, and a turn is handed on within the version it began with
(docs/design/054-new-nodes-first-and-one-code-version.md).

A version is a hash of the Python source files of the package in which the kind's module lies, from the top of that package down:
names relative to it and contents. Paths, times and byte code are no part of it, so the same code has the same version on each
machine. Of a module in no package it is the file alone: a folder of scripts holds other things than this agent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

log = logging.getLogger("agentmesh.node")

MOST_FILES = 5000
MOST_BYTES = 32 << 20
"""Bounds of what is read of one package; beyond them its kinds have no version."""
_LENGTH = 12
_PASSED_OVER = ("__pycache__", "node_modules", "site-packages")


def code_versions(kinds: Mapping[str, type]) -> dict[str, str]:
    """The version of the code of each of `kinds`, 12 hexadecimal digits; one that cannot be told is left out.

    It reads files: run it in a thread.
    """
    known: dict[Path, str | None] = {}
    found: dict[str, str] = {}
    for kind, cls in sorted(kinds.items()):
        module = sys.modules.get(cls.__module__)
        source = _source(module) if module is not None else None
        if source is None:
            continue
        if source not in known:
            known[source] = _version(kind, source)
        if (version := known[source]) is not None:
            found[kind] = version
    return found


def _source(module: ModuleType) -> Path | None:
    """The top folder of the module's package, or its file alone; None if it has no file, as what is typed at a prompt."""
    if not getattr(module, "__file__", None):
        return None
    file = Path(str(module.__file__)).resolve()
    levels = 0 if module.__name__ == "__main__" else module.__name__.count(".") + (file.stem == "__init__")
    if levels:
        return file.parents[levels - 1]
    return file.parent if (file.parent / "__init__.py").is_file() else file


def _version(kind: str, source: Path) -> str | None:
    digest = hashlib.sha256()
    files = size = 0
    try:
        for file in sorted(_files(source), key=lambda file: file.relative_to(source).as_posix()):
            content = file.read_bytes()
            files, size = files + 1, size + len(content)
            if files > MOST_FILES or size > MOST_BYTES:
                log.warning("the code is too large to have a version", extra={"kind": kind, "source": str(source)})
                return None
            name = file.name if file == source else file.relative_to(source).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    except OSError as error:
        log.warning("the code cannot be read, so it has no version", extra={"kind": kind, "reason": str(error)})
        return None
    return digest.hexdigest()[:_LENGTH]


def _files(source: Path) -> Iterator[Path]:
    """The Python files below `source`, at most one more than may be read; or the one that it is."""
    if source.is_file():
        yield source
        return
    left = MOST_FILES + 1
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in _PASSED_OVER and not name.startswith(".")]
        for name in names:
            if name.endswith(".py"):
                yield Path(folder, name)
                left -= 1
                if not left:
                    return
