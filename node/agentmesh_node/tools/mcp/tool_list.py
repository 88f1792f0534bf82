"""The list of a server's tools, read within bounds: a server drives how many pages there are, and how large they are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agentmesh.tools import McpHttp, McpStdio
from agentmesh_node.tools.mcp.failures import unavailable


class McpTool(msgspec.Struct, frozen=True):
    """A tool as its server lists it."""

    name: str
    """The server's own name of it."""
    description: str
    schema: dict[str, Any]
    read_only: bool = False
    idempotent: bool = False


async def read_list(declared: McpStdio | McpHttp, page_at: Callable[[str | None], Awaitable[Any]]) -> tuple[McpTool, ...]:
    """All tools of a server that its declaration lets a model see.

    Args:
        page_at: gives the page behind a cursor, as the SDK has it; the first one for None.

    Raises:
        BackendError: `tools_unavailable`: a bound of the declaration was reached, or the pages go in a circle. Another try would
            meet the same, so it is not retryable.
    """
    found: dict[str, McpTool] = {}
    cursor: str | None = None
    cursors: set[str | None] = {None}
    size = 0
    for _ in range(declared.max_pages):
        page = await page_at(cursor)
        for tool in page.tools:
            size += len(tool.name) + len(tool.description or "") + len(json.dumps(tool.input_schema))
            if size > declared.max_list_bytes:
                said = f"the list of its tools is longer than {declared.max_list_bytes} bytes"
                raise _refused(declared, said, "max_list_bytes")
            if (declared.only is None or tool.name in declared.only) and tool.name not in found:
                found[tool.name] = _tool(tool)
                if len(found) > declared.max_tools:
                    raise _refused(declared, f"it has more than {declared.max_tools} tools", "only=(...), or max_tools")
        cursor = page.next_cursor
        if cursor is None:
            return tuple(found.values())
        if cursor in cursors:
            raise _refused(declared, "the list of its tools never ends: it gave the same cursor twice", None)
        cursors.add(cursor)
    raise _refused(declared, f"the list of its tools has more than {declared.max_pages} pages", "max_pages")


def _tool(tool: Any) -> McpTool:
    hints = tool.annotations
    return McpTool(
        tool.name,
        tool.description or "",
        tool.input_schema,
        read_only=bool(hints is not None and hints.read_only_hint),
        idempotent=bool(hints is not None and hints.idempotent_hint),
    )


def _refused(declared: McpStdio | McpHttp, said: str, setting: str | None) -> Exception:
    mend = f"; set {setting} in its declaration" if setting is not None else "; mend the server"
    return unavailable(declared.name, said + mend, retryable=False)
