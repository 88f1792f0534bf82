"""What code, tests and docs cite, and whether it is there: `python tests/citations.py` lists what is not.

A citation is text in a comment, a docstring, a page, or a message that names a page. These forms are known, and each must lead
somewhere:

    docs/architecture.md#the-fence     a page from the root of the repository, and a heading of it, as GitHub's anchors are
    [the fence](#the-fence)            a link of a page, relative to it
    case 226, cases 231 to 236         numbered cases of docs/semantics.md
    owner/loop.py, tests/cases.py      a file: from the root, from a package, from tests, or from where it is cited
    turn/machine.py::advance           what that file defines, in pytest's notation
    agentmesh.turn.machine.advance     a module, and what it defines
    `make cases`                       a target of the Makefile, in backticks

What leads out of the repository, or names a section by its number, is refused: see `OLD`.
"""

from __future__ import annotations

import ast
import bisect
import itertools
import re
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cases import numbered

ROOT = Path(__file__).parent.parent
BUILT = frozenset({"__pycache__", "node_modules", "dist", "target"})
"""Folders of what is installed or built, in any language."""
FOLDERS = ("mesh", "node", "client", "tests", "examples", "docs", "deploy", ".ci", ".github")
KINDS = {".py", ".md", ".toml", ".txt", ".conf", ".yml", ".yaml", ""}
PACKAGES = {"agentmesh": "mesh", "agentmesh_node": "node", "agentmesh_client": "client"}
STEMS = (".", *(f"{folder}/{package}" for package, folder in PACKAGES.items()), "tests")
"""Where a path may begin: at the root, in a package, in the tests."""

THEIRS = {
    "my_agents.py",
    "program.py",
    "watch.py",
    "plain.py",
    "path/to/agents.py",
    "CLAUDE.md",
    "access.conf",
    "access/access.conf",
    "agentmesh.c",
    "agentmesh.h",
}
"""What a text tells its reader to write, what belongs to another program, or is a file that reads as a name in a module."""

OLD = {
    r"\b[Dd]esign (?:note )?\d": "name a page and its heading, as docs/architecture.md#the-fence",
    r"(?<!\[)\b[Nn]otes? \d{3}\b": "name the file, as docs/design/007-steps-and-waits.md",
    r"\bprotocol[,:]? \"?[A-Z]": "name the heading, as docs/protocol.md#control-requests",
    r"\b[Ss]emantics, ": "a case is cited by its number alone, as case 226",
    r"(?<![\w/-])(?:design|house|wire|nats-more|synadia|models|style)\.md\b": "no page of this repository",
    r"(?<!\w)\.\./shared\b|(?<![\w.])/(?:work|tmp/w)/": "a path outside the repository",
}
"""Forms that are refused, and what to write instead."""

