"""A shell completes the command's verbs and options."""

from __future__ import annotations

import subprocess

import pytest

from agentmesh_client.cli import exits, main
from agentmesh_client.cli.completion import completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_knows_all_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == exits.OK
    script = capsys.readouterr().out
    assert all(word in script for word in (*main.VERBS, "supervisor", "purge", "budget-usd"))


@pytest.mark.processes
def test_bash_completes_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion("bash") == exits.OK
    script = capsys.readouterr().out

    def completed(*words: str) -> set[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _mesh; echo ${{COMPREPLY[@]}}"
        shown = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True, timeout=30)
        return set(shown.stdout.split())

    assert {"start", "stop", "status"} <= completed("mesh", "st")
    assert completed("mesh", "--n") == {"--nats", "--nkey"}
    assert {"--all", "--nats", "--output", "--quiet"} <= completed("mesh", "ps", "--")
    assert {"--content", "--nats", "--output"} <= completed("mesh", "dead", "ls", "--")
    assert "--port" in completed("mesh", "up", "--") and "--quiet" not in completed("mesh", "up", "--"), "it knows none of them"
