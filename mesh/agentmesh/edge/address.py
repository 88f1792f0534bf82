"""Which server and which mesh: an argument, else the environment, else the project's file, else the default.

The order is the same for programs, for the processes that host agents and for the `mesh` command. Nothing is read at import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

URL_VARIABLE = "MESH_NATS_URL"
ROOT_VARIABLE = "MESH_ROOT"
URL_FILE = Path(".mesh") / "url"
"""Written by `mesh up` in its working directory, so that commands given there find its server."""
DEFAULT_URL = "nats://127.0.0.1:4222"
DEFAULT_ROOT = "mesh"


def server_urls(
    given: str | Sequence[str] | None = None, *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> list[str]:
    """The NATS servers to connect to: `given`, else `MESH_NATS_URL`, else `.mesh/url` in `directory`, else the default.

    Each of them may list several servers, separated by commas. `directory` is the current one by default.
    """
    if given is not None and not isinstance(given, str):
        given = ",".join(given)
    environ = os.environ if environ is None else environ
    for text in (given, environ.get(URL_VARIABLE), _text_of((directory or Path()) / URL_FILE)):
        urls = [url.strip() for url in (text or "").split(",") if url.strip()]
        if urls:
            return urls
    return [DEFAULT_URL]


def mesh_root(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> str:
    """The mesh's root token: `given`, else `MESH_ROOT`, else `mesh`."""
    environ = os.environ if environ is None else environ
    return given or environ.get(ROOT_VARIABLE) or DEFAULT_ROOT


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
