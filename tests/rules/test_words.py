"""Words that are gone stay gone: in code, docstrings, comments and pages a sentence can be read once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh", "node", "client")
TREES = (*PACKAGES, "tests", "examples", "docs")
PAGES = ("README.md", "CONTRIBUTING.md")

GONE = {
    r"\bwhoever\b": "say which: the caller, the owner, the next reader, any publisher",
    r"\b(?:for|to|by|from) who\b(?! )": "name the one that is meant",
    r"\bfor who (?:cannot|waits|asks|iterates)\b": "name the one that is meant: the waiting caller",
    r"(?:^|[\"`;:,(] ?|\band )who (?:waits|asks|iterates|asked) (?:is|are|looks|asks|gets|must)\b": "the waiting caller",
    r"\bthe (?:told|asked)\b(?! (?:agent|for))": "a participle is no noun",
    r"\b(?:thereof|therein|whereby|thereupon)\b": "say it in plain words",
    r"\bas something to wait for\b": "say what it does",
    r"\bof late\b": "recently",
    r"(?<!-)\b(?:census|lookout|pinger|trimmer|latecomers)\b(?!\.md)": "it has another name since the rooms of the node",
}
"""Patterns, each with what to write instead. Add what you find and mend; never take one out."""
ALLOWED = {
    "docs/design": "notes keep the words of the day on which they were written",
    "tests/rules/test_words.py": "spells them",
    "node/agentmesh_node/__init__.py": "former names of modules",
}
"""Files, and folders, that may hold such a word."""
ING = {"polling", "streaming", "testing", "tracing"}
"""Modules of the packages that may end in -ing: the others are called after what they hold, not after what they do."""


def texts() -> Iterator[tuple[str, str]]:
    """Every file of ours that people read, with its path from the root."""
    paths = [path for tree in TREES for path in (ROOT / tree).rglob("*") if path.suffix in (".py", ".md")]
    for path in sorted([*paths, *(ROOT / page for page in PAGES)]):
        name = path.relative_to(ROOT).as_posix()
        if not any(name == allowed or name.startswith(f"{allowed}/") for allowed in ALLOWED):
            yield name, path.read_text()


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("pattern", GONE, ids=list(GONE))
def test_words_that_are_gone_stay_gone(pattern: str) -> None:
    word = re.compile(pattern, re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if word.search(line)
    ]
    assert not found, f"{GONE[pattern]}\n" + "\n".join(found)


def test_modules_are_called_after_what_they_hold() -> None:
    assert {path.stem for path in modules() if path.stem.endswith("ing")} <= ING


def test_a_logger_is_called_log_and_is_used() -> None:
    for path in modules():
        tree = ast.parse(path.read_text())
        made = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign) and "logging.getLogger(" in ast.unparse(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        used = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        name = path.relative_to(ROOT)
        assert made in ([], ["log"]), f"{name}: a module's logger is called log"
        assert not made or "log" in used, f"{name}: its logger is never used"
