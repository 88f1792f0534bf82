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
    words = "COMP_WORDS=(mesh st); COMP_CWORD=1; _mesh; echo ${COMPREPLY[@]}"
    shown = subprocess.run(["bash", "-c", f"{script}\n{words}"], capture_output=True, text=True, check=True, timeout=30)
    assert {"start", "stop", "status"} <= set(shown.stdout.split())
