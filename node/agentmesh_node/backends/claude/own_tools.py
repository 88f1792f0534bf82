"""The agent's own tools, offered to Claude Code as an MCP server inside the node. Importing this module imports mcp (1.3 s).

The mesh runs them, so their effects hold: a `once` call is committed before it is made and never repeated blindly, and each
result is committed. After a takeover `settle` finds the results of the calls that were under way.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool

from agentmesh.errors import TooLarge
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.claude.mirror import Mirror
from agentmesh_node.backends.claude.options import PREFIX, SERVER
from agentmesh_node.backends.claude.sent_inputs import SentInputs
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import InnerCall, take
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.calls import key_of
from agentmesh_node.tools.loop_steps import Intent, Ran
from agentmesh_node.tools.open_calls import open_calls

CALL_ID = "claudecode/toolUseId"
"""The field in which Claude Code names the model's call."""
NOT_STORED = "The call was not made: the conversation cannot be stored at the moment. Try again."
TOO_LARGE = "The result of this call is too large to be kept. Ask for less at a time."


class OwnTools:
    """The tools of one agent in one turn."""

    def __init__(self, toolbox: Toolbox, specs: Sequence[ToolSpec], loop: OwnLoop) -> None:
        self._toolbox = toolbox
        self._specs = specs
        self._loop = loop
        self._turn = turn = loop.inside
        self._numbers = itertools.count()
        self._writing = asyncio.Lock()
        self._keys: dict[str, str] = {}
        """Keys of the calls that may have been made, by their ids."""
        self._answers = 0
        """Answers of the model when the newest call came."""
        self._results: dict[str, Result] = {}
        for step in turn.steps.taken:
            kind = step.get("step") if isinstance(step, dict) else None
            if kind == "intent":
                intent = msgspec.convert(step, Intent)
                self._keys[intent.id] = intent.key or f"{turn.steps.key}/{intent.id}"
            elif kind == "result":
                result = msgspec.convert(step["result"], Result)
                self._results[result.id] = result
        self._open = open_calls(turn.kept, turn.steps.taken, turn.steps.key, frozenset(self._keys.values()))
        """Calls with which the next equal ones go on."""

    def server(self, mirror: Mirror | None, sent: SentInputs) -> Server[Any]:
        """The MCP server of one run, whose transcript `mirror` stores, and whose calls' inputs `sent` has as they came."""

        async def listed(context: Any, params: Any) -> ListToolsResult:
            return ListToolsResult(
                tools=[
                    Tool.model_validate({"name": spec.name, "description": spec.description, "inputSchema": spec.schema})
                    for spec in self._specs
                ]
            )

        async def called(context: Any, params: Any) -> CallToolResult:
            await self._loop.goes_on()
            meta = dict(params.meta or {})
            call_id = str(meta.get(CALL_ID) or f"unnamed-{next(self._numbers)}")
            call = sent.call(call_id, params.name, params.arguments or {})
            if self._answers != sent.answers:
                self._answers = sent.answers
                self._open.next_answer()
            if mirror is not None and self._toolbox.effect(call.name) != "pure" and not await mirror.stored(call.id):
                # A later owner would not know of this call, and the model might make it again under another id.
                result = Result.failed(call, "not_stored", NOT_STORED)
            else:
                result = await self.run(call)
            return CallToolResult(content=[TextContent(type="text", text=result.text)], is_error=not result.ok)

        return Server(SERVER, on_list_tools=listed, on_call_tool=called)

    async def settle(self, calls: Sequence[Call]) -> list[Result]:
        """The results of calls of own tools that a lost process left without one."""
        own = [Call(call.id, call.name.removeprefix(PREFIX), call.input) for call in calls if call.name.startswith(PREFIX)]
        return [await self.run(call) for call in own]

    async def run(self, call: Call) -> Result:
        """The result of a call: the committed one, or the result of running it now."""
        known = self._results.get(call.id)
        if known is not None:
            return known
        with tracing.execute_tool(call.name, call.id, target=self._toolbox.target(call.name)) as run:
            result = await self._run(call)
            if not result.ok:
                run.failed(result.error or "error")
        if self._toolbox.target(call.name) is None:  # a question has a name of its own
            self._open.ended(call, self._keys.get(call.id) or key_of(self._turn.steps.key, call), result)
        try:
            await self._commit(Ran(result), run)
        except TooLarge as error:
            result = Result.failed(call, "too_large", f"{TOO_LARGE} ({error.message})")
            await self._commit(Ran(result), run)
        self._results[call.id] = result
        return result

    async def _run(self, call: Call) -> Result:
        refused = call.refusal()
        if refused is not None:
            return refused
        effect = self._toolbox.effect(call.name)
        key = self._keys.get(call.id)
        former = self._open.meet(call) if key is None and effect != "pure" else None
        if key is None and (former is not None or effect == "once"):
            self._keys[call.id] = former.key if former is not None else key_of(self._turn.steps.key, call)
            await self._commit(Intent(call.id, self._keys[call.id], call.name, call.input))
        if former is not None and former.result is not None:
            return msgspec.structs.replace(former.result, id=call.id)
        if effect == "once" and (key is not None or former is not None):
            known = await self._toolbox.reconcile(call, self._turn, self._keys[call.id])
            if known is not None:
                return known
        return await self._toolbox.run(call, self._turn, self._keys.get(call.id, ""))

    async def _commit(self, step: Intent | Ran, run: InnerCall | None = None) -> None:
        """Take a step. `run`: what it is the result of."""
        async with self._writing:  # one at a time: steps have an order
            await take(self._turn.steps, msgspec.to_builtins(step), run)
