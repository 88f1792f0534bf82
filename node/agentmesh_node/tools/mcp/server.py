"""One declared MCP server, as one agent uses it: the tools that its model sees, and calls of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from agentmesh.backend import Turn
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BackendError
from agentmesh.identity import as_meta, behalf
from agentmesh.tools import Effect, McpHttp, McpStdio, ToolCall, ToolSpec
from agentmesh_node.tools.calls import Call, Result
from agentmesh_node.tools.functions import timed_out
from agentmesh_node.tools.mcp.failures import CallFailure
from agentmesh_node.tools.mcp.names import model_names
from agentmesh_node.tools.mcp.pool import pool
from agentmesh_node.tools.mcp.session import McpSession
from agentmesh_node.tools.mcp.tool_list import McpTool

log = logging.getLogger("agentmesh.node")

IDEMPOTENCY_META = "agentmesh/idempotencyKey"
"""The field of a call's `_meta` that bears its key."""
CHAIN_META = "agentmesh/chain"
"""That which says on whose behalf it is, as `agentmesh.identity.behalf` makes it."""
AGAIN_S = 30.0
"""How long an optional server that was absent is taken to be so, in seconds."""
TRIES = 3
"""How often a call is made that certainly did not run, or may run again."""
LOST = (
    "The outcome of this call is unknown: the server's answer did not arrive ({}). It may or may not have taken effect, and it "
    "was not made again. Find out before you repeat it."
)
ASKS = "The tool asks for more input while it runs, and nobody is there to give it. It has not done what it was called for."


