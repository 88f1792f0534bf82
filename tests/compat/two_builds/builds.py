"""The two builds, as what a process of each needs in its environment."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

BEFORE = "1585755d556e9ca101fcce7d4cac5ce6a9940e59"
"""The commit of the build before: the last one before records had a second version."""
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
_PARTS = ("mesh", "node", "client", "tests")


def unpack(where: Path) -> Path:
    """Put the tree of the build before into the directory `where`.

    Raises:
        AssertionError: the repository's history is not there.
    """
    found = subprocess.run(
        ["git", "archive", "--format=tar", BEFORE, *_PARTS], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert found.returncode == 0, (
        f"the build before ({BEFORE}) is not in this repository's history ({found.stderr.decode().strip()}): this test needs "
        "all of it; in a shallow clone, `git fetch --unshallow`; in CI, check out with `fetch-depth: 0`"
    )
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(where, filter="data")
    return where


def environment(tree: Path) -> dict[str, str]:
    """The environment of a process that runs the code of `tree`: it stands before whatever is installed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    return env | {"PYTHONPATH": os.pathsep.join(str(tree / part) for part in _PARTS)}
