"""Loads the agents to serve: from modules by name, or from Python files by path."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import agentmesh
from agentmesh.agent import Agent, agents_in, is_base
from agentmesh.callback_results import check_class
from agentmesh.errors import InvalidAgent
from agentmesh.tools import outlasting

log = logging.getLogger("agentmesh.node")


def load_agents(sources: Iterable[str], *, directory: Path | None = None) -> dict[str, type[Agent[Any]]]:
    """The agent classes of `sources`, by kind (the class's name). Classes that are only derived from are left out.

    Args:
        sources: each a module (`my_agents`, `team.agents`) or a file (`my_agents.py`, `path/to/agents.py`); one string may list
            several, separated by commas.
        directory: where modules and relative paths are looked up first; the current directory by default.

    Raises:
        InvalidAgent: a source cannot be imported or has no agents, two sources have agents of one name, or a class is
            refused by `agentmesh.callback_results.check_class`.
    """
    directory = (directory or Path()).absolute()
    kinds: dict[str, type[Agent[Any]]] = {}
    for source in (part.strip() for text in sources for part in text.split(",")):
        if not source:
            continue
        found = agents_in(vars(_import(source, directory)))
        if not found:
            raise InvalidAgent(f"{source} defines no agents: write a class that derives from agentmesh.Agent")
        for kind, cls in found.items():
            if kinds.setdefault(kind, cls) is not cls:
                raise InvalidAgent(f"{source} and {kinds[kind].__module__} both define an agent {kind}; rename one of them")
    served = {kind: cls for kind, cls in kinds.items() if not is_base(cls)}  # only now: a later source may derive from it
    for cls in served.values():
        check_class(cls)
        if tools := outlasting(cls):
            log.warning(
                "%s: these tools may take longer than the turn's watchdog (%g s), so their calls are cut short before it: %s",
                cls.__name__, cls.watchdog_s, ", ".join(tools),
            )  # fmt: skip
    if kinds and not served:
        raise InvalidAgent(f"{', '.join(kinds)}: only base classes, and no agent that derives from them")
    return served


def _import(source: str, directory: Path) -> ModuleType:
    try:
        if source.endswith(".py") or "/" in source:
            return _file(directory / source)
        return _module(source, directory)
    except InvalidAgent as error:  # ours, or from a declaration in the user's file
        raise InvalidAgent(f"{error.message}{_line_in(error)}") from error
    except (Exception, SystemExit) as error:  # user code may raise anything when it is imported
        raise InvalidAgent(f"{source} cannot be imported: {type(error).__name__}: {error}{_line_in(error)}") from error


def _line_in(error: BaseException) -> str:
    """The line of the user's own files that `error` came from, as ` (agents.py, line 3)`; a SyntaxError says that itself."""
    if isinstance(error, SyntaxError):
        return ""
    installed = sysconfig.get_paths()
    foreign = [installed[name] for name in ("stdlib", "purelib", "platlib")]
    foreign += [str(Path(module).parent) for module in (__file__, agentmesh.__file__)]
    own = [
        f"{Path(frame.filename).name}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_absolute() and not any(Path(frame.filename).is_relative_to(root) for root in foreign)
    ]
    return f" ({own[-1]})" if own else ""


def _module(name: str, directory: Path) -> ModuleType:
    _look_in(directory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InvalidAgent(f"there is no module {name!r} in {directory} or among the installed packages") from None


def _file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise InvalidAgent(f"there is no file {path}")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # Under its own name if that is free: then classes have the module name that their author expects, also in tracebacks.
    name = path.stem if importlib.util.find_spec(path.stem) is None else f"agents_{abs(hash(str(path))):x}"
    _look_in(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidAgent(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: type hints of its classes are looked up in it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _look_in(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
