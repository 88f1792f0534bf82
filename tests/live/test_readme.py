"""The README's files and commands are real: they are taken from it and run.

A comment before a fenced block says what it is: `file: NAME` is written, `run` is run, `run: background` is left running,
`prints` must be in what the block before it printed. Blocks without a comment, and `run: install`, are shown only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"<!-- (?P<role>[^>]+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)


class Block(NamedTuple):
    role: str
    text: str


def blocks() -> list[Block]:
    return [Block(*match.groups()) for match in _BLOCK.finditer(README.read_text())]


def environment() -> dict[str, str]:
    """This process's, with the commands of its interpreter first and without what would lead elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def mesh_up(command: str, project: Path) -> Iterator[str]:
    """The background command, on a free port instead of the usual one; gives its address."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command.strip()} --port 0"],
        cwd=project, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = re.match(r"mesh ready: (\S+);", process.stdout.readline())
        assert ready is not None
        yield ready[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def run_block(text: str, project: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=project, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.processes
def test_its_commands_do_what_it_says(tmp_path: Path) -> None:
    told = blocks()
    (background,) = [block.text for block in told if block.role == "run: background"]
    for block in told:
        if block.role.startswith("file: "):
            (tmp_path / block.role.removeprefix("file: ")).write_text(block.text)
    with mesh_up(background, tmp_path) as url:
        plain = tmp_path / "plain.py"
        plain.write_text(plain.read_text().replace("nats://127.0.0.1:4222", url))
        printed = ""
        for role, text in told:
            if role == "run":
                printed = run_block(text, tmp_path)
            elif role == "prints":
                for line in text.splitlines():
                    assert line in printed, f"{line!r} is not in:\n{printed}"


@pytest.mark.case(241)
@pytest.mark.case(242)
def test_its_plain_nats_program_needs_nothing_of_ours() -> None:
    (plain,) = [block.text for block in blocks() if block.role == "file: plain.py"]
    assert "agentmesh" not in plain


def test_every_make_target_that_it_names_exists() -> None:
    named = set(re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE))
    there = set(re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.MULTILINE))
    assert named <= there
    assert named


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), target
