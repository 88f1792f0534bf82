"""`mesh completion`: a script with which a shell completes the command's verbs and options."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import GlobalOptions, any_verb


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to be used with.")], /) -> int:
    """Print a script with which a shell completes verbs and options.

    bash: `eval "$(mesh completion bash)"` in ~/.bashrc. zsh: `mesh completion zsh > DIRECTORY/_mesh`, a directory of `fpath`.
    fish: `mesh completion fish > ~/.config/fish/completions/mesh.fish`.
    """
    from agentmesh_client.cli.main import VERBS, app_for

    app = app_for(())
    app.default(any_verb)
    for name, (target, summary) in VERBS.items():
        module, _, attribute = target.partition(":")
        verb = getattr(importlib.import_module(f"agentmesh_client.cli.{module}"), attribute)
        del app[name]
        if isinstance(verb, App):
            app.command(_group(verb, name, summary))
        else:
            app.command(_with_globals(verb), name=name, help=summary)
    print(app.generate_completion(shell=shell))
    return exits.OK


def _group(verbs: App, name: str, summary: str) -> App:
    group = App(name=name, help=summary)
    for verb in verbs:
        if not verb.startswith("-") and (function := verbs[verb].default_command) is not None:
            group.command(_with_globals(function), name=verb)
    return group


def _with_globals(function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb with the global options among its own: `main` takes them behind a verb, too."""

    @functools.wraps(function)
    def shown(*_: Any, **__: Any) -> None:
        raise NotImplementedError  # only its signature is used

    signature = inspect.signature(function)
    if "options" in signature.parameters:
        parameters = [p.replace(annotation=GlobalOptions) if p.name == "options" else p for p in signature.parameters.values()]
        shown.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        shown.__annotations__ = {**function.__annotations__, "options": GlobalOptions}
    return shown
