"""The list of a server's tools is read within bounds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.errors import BackendError, InvalidAgent
from agentmesh.tools import McpHttp
from agentmesh_node.tools.mcp.tool_list import McpTool, read_list

Pages = dict[str | None, tuple[list[str], str | None]]


def listed(pages: Any, **how: Any) -> tuple[tuple[McpTool, ...], list[str | None]]:
    asked: list[str | None] = []

    async def page_at(cursor: str | None) -> Any:
        asked.append(cursor)
        names, after = pages(cursor) if callable(pages) else pages[cursor]
        tools = [SimpleNamespace(name=name, description="x" * 100, input_schema={}, annotations=None) for name in names]
        return SimpleNamespace(tools=tools, next_cursor=after)

    return asyncio.run(read_list(McpHttp(name="shop", url="http://x", **how), page_at)), asked


def test_all_pages_are_read() -> None:
    tools, asked = listed({None: (["a"], "1"), "1": (["b", "c"], "2"), "2": ([], None)})
    assert [tool.name for tool in tools] == ["a", "b", "c"]
    assert asked == [None, "1", "2"]


@pytest.mark.case(428)
@pytest.mark.parametrize(
    ("pages", "how", "said", "asked"),
    [
        (lambda cursor: (["a"], "again"), {}, "same cursor twice", 2),
        (lambda cursor: (["a"], {None: "1", "1": "2", "2": "1"}[cursor]), {}, "same cursor twice", 3),
        (lambda cursor: ([], str(int(cursor or 0) + 1)), {}, "more than 100 pages; set max_pages", 100),
        (lambda cursor: ([], str(int(cursor or 0) + 1)), {"max_pages": 7}, "more than 7 pages", 7),
        (lambda cursor: ([f"t{n}" for n in range(1001)], None), {}, "more than 1000 tools; set only", 1),
        (lambda cursor: ([f"t{cursor}{n}" for n in range(400)], f"x{cursor}"), {"max_tools": 900}, "more than 900 tools", 3),
        (lambda cursor: (["a", "b"], None), {"max_list_bytes": 150}, "longer than 150 bytes; set max_list_bytes", 1),
    ],
)
def test_what_a_server_drives_is_bounded_and_another_try_would_not_help(
    pages: Any, how: dict[str, Any], said: str, asked: int
) -> None:
    seen: list[str | None] = []

    def counted(cursor: str | None) -> Any:
        seen.append(cursor)
        return pages(cursor)

    with pytest.raises(BackendError, match=said) as caught:
        listed(counted, **how)
    assert caught.value.details == {"reason": "tools_unavailable", "retryable": False}
    assert len(seen) == asked


def test_only_the_tools_that_a_model_may_see_are_counted() -> None:
    tools, _ = listed({None: ([f"t{n}" for n in range(3000)], None)}, only=("t7",))
    assert [tool.name for tool in tools] == ["t7"]


def test_a_bound_of_nothing_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidAgent, match="max_pages is 1 or more"):
        McpHttp(name="shop", url="http://x", max_pages=0)
