"""Arize Phoenix and Jaeger for `make test-backends`: installed once for this user, outside the repository.

    python -m trace_backends.installed      # with tests/ as PYTHONPATH: installs what is missing, and says what cannot be

Both are public packages, pinned: Phoenix from PyPI into an environment of its own, Jaeger from the Go module proxy as a tool of a
module of its own. They lie in `$XDG_CACHE_HOME/agentmesh` (else `~/.cache/agentmesh`), some 900 MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentmesh"
PHOENIX_VERSION = "20.26.1"
JAEGER_VERSION = "1.76.0"
PHOENIX = CACHE / f"phoenix-{PHOENIX_VERSION}"
"""Its environment; whole if the file `installed` is in it."""
JAEGER = CACHE / f"jaeger-{JAEGER_VERSION}" / "all-in-one"
_TOOL = "github.com/jaegertracing/jaeger/cmd/all-in-one"
_NICE = ("nice", "-n", "15") if shutil.which("nice") else ()


def lacks_phoenix() -> str:
    """What is missing for Phoenix; "" if nothing is."""
    return "" if (PHOENIX / "installed").exists() else f"no Arize Phoenix {PHOENIX_VERSION} in {PHOENIX}: make test-backends"


def lacks_jaeger() -> str:
    """What is missing for Jaeger; "" if nothing is."""
    if JAEGER.exists():
        return ""
    go = "" if shutil.which("go") else "; to build it there must be Go 1.24 or newer"
    return f"no Jaeger {JAEGER_VERSION} at {JAEGER}: make test-backends{go}"


def _install_phoenix() -> None:
    shutil.rmtree(PHOENIX, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(PHOENIX))
    pip = (str(PHOENIX / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*_NICE, *pip, f"arize-phoenix=={PHOENIX_VERSION}")
    (PHOENIX / "installed").touch()


def _build_jaeger() -> None:
    if not shutil.which("go"):
        raise FileNotFoundError("go")
    module = JAEGER.parent
    shutil.rmtree(module, ignore_errors=True)
    module.mkdir(parents=True)
    _run("go", "mod", "init", "trace-backends", cwd=module)
    _run("go", "get", "-tool", f"{_TOOL}@v{JAEGER_VERSION}", cwd=module)
    _run(*_NICE, "go", "build", "-o", "built", _TOOL, cwd=module)
    (module / "built").rename(JAEGER)  # whole, or not there


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def main() -> None:
    """Install what is missing. What cannot be is said, and is no failure: its tests are skipped, and say so, too."""
    steps: tuple[tuple[Callable[[], str], str, Callable[[], None]], ...] = (
        (lacks_phoenix, f"Arize Phoenix {PHOENIX_VERSION}, some minutes", _install_phoenix),
        (lacks_jaeger, f"Jaeger {JAEGER_VERSION}, some minutes", _build_jaeger),
    )
    for lacking, what, install in steps:
        if lacking():
            print(f"Installing into {CACHE}: {what} ...", file=sys.stderr)
            try:
                install()
            except (OSError, RuntimeError) as error:
                print(f"{lacking()}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