class McpServer:
    """One declared server, and this agent's session with it in this process."""

    def __init__(
        self,
        declaration: McpStdio | McpHttp,
        environ: Mapping[str, str] | None = None,
        *,
        taken: Collection[str] = (),
        servers: Collection[str] = (),
    ) -> None:
        """
        Args:
            taken: names of the agent's other tools, which none of this server's may have.
            servers: the names of all servers of the agent.
        """
        self.declaration = declaration
        self._taken = frozenset(taken)
        self._servers = frozenset(servers)
        self._environ = os.environ if environ is None else environ
        self._session: McpSession | None = None
        self._seen: tuple[McpTool, ...] | None = None
        """The list that the names below are made of; None if it is to be asked for."""
        self.absent: str | None = None
        """Why a server that is optional is not there; None while it is."""
        self._again_at = 0.0
        self._reported: tuple[str, str] | None = None
        """The turn, and the absence, that was reported last."""
        self._tools: dict[str, McpTool] = {}
        self._specs: tuple[ToolSpec, ...] = ()

    # --- tools ------------------------------------------------------------------------------------------------------
    async def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the model may see, named `<server>__<tool>`, as they are now: a change that the server has told of is
        followed. If that fails they stay as they were.

        Raises:
            BackendError: `details["reason"]` is `tools_unavailable`: the server cannot be started or reached, or does not answer,
                and is not optional.
        """
        try:
            await self._listed()
        except BackendError as error:
            if not self.declaration.optional:
                raise
            self.absent, self._again_at = error.message, SYSTEM.monotonic() + AGAIN_S
            self._tools, self._specs = {}, ()
        return self._specs

    async def _listed(self) -> None:
        if self._seen is None:
            known = pool().known(self.declaration)
            if known is not None:
                self._take(known)
            elif self.absent is None or SYSTEM.monotonic() >= self._again_at:
                await self._opened()
        elif self._session is not None:
            try:
                await self._session.refresh()
            except BackendError as error:
                log.warning("a server's new list of tools cannot be read: %s", error, extra={"server": self.declaration.name})
            if self._session.alive:
                self._learn(self._session)

    def report(self, turn: Turn) -> None:
        """Tell the operators of its absence, once a turn for each reason."""
        if self.absent is not None and self._reported != (turn.ref, self.absent):
            self._reported = (turn.ref, self.absent)
            turn.report_absence(self.declaration.name, self.absent)

    def knows(self, name: str) -> bool:
        """Whether this server has a tool of that full name."""
        return name in self._tools

    def claims(self, name: str) -> bool:
        """Whether a tool of that full name would be this server's."""
        return name in self._tools or name.startswith(f"{self.declaration.name}__")

    @property
    def names(self) -> list[str]:
        """The full names of its tools, if they have been listed."""
        return list(self._tools)

    def effect(self, name: str) -> Effect:
        """The declared effect of a tool, else the one that the server hints at, else `once`."""
        tool = self._tools.get(name)
        if tool is None:
            return "once"  # it was there when it was called, or nobody knows
        said = self.declaration.effects.get(tool.name)
        if said is not None:
            return said
        return "pure" if tool.read_only else "idempotent" if tool.idempotent else "once"

    def _learn(self, session: McpSession) -> None:
        """Take what the session has listed."""
        if self._seen is not session.tools:
            self._take(session.tools)
            pool().learn(self.declaration, session.tools)

    def _take(self, listed: tuple[McpTool, ...]) -> None:
        """Make the model's names of a list."""
        told = self.declaration
        by_name = {tool.name: tool for tool in listed}
        names = model_names(told.name, by_name, taken=self._taken, servers=self._servers)
        self._tools = {name: by_name[own] for name, own in names.items()}
        self._specs = tuple(ToolSpec(name, _described(told.name, name, tool), tool.schema) for name, tool in self._tools.items())
        self._seen = listed

    # --- calls ------------------------------------------------------------------------------------------------------
    async def run(self, call: Call, info: ToolCall, within_s: float) -> Result:
        """Run a call, each try within `within_s` seconds. One that certainly did not run, or may run again, is made again.

        Raises nothing but cancellation.
        """
        if not isinstance(call.input, dict):
            return Result.failed(call, "bad_input", "the input of a tool is an object")
        own = self._tools[call.name].name if call.name in self._tools else None
        once = self.effect(call.name) == "once"
        meta = {IDEMPOTENCY_META: info.key, CHAIN_META: as_meta(behalf(info.chain, info.agent))}
        failure = CallFailure("not_made", "")
        generation: int | None = None
        for _ in range(TRIES):
            try:
                session = await self._opened(generation)
            except BackendError as error:
                return Result.failed(call, "tools_unavailable", f"this call was not made: {error.message}")
            tool = self._tools.get(call.name)
            if tool is None or (own is not None and tool.name != own):
                return self._gone(call)
            once = once or self.effect(call.name) == "once"  # the list may be another one now
            generation = session.generation
            answer = await session.call(tool.name, call.input, meta, within_s)
            if not isinstance(answer, CallFailure):
                return await self._result(call, tool, session, answer)
            failure = answer
            log.info("a call of an MCP server failed", extra={"server": self.declaration.name, "said": failure.verdict})
            match failure.verdict:
                case "unknown_session":
                    continue
                case "lost" if not once:
                    generation = None if session.alive else generation
                    continue
            break
        if failure.verdict == "answered" and await self._lacks(call, session):
            return self._gone(call)
        return self._failed(call, failure, within_s, once=once)

    async def _result(self, call: Call, tool: McpTool, session: McpSession, answer: Any) -> Result:
        if not hasattr(answer, "content"):
            return Result.failed(call, "raised", ASKS)
        text = "\n".join(block.text for block in answer.content)
        if not answer.is_error:
            return Result.of(call, text)
        if tool.name in text and await self._lacks(call, session):  # as `Unknown tool: <name>`
            return self._gone(call)
        return Result.failed(call, "raised", text)

    def _failed(self, call: Call, failure: CallFailure, within_s: float, *, once: bool) -> Result:
        server = self.declaration.name
        match failure.verdict:
            case "timeout":
                return Result.failed(call, "timeout", timed_out(within_s, again=not once))
            case "unreadable":
                return Result.failed(call, "bad_result", f"The tool has run, but its answer cannot be read: {failure.text}.")
            case "lost" if once:
                return Result.failed(call, "unknown_outcome", LOST.format(failure.text))
            case "answered":
                return Result.failed(call, "raised", failure.text)
        said = f"the MCP server {server} cannot be used: {failure.text}"
        made = "" if failure.verdict == "lost" else "this call was not made: "
        return Result.failed(call, "tools_unavailable", f"{made}{said}")

    async def _lacks(self, call: Call, session: McpSession) -> bool:
        """Whether the server has no such tool any more, by a list that is asked for now."""
        try:
            await session.relist()
        except BackendError:
            return False
        self._learn(session)
        return call.name not in self._tools

    def _gone(self, call: Call) -> Result:
        return Result.failed(call, "unknown_tool", f"the MCP server {self.declaration.name} has no tool {call.name} any more")

    # --- session ----------------------------------------------------------------------------------------------------
    async def _opened(self, failed: int | None = None) -> McpSession:
        """The session, opened if it is not; another one in the place of that generation, if one is given.

        Raises:
            BackendError: it cannot be opened.
        """
        if self._session is None:
            self._session = pool().session(self.declaration, self._environ)
        session = self._session
        if failed is None:
            await session.open()
        else:
            await session.renew(failed)
        self._learn(session)
        self.absent = None
        return session

    async def close(self) -> None:
        """End this agent's use of the session; the next call opens another. The list of a child is known from then on."""
        session, self._session = self._session, None
        if session is not None:
            await pool().release(session)
        if not isinstance(self.declaration, McpStdio):
            self._seen = None


def _described(server: str, name: str, tool: McpTool) -> str:
    """The tool's description, with the server's own name of it where the model's had to be another."""
    if name == f"{server}__{tool.name}":
        return tool.description
    return f"(The server calls this tool {tool.name!r}.) {tool.description}".rstrip()
