"""`mesh up --reload`: the command as a child process, started again whenever its agents' files change.

A process of its own gets the new code whole, which no reloading of modules does; and since everything that lasts is in the store,
the agents go on with it as after any other restart.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from agentmesh_node.process.signals import EXIT_INTERRUPTED, EXIT_OK

FLAG = "--reload"
LOOK_S = 0.3
"""Time between two looks at the files."""
END_S = 60.0
"""Longest that a child may take to end in order, before it is killed."""


def child_command(arguments: Sequence[str]) -> list[str]:
    """The command of the child, from this process's arguments."""
    return [sys.executable, "-m", "agentmesh_node", *(word for word in arguments if word != FLAG)]


def watched(sources: Iterable[str], directory: Path) -> list[Path]:
    """The directories whose Python files are watched: those in which the sources (modules or files, see `load_agents`) stand."""
    found: set[Path] = set()
    for source in (part.strip() for text in sources for part in text.split(",")):
        if source.endswith(".py") or "/" in source:
            found.add((directory / source).resolve().parent)
            continue
        head = source.partition(".")[0]
        here = directory / head
        if here.is_dir() or here.with_suffix(".py").is_file():
            found.add((here if here.is_dir() else directory).resolve())
        elif head and (spec := importlib.util.find_spec(head)) is not None and spec.origin is not None:
            found.add(Path(spec.origin).resolve().parent)
    return sorted(found)


def states(directories: Iterable[Path]) -> dict[Path, int]:
    """When each Python file there was written; hidden directories, and environments in them, are left out."""
    found: dict[Path, int] = {}
    for directory in directories:
        for path in directory.rglob("*.py"):
            parts = path.relative_to(directory).parts
            if not any(part.startswith(".") or part in ("site-packages", "node_modules") for part in parts):
                with contextlib.suppress(OSError):  # it has just been replaced
                    found[path] = path.stat().st_mtime_ns
    return found


class Reloader:
    """Keeps one child running until a signal comes, or until it ends in order."""

    def __init__(self, command: Sequence[str], directories: Sequence[Path]) -> None:
        self._command = command
        self._directories = directories
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Run the child until it is over. Returns its exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        while True:
            before = states(self._directories)
            # A session of its own: Ctrl-C comes here, and is passed on.
            self._child = subprocess.Popen(self._command, start_new_session=True)
            code, changed = self._until_changed(before)
            if changed is None:
                return _exit_code(code)
            print(f"mesh: {changed} has changed: starting again", file=sys.stderr, flush=True)  # noqa: T201
            self._end()

    def _until_changed(self, before: dict[Path, int]) -> tuple[int, str | None]:
        """The child's exit code, if it is over and shall not run again; or the name of a file that has changed."""
        assert self._child is not None
        told = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(LOOK_S)
                if self._stopping or code == 0:
                    return code, None
                if not told:
                    told = True
                    print(f"mesh: ended with {code}; waiting for a change of its files", file=sys.stderr, flush=True)  # noqa: T201
                signal.sigtimedwait((), LOOK_S)  # a pause that any signal ends
            if self._stopping:
                continue
            now = states(self._directories)
            if now != before:
                differs = sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path))
                return 0, differs[0].name

    def _end(self) -> None:
        """Let the child end in order."""
        child = self._child
        assert child is not None
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)
            if child.poll() is None:
                child.kill()
                child.wait()

    def _signalled(self, number: int, _: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def _exit_code(code: int) -> int:
    """The exit code for a child's: one that a signal has ended before it could heed it had begun nothing."""
    if code >= 0:
        return code
    return EXIT_OK if code == -signal.SIGTERM else EXIT_INTERRUPTED
