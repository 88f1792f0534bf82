"""All tools of an agent behind one object: their specs, and running a call of any of them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh.errors import BadAnswer
from agentmesh.structured import Misfit
from agentmesh.tools import AgentTool, Effect, FunctionTool, McpHttp, McpStdio, ToolCall, ToolSpec, declared
from agentmesh_node.tools import functions
from agentmesh_node.tools.calls import Call, Result, TimedOut, bounded, key_of, shortened
from agentmesh_node.tools.mcp import McpServer

GRACE_S = 30.0
"""How much longer than its own time-out an ask may take before this side gives up."""


class Toolbox:
    """The tools of one agent in this process. MCP sessions are opened when first needed and closed by `close`."""

    def __init__(self, agent: Agent[Any]) -> None:
        """
        Raises:
            InvalidAgent: the class's `tools` cannot be used.
        """
        found = declared(agent)
        own = {item.spec.name for item in found if not isinstance(item, McpStdio | McpHttp)}
        servers = {item.name for item in found if isinstance(item, McpStdio | McpHttp)}
        self._listed = tuple(
            McpServer(item, taken=own, servers=servers) if isinstance(item, McpStdio | McpHttp) else item for item in found
        )
        self._own = {item.spec.name: item for item in self._listed if not isinstance(item, McpServer)}
        self._servers = [item for item in self._listed if isinstance(item, McpServer)]

    async def specs(self) -> tuple[ToolSpec, ...]:
        """All tools as they are now, in the order in which they are listed: a stable order keeps the model's cache warm.

        Raises:
            BackendError: an MCP server that was not listed yet cannot be used, and is not optional.
        """
        # At the same time, and each to its end: some may be slow to be absent.
        ends = await asyncio.gather(*(server.specs() for server in self._servers), return_exceptions=True)
        of_servers: dict[McpServer, tuple[ToolSpec, ...]] = {}
        for server, end in zip(self._servers, ends, strict=True):
            if isinstance(end, BaseException):
                raise end
            of_servers[server] = end
        return tuple(
            spec for item in self._listed for spec in (of_servers[item] if isinstance(item, McpServer) else (item.spec,))
        )

    def notice(self, turn: Turn) -> str | None:
        """What the model is to be told of tools that are not there now; None if there is nothing. Call `specs` first.

        The operators are told of each server whose absence is new to `turn`.
        """
        for server in self._servers:
            server.report(turn)
        absent = [server.absent for server in self._servers if server.absent is not None]
        return f"Some of your tools are not there now: {'; '.join(absent)}. Go on without them." if absent else None

    def effect(self, name: str) -> Effect:
        """The effect of a tool: what may be done with a call whose node died. Call `specs` first."""
        item = self._find(name)
        match item:
            case FunctionTool():
                return item.effect
            case McpServer():
                return item.effect(name)
        if any(server.claims(name) for server in self._servers):
            return "once"  # a server's tool that is not listed now may have run when it was called
        return "idempotent"  # asking an agent is durable in itself; a tool that is unknown does nothing

    def target(self, name: str) -> str | None:
        """The agent that this tool asks, if it asks one."""
        item = self._find(name)
        return item.agent if isinstance(item, AgentTool) else None

    async def run(self, call: Call, turn: Turn, key: str = "") -> Result:
        """Run a call, under the `key` that the journal has for it, or one of its own. Whatever a tool does ends as a result; only
        the mesh's errors and cancellation are raised."""
        item = self._find(call.name)
        match item:
            case FunctionTool():
                info = _info(call, turn, key)
                within = msgspec.structs.replace(item, timeout_s=turn.steps.bounded_s(item.timeout_s))
                result = await functions.run(within, call, info)
                if result.error != "timeout" or item.reconcile is None:
                    return result
                asked = msgspec.structs.replace(item, timeout_s=turn.steps.bounded_s(item.timeout_s))
                return await functions.ask_after_timeout(asked, call, info, result)
            case AgentTool():
                return await self._ask(item, call, turn)
            case McpServer():
                within_s = turn.steps.bounded_s(item.declaration.timeout_s)
                return self._told(await item.run(call, _info(call, turn, key), within_s), item)
        return self._told(Result.failed(call, "unknown_tool", f"there is no tool {call.name!r}"))

    async def reconcile(self, call: Call, turn: Turn, key: str = "") -> Result | None:
        """The result of a call of a `once` tool that may have been made before; None if it may be made now."""
        item = self._find(call.name)
        if isinstance(item, FunctionTool):
            return await functions.reconcile(item, call, _info(call, turn, key))
        return Result.failed(call, "unknown_outcome", functions.UNKNOWN)

    async def close(self) -> None:
        """Close MCP sessions. The toolbox can be used again."""
        for server in self._servers:
            await server.close()

    def _find(self, name: str) -> FunctionTool | AgentTool | McpServer | None:
        own = self._own.get(name)
        return own or next((server for server in self._servers if server.knows(name)), None)

    def _told(self, result: Result, server: McpServer | None = None) -> Result:
        """`result`; if its tool or its `server` is not there, with the names of the tools that are."""
        if result.error not in ("unknown_tool", "tools_unavailable"):
            return result
        gone = server if result.error == "tools_unavailable" else None
        there = [*self._own, *(name for one in self._servers if one is not gone for name in one.names)]
        text = f"{result.text}; there are: {', '.join(sorted(there)) or 'none'}"
        return Result(result.id, result.name, False, shortened(text), result.error)

    async def _ask(self, item: AgentTool, call: Call, turn: Turn) -> Result:
        prompt = call.input.get("prompt") if isinstance(call.input, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            return Result.failed(call, "bad_input", "the input does not fit this tool: it needs a prompt, a text")
        within_s = turn.steps.bounded_s(item.timeout_s)
        work = turn.steps.ask(call.id, item.agent, prompt, timeout_s=within_s, budget=item.budget)
        try:
            async with turn.calls.resting():
                outcome = await bounded(work, within_s + GRACE_S, call.name)
        except TimedOut:
            return Result.failed(call, "timeout", functions.timed_out(within_s, again=True))
        if outcome.ok:
            return _answered(item, call, outcome.text or "")
        code, message = (outcome.error.code, outcome.error.message) if outcome.error else ("failed", "")
        return Result.failed(call, code, f"{item.agent} did not answer: {code}: {message}")


def _answered(item: AgentTool, call: Call, text: str) -> Result:
    """The result of a question: what the agent has answered, if it is of the type that was declared."""
    if item.answer_type is None:
        return Result.of(call, text)
    try:
        return Result.of(call, item.answer_type.fitting(text))
    except Misfit as misfit:
        said = f"{item.agent} answered, but not with a {item.answer_type.name}: {misfit}"
        return Result.failed(call, BadAnswer.code, f"{said}\nIt said: {shortened(text, 1000)}")


def _info(call: Call, turn: Turn, key: str) -> ToolCall:
    return ToolCall(call.id, key or key_of(turn.steps.key, call), turn.agent, turn.ref, turn.chain)
