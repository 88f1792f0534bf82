"""Compare the numbered cases of docs/semantics.md with the tests that carry their numbers: `make cases`.

    python tests/cases.py            list the cases without a test
    python tests/cases.py --shown    list the others, each with its tests

Exit code 1 if a case has neither a test nor a line in tests/cases_pending.txt, if a line there is for a case that has a test by
now (the list only shrinks), or if a test names a case that does not exist.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
SEMANTICS = TESTS.parent / "docs" / "semantics.md"
PENDING = TESTS / "cases_pending.txt"
_CASE = re.compile(r"^- \*\*(\d+)\*\* (.+)$", re.MULTILINE)


def numbered(text: str) -> dict[int, str]:
    """The cases in `text`, by number."""
    return {int(number): sentence for number, sentence in _CASE.findall(text)}


def pending(text: str) -> dict[int, str]:
    """The cases that a later change brings: `<number> <why>` a line; `#` begins a comment.

    Raises:
        ValueError: a line without a number, or without a reason.
    """
    found: dict[int, str] = {}
    for line in text.splitlines():
        number, _, reason = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if not number.isdecimal() or not reason.strip():
            raise ValueError(f"{PENDING.name}: not '<number> <why>': {line!r}")
        found[int(number)] = reason.strip()
    return found


def shown(folder: Path) -> dict[int, list[str]]:
    """The tests that carry each number, as `file::test`; `file` alone for a mark of the whole module."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        for statement in ast.parse(path.read_text()).body:
            name = getattr(statement, "name", None)
            where = f"{path.relative_to(folder)}" + (f"::{name}" if name else "")
            for node in ast.walk(statement):
                for number in _numbers(node):
                    found[number].append(where)
    return found


def _numbers(node: ast.AST) -> list[int]:
    """The numbers of a `pytest.mark.case(...)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "case":
        return [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, int)]
    return []


def faults(cases: dict[int, str], tests: dict[int, list[str]], later: dict[int, str]) -> list[str]:
    """What is wrong, a line each."""
    return [
        *(f"{n:>4}  has no test: {cases[n][:100]}" for n in sorted(cases.keys() - tests.keys() - later.keys())),
        *(f"{n:>4}  has a test by now: take it out of {PENDING.name}" for n in sorted(later.keys() & tests.keys())),
        *(f"{n:>4}  is no case, but {', '.join(tests[n])} names it" for n in sorted(tests.keys() - cases.keys())),
        *(f"{n:>4}  is no case, but {PENDING.name} lists it" for n in sorted(later.keys() - cases.keys())),
    ]


def main(arguments: list[str]) -> int:
    cases, tests = numbered(SEMANTICS.read_text()), shown(TESTS)
    later = pending(PENDING.read_text())
    if "--shown" in arguments:
        for number in sorted(cases.keys() & tests.keys()):
            print(f"{number:>4}  {', '.join(dict.fromkeys(tests[number]))}")
        return 0
    wrong = faults(cases, tests, later)
    for number in sorted(later.keys() & cases.keys()):
        print(f"{number:>4}  pending ({later[number]}): {cases[number][:80]}")
    for line in wrong:
        print(line)
    print(f"{len(cases.keys() & tests.keys())} of {len(cases)} cases have a test, {len(later)} are pending", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
