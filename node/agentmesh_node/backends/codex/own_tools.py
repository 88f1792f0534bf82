"""The agent's own tools, which Codex calls through the node (its "dynamic tools")."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from agentmesh.backend import Turn
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh_node.backends.codex.process import AppServer
from agentmesh_node.backends.codex.steps import CodexStep, EarlierSteps, OwnToolIntent, OwnToolRan, step_value
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import InnerCall, take
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.calls import PATIENCE_S, key_of
from agentmesh_node.tools.open_calls import open_calls


class OwnToolRuns:
    """The runs of own tools in one turn. Each is a task, so that a long run does not hold up Codex's other messages."""

    def __init__(self, toolbox: Toolbox, turn: Turn, taken: EarlierSteps, server: AppServer) -> None:
        self._toolbox = toolbox
        self._turn = turn
        self._taken = taken
        self._server = server
        self._open = open_calls(turn.kept, turn.steps.taken, turn.steps.key, taken.keys)
        """Calls with which the next equal ones go on."""
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises when a run cannot be committed or answered: the turn cannot go on."""

    def begin(self, request: Any, params: Mapping[str, Any]) -> None:
        """Start the call that Codex asks for; its end answers `request`."""
        call = Call(str(params.get("callId", "")), str(params.get("tool", "")), params.get("arguments")).checked()
        task = asyncio.create_task(self._serve(request, call), name=f"tool {call.name}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _serve(self, request: Any, call: Call) -> None:
        with tracing.execute_tool(call.name, call.id, target=self._toolbox.target(call.name)) as run:
            result = await self._result(call, run)
        answer = [{"type": "inputText", "text": result.text}]
        await self._server.reply(request, {"success": result.ok, "contentItems": answer})

    async def _result(self, call: Call, run: InnerCall) -> Result:
        """Run a call. If an earlier owner of the turn made it, its result is replayed, or its tool is asked what became of it."""
        refused = call.refusal()
        if refused is not None:
            return refused
        former = self._taken.former(call)
        if former is None:
            return await self._begun(call, run)
        made, known = former
        key = self._taken.key(made, self._turn.steps.key)
        if known is None:
            if self._toolbox.effect(made.name) == "once":
                known = await self._toolbox.reconcile(made, self._turn, key)
            if known is None:
                # With its first id: for the tool it is the same call.
                known = await self._toolbox.run(made, self._turn, key)
            self._note_end(made, key, known)
        await self._ran(OwnToolRan(made, known), run)
        return msgspec.structs.replace(known, id=call.id)

    async def _begun(self, call: Call, run: InnerCall) -> Result:
        """Run a call that this turn has not begun yet; it may go on with one of an earlier try of the request."""
        effect = self._toolbox.effect(call.name)
        met = self._open.meet(call) if effect != "pure" else None
        key = met.key if met is not None else key_of(self._turn.steps.key, call)
        await self._commit(OwnToolIntent(call, key))
        result = None
        if met is not None and met.result is not None:
            result = msgspec.structs.replace(met.result, id=call.id)
        elif met is not None and effect == "once":
            result = await self._toolbox.reconcile(call, self._turn, key)
        if result is None:
            result = await self._toolbox.run(call, self._turn, key)
        self._note_end(call, key, result)
        await self._ran(OwnToolRan(call, result), run)
        return result

    def next_answer(self) -> None:
        """The model has given another answer: its calls go on with those of the one before that are open."""
        self._open.next_answer()

    def _note_end(self, call: Call, key: str, result: Result) -> None:
        """Note the end of a call: it may have left open what became of it."""
        if self._toolbox.target(call.name) is None:  # a question has a name of its own
            self._open.ended(call, key, result)

    async def _ran(self, step: OwnToolRan, run: InnerCall) -> None:
        """A call has its result."""
        if not step.result.ok:
            run.failed(step.result.error or "error")
        run.end()
        await self._commit(step, run)

    async def _commit(self, step: CodexStep, run: InnerCall | None = None) -> None:
        """Take a step. `run`: what it is the result of."""
        async with self._writing:  # one at a time: steps have an order
            await take(self._turn.steps, step_value(step), run)

    async def close(self) -> None:
        """End the runs of a turn that is over."""
        await cancel_and_wait(*self._running, within_s=2 * PATIENCE_S, heed=False)
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # marks it as retrieved: it was seen, or the turn is over anyway
        self.failed.cancel()
