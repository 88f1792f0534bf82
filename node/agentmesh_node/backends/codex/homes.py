"""CODEX_HOME of a running turn: a directory made for the turn and removed after it.

Of the files that Codex keeps there only the rollout outlives the turn, and it is stored in the mesh: so a session is the same on
the node where it ran as on any other. A node that is killed leaves its directories behind; the next turn of that agent on the
machine removes them. Directories in use are locked, and a lock ends with its process.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentmesh.errors import BackendError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp"})


class Home:
    """One such directory. Its methods block."""

    def __init__(self, base: Path) -> None:
        """Make it under `base`, and remove directories of dead processes there."""
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        for former in base.glob("turn-*"):
            _remove_if_free(former)
        self.path = Path(tempfile.mkdtemp(prefix="turn-", dir=base))
        self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "tmp").mkdir()

    def remove(self) -> None:
        """Remove it. Called twice is harmless."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def inputs(self, prompt: str, attachments: Sequence[Any]) -> list[dict[str, Any]]:
        """The prompt and its attachments in Codex's form: images directly, other files by name.

        Raises:
            BackendError: an attachment's content is not base64.
        """
        images, names = [], []
        for number, attachment in enumerate(attachments):
            name = Path(str(attachment.filename)).name or "attachment"
            place = self.path / "attachments" / str(number) / name
            place.parent.mkdir(parents=True)
            place.write_bytes(_content(attachment))
            if place.suffix.lower() in IMAGES:
                images.append({"type": "localImage", "path": str(place)})
            else:
                names.append(f"- {place}")
        text = "\n".join(filter(None, (prompt, "\nAttached files:" if names else "", *names)))
        return [*([{"type": "text", "text": text}] if text.strip() else []), *images]


def _content(attachment: Any) -> bytes:
    try:
        return base64.b64decode(attachment.content, validate=True)
    except (ValueError, TypeError):
        details = {"reason": "bad_attachment", "retryable": False}
        raise BackendError(f"the attachment {attachment.filename} is not base64", details=details) from None


def _remove_if_free(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused: its process is alive
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
