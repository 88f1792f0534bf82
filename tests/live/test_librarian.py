"""The librarian: its tools stay in their directory, and a whole question runs through a mesh of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf

from agentmesh.subjects import Subjects
from agentmesh.tools import ToolError
from fakes.messages import Answer, Call, FakeMessages, Item, Tool
from live.mesh import PATIENCE_S, process_mesh
from support import Server, run

SDK = ("anthropic", "agentmesh_node.backends.anthropic.backend")
LIBRARIAN = Path(__file__).parents[2] / "examples" / "librarian"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with some files, a link that leads out, and something outside that must not be seen."""
    inside = tmp_path / "library"
    (inside / "docs").mkdir(parents=True)
    (inside / "docs" / "opening.md").write_text("# Opening\n\nWe open at nine.\nWe close at five.\n")
    (inside / "readme.txt").write_text("A library.\n")
    (inside / ".env").write_text("KEY=secret\n")
    (inside / "cover.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "outside.txt").write_text("secret\n")
    (inside / "link.txt").symlink_to(tmp_path / "outside.txt")
    (inside / "linked").symlink_to(tmp_path)
    return inside


def test_files_are_listed_searched_and_read(root: Path) -> None:
    shelf = Shelf(root)
    assert shelf.names("**/*") == ["cover.png", "docs/opening.md", "readme.txt"]
    assert shelf.search("WE ", "**/*.md") == ["docs/opening.md:3: We open at nine.", "docs/opening.md:4: We close at five."]
    assert shelf.read("docs/opening.md", 3, 3) == "3: We open at nine.\n[1 more lines]"
    assert Shelf(root, "docs").names("*") == ["opening.md"]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda shelf: shelf.read("../outside.txt", 1, 9),
        lambda shelf: shelf.read("docs/../../outside.txt", 1, 9),
        lambda shelf: shelf.read("/etc/passwd", 1, 9),
        lambda shelf: shelf.read("link.txt", 1, 9),
        lambda shelf: shelf.read("linked/outside.txt", 1, 9),
        lambda shelf: shelf.read(".env", 1, 9),
        lambda shelf: shelf.read("docs", 1, 9),
        lambda shelf: shelf.read("cover.png", 1, 9),
        lambda shelf: shelf.names("../*"),
        lambda shelf: shelf.names("/etc/*"),
        lambda shelf: shelf.search("secret", "../*"),
        lambda shelf: shelf.search(" ", "*"),
    ],
)
def test_nothing_leads_out_of_the_directory(root: Path, attempt: Callable[[Shelf], Any]) -> None:
    with pytest.raises(ToolError):
        attempt(Shelf(root))


def test_links_and_hidden_files_are_not_found_either(root: Path) -> None:
    shelf = Shelf(root)
    assert shelf.search("secret", "**/*") == []
    assert "link.txt" not in shelf.names("**/*")
    with pytest.raises(ToolError):
        Shelf(root, "..")
    with pytest.raises(ToolError):
        Shelf(root, "linked")


def test_a_note_is_written_once_for_a_key(root: Path) -> None:
    shelf = Shelf(root)
    assert shelf.note("turn/c1", "Gap", "old") == shelf.note("turn/c1", "Gap", "new")
    (written,) = (root / "librarian-notes").iterdir()
    assert written.read_text() == "# Gap\n\nnew\n"


def curious(call: Call) -> Item:
    """A model that looks, tries to get out, reads, leaves a note, and answers from what it was given."""
    match call.answers:
        case 0:
            looked = (Tool("list_files", {"pattern": "docs/*"}, "c1"), Tool("read_file", {"path": "../outside.txt"}, "c2"))
            return Answer(text="Let me look.", tools=looked)
        case 1:
            return Answer(tools=(Tool("search", {"text": "open at"}, "c3"),))
        case 2:
            return Answer(tools=(Tool("leave_note", {"title": "Sundays", "text": "are not mentioned"}, "c4"),))
    return Answer(text="Found: " + " | ".join(block["content"] for m in call.messages for block in results(m)))


def results(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (block for block in message["content"] if block["type"] == "tool_result")


def test_a_question_is_answered_from_the_files(server: Server, subjects: Subjects, root: Path, tmp_path: Path) -> None:
    async def check(fake: FakeMessages) -> None:
        env = {"ANTHROPIC_BASE_URL": fake.url, "ANTHROPIC_API_KEY": "sk-test", "LIBRARIAN_ROOT": str(root)}
        async with process_mesh(server, subjects, tmp_path, env=env, modules=SDK) as mesh:
            await mesh.start("node", "n1", "--agents", str(LIBRARIAN / "librarian.py"))
            await mesh.client.start_agent("librarian", kind="Librarian", options={"model": "test-model"})
            answer = await mesh.client.ask("librarian", "When do you open?", timeout=PATIENCE_S)
            listed, refused, found, noted = answer.text.removeprefix("Found: ").split(" | ")
            assert listed == '["docs/opening.md"]'
            assert refused.startswith("there is no file ../outside.txt")
            assert found == "docs/opening.md:3: We open at nine."
            assert (root / noted).read_text() == "# Sundays\n\nare not mentioned\n"
            assert answer.usage is not None
            assert (answer.usage["input_tokens"], answer.usage["output_tokens"]) == (40, 20)

    with FakeMessages(curious) as fake:
        run(check(fake), 120)
        assert [call.answers for call in fake.calls] == [0, 1, 2, 3]
        first = fake.calls[0].body
    assert "You answer questions about a directory" in first["system"]
    assert [t["name"] for t in first["tools"]] == ["list_files", "search", "read_file", "leave_note"]
    assert first["tools"][2]["input_schema"]["properties"]["first"] == {
        "type": "integer", "minimum": 1, "default": 1, "description": "number of the first line.",
    }  # fmt: skip
