"""List the numbered cases of docs/semantics.md that no test shows: `make cases`. Exit code 1 while there are any.

`python tests/cases.py --shown` lists the others, each with its tests.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
SEMANTICS = TESTS.parent / "docs" / "semantics.md"
_CASE = re.compile(r"^(\d+)\. (.+)$", re.MULTILINE)


def numbered(text: str) -> dict[int, str]:
    """The cases in `text`, by number."""
    return {int(number): sentence for number, sentence in _CASE.findall(text)}


def shown(folder: Path) -> dict[int, list[str]]:
    """The tests that carry each number, as `file::test`."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for number in (n for mark in node.decorator_list for n in _numbers(mark)):
                    found[number].append(f"{path.relative_to(folder)}::{node.name}")
    return found


def _numbers(mark: ast.expr) -> list[int]:
    if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "case":
        return [a.value for a in mark.args if isinstance(a, ast.Constant) and isinstance(a.value, int)]
    return []


def main(arguments: list[str]) -> int:
    if not SEMANTICS.exists():
        print(f"{SEMANTICS} is missing", file=sys.stderr)
        return 2
    cases, tests = numbered(SEMANTICS.read_text()), shown(TESTS)
    if "--shown" in arguments:
        for number in sorted(cases.keys() & tests.keys()):
            print(f"{number:>4}  {', '.join(tests[number])}")
        return 0
    missing = sorted(cases.keys() - tests.keys())
    for number in missing:
        print(f"{number:>4}  {cases[number][:110]}")
    for number in sorted(tests.keys() - cases.keys()):
        print(f"{number:>4}  is no case, but {', '.join(tests[number])} names it")
    print(f"{len(cases) - len(missing)} of {len(cases)} cases have a test", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
