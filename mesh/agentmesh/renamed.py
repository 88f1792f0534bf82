"""Modules that have had another name go on being importable by it.

    sys.meta_path.append(FormerNames({"agentmesh.hands": "agentmesh.callback_context"}))  # a package's own, in its `__init__`

A finder is asked last, for what is not found: there is no file for a former name, and nothing is imported before somebody uses
it. A module in whose place a package stands now cannot be found so: that package hands on single names (`attributes`).

Type checkers do not see former names: they know the present ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class FormerNames:
    """Finds modules by former names, and loads the present ones."""

    def __init__(
        self, modules: Mapping[str, str | tuple[str, ...]], names: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """
        Args:
            modules: the present name of each module by its former one; both are one object then. A module that was divided has
                several: its former name is one more module, with the public names of them all.
            names: what a former module called something that has another name now, as `{module: {former: present}}`.
        """
        self._modules = modules
        self._names = names or {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        return ModuleSpec(name, self) if name in self._modules else None  # type: ignore[arg-type]  # loads, without the base

    def create_module(self, spec: ModuleSpec) -> None:
        """None: the module that `exec_module` puts aside is an ordinary one."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the present module in the place of `module`."""
        former = module.__name__
        present = self._modules[former]
        if isinstance(present, str):
            sys.modules[former] = module = import_module(present)
        else:
            for part in map(import_module, present):
                vars(module).update({name: value for name, value in vars(part).items() if not name.startswith("_")})
        for old, new in self._names.get(former, {}).items():
            setattr(module, old, getattr(module, new))


def attributes(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package in the place of a module: what that had, by the modules of today."""

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(where[name]), name)

    return get
