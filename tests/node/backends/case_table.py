"""The table of docs/backends.md that says what becomes of a turn, by backend, API, server and case."""

from __future__ import annotations

from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs" / "backends.md").read_text()
CASES = ("text", "stream", "tool", "typed answer", "cut answer", "too long", "429", "broken stream")
FAKE, LITELLM, LLAMA = "a fake", "LiteLLM", "llama.cpp"
NEVER = "never"
"""What does not come from that server."""

type Row = tuple[str, str, str]
"""Backend, API and server."""
ROWS: tuple[Row, ...] = (
    ("anthropic", "Messages", FAKE),
    ("openai", "Chat Completions", FAKE),
    ("openai", "Responses", FAKE),
    ("claude", "Messages", FAKE),
    ("codex", "Responses", FAKE),
    ("anthropic", "Messages", LITELLM),
    ("openai", "Chat Completions", LITELLM),
    ("openai", "Responses", LITELLM),
    ("anthropic", "Messages", LLAMA),
    ("openai", "Chat Completions", LLAMA),
    ("openai", "Responses", LLAMA),
)


def rows_of(server: str) -> list[Row]:
    """The rows of a server."""
    return [row for row in ROWS if row[2] == server]


def cells() -> dict[tuple[str, str, str, str], str]:
    """The table: backend, API, server and case -> what it says."""
    table = PAGE.partition("### Backends and servers")[2].partition("\n\n|")[2].partition("\n\n")[0]
    head, _, *rows = (line.strip("| ").split(" | ") for line in f"|{table}".splitlines())
    assert tuple(head[3:]) == CASES
    return {
        (row[0].strip("`"), row[1], row[2], case): word.strip("`")
        for row in rows
        for case, word in zip(CASES, row[3:], strict=True)
    }