_PAGE = re.compile(r"(?<![\w/.*-])((?:[\w.-]+/)*[\w-]+\.md)(?:#([\w-]*))?(?![\w/])")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?<![\w/.*<{-])((?:[\w.-]+/)*\w[\w.-]*\.(?:py|toml|conf|txt))(?:::([A-Za-z_]\w*(?:\.\w+)*))?(?![\w/*])")
_TEST = re.compile(r"(?<![\w/.-])((?:[a-z_]+/)+test_\w+)(?![\w/]|\.\w)")
_CASES = re.compile(r"\b[Cc]ases? (\d+(?:(?:, and |, | to | and | or )\d+)*)")
_DOTTED = re.compile(r"(?<![\w/.\"-])(agentmesh(?:_node|_client)?(?:\.[A-Za-z_]\w*)+)(?![\w-])")
_MAKE = re.compile(r"`make ([a-z][a-z-]*)\b")
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^[ \t]*|  )#(?:!| )(.*)$")


class Fault(NamedTuple):
    """A citation that leads nowhere."""

    path: str
    line: int
    cited: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.cited!r}: {self.reason}"


class Piece(NamedTuple):
    """A piece of text that may cite, and the line on which it begins."""

    line: int
    text: str


# --- where citations may stand --------------------------------------------------------------------------------------
def pieces(path: Path, text: str) -> Iterator[Piece]:
    """What of a file may cite: the prose of a page; docstrings, comments and messages of code; all of other files.

    `path` is relative to the root.
    """
    if path.suffix == ".md":
        yield from _paragraphs(_without_fences(text))
    elif path.suffix == ".py":
        yield from _docstrings(text, messages=path.parts[0] != "tests")
        yield from _comments(text)
    else:
        yield from (Piece(number, line) for number, line in enumerate(text.splitlines(), 1))


def _without_fences(page: str) -> str:
    """A page without what stands between fences, its lines kept."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page)


def _paragraphs(page: str) -> Iterator[Piece]:
    number = 1
    for block in re.split(r"(\n\s*\n)", page):
        if block.strip():
            yield Piece(number, block)
        number += block.count("\n")


def _docstrings(text: str, *, messages: bool) -> Iterator[Piece]:
    """Docstrings, those under a constant or a field too; with `messages`, what names a page in other strings."""
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(value)) as constant):
                docstrings.add(constant)
                yield Piece(node.lineno, value)
            case ast.Constant(value=str(value)) if messages and "docs/" in value and node not in docstrings:
                yield from (Piece(node.lineno, match[0]) for match in _PAGE.finditer(value) if match[0].startswith("docs/"))


def _comments(text: str) -> Iterator[Piece]:
    """Comments; those on successive lines are one."""
    block: list[str] = []
    first = last = 0
    for number, line in enumerate(text.splitlines(), 1):
        match = _COMMENT.search(line)
        if match is None:
            continue
        if block and not (number == last + 1 and not line[: match.start()].strip()):
            yield Piece(first, "\n".join(block))
            block = []
        first = first if block else number
        block.append(match[1])
        last = number
    if block:
        yield Piece(first, "\n".join(block))


# --- what they can lead to ------------------------------------------------------------------------------------------
def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", _without_fences(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        base = slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


class Tree:
    """The repository, as far as citations ask about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._anchors: dict[Path, set[str]] = {}
        self._defined: dict[Path, set[str]] = {}

    @cached_property
    def files(self) -> list[Path]:
        """All files whose text may cite."""
        within = (path for folder in FOLDERS for path in sorted((self.root / folder).rglob("*")))
        found = (path for path in (*sorted(self.root.iterdir()), *within) if path.is_file() and path.suffix in KINDS)
        return [path for path in found if path.name != ".git" and not BUILT.intersection(path.parts)]

    @cached_property
    def names(self) -> set[str]:
        """The bare names of all files."""
        return {path.name for path in self.files}

    @cached_property
    def cases(self) -> set[int]:
        """The numbers of docs/semantics.md."""
        return set(numbered((self.root / "docs" / "semantics.md").read_text()))

    @cached_property
    def groups(self) -> set[str]:
        """Entry-point groups: dotted names that are no modules."""
        return set(tomllib.loads((self.root / "pyproject.toml").read_text())["project"].get("entry-points", {}))

    @cached_property
    def targets(self) -> set[str]:
        """The targets of the Makefile."""
        return set(re.findall(r"^([a-z][a-z-]*):", (self.root / "Makefile").read_text(), re.MULTILINE))

    def anchors(self, page: Path) -> set[str]:
        """The anchors of a page."""
        if page not in self._anchors:
            self._anchors[page] = slugs(page.read_text())
        return self._anchors[page]

    def defined(self, module: Path) -> set[str]:
        """What a module defines or imports: names, and `Class.name` of what stands in a class; no inherited names."""
        if module not in self._defined:
            self._defined[module] = set(_names(ast.parse(module.read_text()).body, ""))
        return self._defined[module]

    def find(self, path: str, *, near: Path) -> Path | None:
        """The file that `path` names when `near` says it."""
        starts = (near.parent, *(self.root / stem for stem in STEMS))
        return next(((start / path).resolve() for start in starts if (start / path).is_file()), None)

    def knows(self, dotted: str) -> bool:
        """Whether a dotted name is a module, or something that one defines."""
        head, *names = dotted.split(".")
        where = self.root / PACKAGES[head] / head
        while names and ((where / names[0]).is_dir() or (where / f"{names[0]}.py").is_file()):
            where /= names.pop(0)
        module = where / "__init__.py" if where.is_dir() else where.with_suffix(".py")
        if not names:
            return True
        # A package that loads its public names when they are used lists them as strings.
        lazy = len(names) == 1 and module.name == "__init__.py" and f'"{names[0]}"' in module.read_text()
        return lazy or ".".join(names) in self.defined(module)


def _names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield prefix + name
                if name == "__init__":
                    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Attribute))
                    yield from (prefix + node.attr for node in stored if isinstance(node.ctx, ast.Store))
            case ast.ClassDef(name=name, body=inner):
                yield prefix + name
                yield from _names(inner, f"{prefix}{name}.")
            case ast.Assign(targets=targets):
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.TypeAlias(name=ast.Name(id=name)):
                yield prefix + name
            case ast.ImportFrom(names=imported):
                yield from (prefix + (alias.asname or alias.name) for alias in imported)
            case ast.If(body=inner, orelse=other):
                yield from _names([*inner, *other], prefix)


# --- whether they do ------------------------------------------------------------------------------------------------
def faults(tree: Tree, path: Path, text: str) -> list[Fault]:
    """The citations in a file that lead nowhere."""
    relative = path.relative_to(tree.root)
    return [
        Fault(str(relative), piece.line + line, cited, reason)
        for piece in pieces(relative, text)
        for line, cited, reason in _wrong(tree, path, piece.text)
    ]


def _wrong(tree: Tree, path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """What is wrong in a piece of text: how many lines below its first, what is cited, and why it does not stand."""
    lines = re.split(r"\n[ \t]*", text)
    flat = " ".join(lines)  # a citation may be broken over lines
    ends = list(itertools.accumulate(len(line) + 1 for line in lines))
    for start, cited, reason in _in_line(tree, path, flat):
        yield bisect.bisect_right(ends, start), cited, reason


def _in_line(tree: Tree, path: Path, flat: str) -> Iterator[tuple[int, str, str]]:
    for form, reason in OLD.items():
        yield from ((match.start(), match[0], reason) for match in re.finditer(form, flat))
    for match in _CASES.finditer(flat):
        missing = {int(number) for number in re.findall(r"\d+", match[1])} - tree.cases
        yield from ((match.start(), match[0], f"docs/semantics.md has no case {number}") for number in sorted(missing))
    if path.suffix == ".md":
        for match in _LINK.finditer(flat):
            if reason := _link(tree, path, match[1]):
                yield match.start(), match[1], reason
        flat = _LINK.sub(lambda match: " " * len(match[0]), flat)
    yield from _named(tree, path, flat)


def _link(tree: Tree, page: Path, target: str) -> str:
    """Why a link of a page leads nowhere; empty if it does not."""
    if re.match(r"[a-z]+:", target):
        return ""
    where, _, anchor = target.partition("#")
    aim = (page.parent / where).resolve() if where else page
    if not aim.exists():
        return "no such file"
    if not aim.is_relative_to(tree.root):
        return "a path outside the repository"
    return _anchor(tree, aim, anchor)


def _anchor(tree: Tree, page: Path, anchor: str | None) -> str:
    return "no such heading" if anchor and not (page.suffix == ".md" and anchor in tree.anchors(page)) else ""


def _named(tree: Tree, path: Path, flat: str) -> Iterator[tuple[int, str, str]]:
    """Pages, files, tests and modules that are named and are not there."""
    for match in _PAGE.finditer(flat):
        # In code a page is named from the root: so that a reader of that file alone can find it.
        page = tree.find(match[1], near=path) if path.suffix == ".md" else tree.root / match[1]
        there = page is not None and page.is_file()
        reason = _anchor(tree, page, match[2]) if page is not None and there else "no such page"
        if reason and match[1] not in THEIRS:
            yield match.start(), match[0], reason
    for match in _FILE.finditer(flat):
        if (reason := _file(tree, path, match[1], match[2])) and match[1] not in THEIRS:
            yield match.start(), match[0], reason
    for match in _TEST.finditer(flat):
        if tree.find(f"{match[1]}.py", near=path) is None:
            yield match.start(), match[0], "no such test"
    for match in _MAKE.finditer(flat):
        if match[1] not in tree.targets:
            yield match.start(), match[0], "the Makefile has no such target"
    for match in _DOTTED.finditer(flat):
        if match[1] not in tree.groups and match[1] not in THEIRS and not tree.knows(match[1]):
            yield match.start(), match[0], "no such module or name"


def _file(tree: Tree, path: Path, named: str, definition: str | None) -> str:
    file = tree.find(named, near=path)
    if file is None:
        return "" if definition is None and named in tree.names else "no such file"
    return "" if definition is None or definition in tree.defined(file) else "that file does not define it"


def all_faults(root: Path = ROOT) -> list[Fault]:
    """The citations of the whole repository that lead nowhere."""
    tree = Tree(root)
    return [fault for path in tree.files for fault in faults(tree, path, path.read_text())]


if __name__ == "__main__":
    wrong = all_faults()
    for fault in wrong:
        print(fault)
    raise SystemExit(bool(wrong))
