"""`mesh completion`: a script with which a shell completes the command's verbs and options."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from agentmesh_client.cli import exits


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to be used with.")], /) -> int:
    """Print a script with which a shell completes verbs and options.

    bash: `eval "$(mesh completion bash)"` in ~/.bashrc. zsh: `mesh completion zsh > DIRECTORY/_mesh`, a directory of `fpath`.
    fish: `mesh completion fish > ~/.config/fish/completions/mesh.fish`.
    """
    from agentmesh_client.cli.main import app_for

    print(app_for(()).generate_completion(shell=shell))
    return exits.OK
