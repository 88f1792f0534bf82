"""The claude backend: Claude Code through claude-agent-sdk, one run of its process for each turn
(docs/design/008-claude-sessions.md)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Event, Room, Stream, Turn
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import EDGE_ERRORS, ApiError
from agentmesh.errors import BackendError, BudgetExceeded, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_node.backends.claude import attempts
from agentmesh_node.backends.claude.attempts import Source
from agentmesh_node.backends.claude.content import content, noted
from agentmesh_node.backends.claude.failures import failed, refused
from agentmesh_node.backends.claude.files import Files
from agentmesh_node.backends.claude.mirror import mirrored
from agentmesh_node.backends.claude.options import (
    SERVER,
    ClaudeOptions,
    command,
    credential,
    environment,
    executable,
    read,
    secrets,
)
from agentmesh_node.backends.claude.sent_inputs import SentInputs
from agentmesh_node.backends.claude.store import JetStreamSessionStore
from agentmesh_node.backends.claude.transcript import UNREADABLE, tokens
from agentmesh_node.backends.claude.transcript import events as past_events
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.telemetry import tracing
from agentmesh_node.tools import Result, Toolbox
from agentmesh_node.tools.kept_exchanges import notes
from agentmesh_node.tools.turn_bounds import Driven, TurnBounds

log = logging.getLogger("agentmesh.node")

GO_ON = "Continue from where you left off."
GO_ON_WITH = GO_ON + " These of your tool calls have come to an end meanwhile:"


class _ClaudeRun(msgspec.Struct, frozen=True):
    """The plan for one run of Claude Code."""

    turn: Turn
    session: str
    """The session that it writes."""
    source: Source
    message: str
    """uuid of the message to it."""
    text: Any
    """The message to it: text or content blocks."""
    loop: OwnLoop


class ClaudeBackend:
    """A `Backend` on Claude Code.

    The session is `{"session_id"}`, the name of a transcript in the mesh: every node finds it there.
    Options, errors and limits: docs/backends.md.
    """

    def __init__(self, agent: Agent[Any], options: Mapping[str, Any], *, room: Room) -> None:
        """
        Raises:
            BackendError: `details["reason"]` is `bad_options` or `not_installed`.
            InvalidAgent: the agent's tools cannot be used.
        """
        self._options = read(options)
        self._cli = executable(self._options)
        self._toolbox = Toolbox(agent)
        self._room = room
        self._files = Files(room.directory, self._options.cwd)
        self._store: JetStreamSessionStore | None = None
        if room.transport is not None:
            self._store = JetStreamSessionStore(room.transport, Subjects(room.root), room.agent, project=room.incarnation)
        self._here: str | None = None
        """The session whose whole transcript is on this machine."""

    # --- sessions -----------------------------------------------------------------------------------------------------
    async def start_session(self) -> Any:
        """A session without a transcript: the first turn makes one."""
        await asyncio.to_thread(self._files.prepare)
        return {"session_id": None}

    async def resume_session(self, session: Any) -> Any:
        """The session as it is; an empty one if there is none, as when the agent had another backend before."""
        if isinstance(session, dict) and "session_id" in session:
            return session
        return await self.start_session()

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """The session that the turn's run has written."""
        return {"session_id": result["session_id"]}

    async def terminate_session(self, session: Any) -> None:
        """Remove the transcripts, and this machine's files except the working directory."""
        await self.release()
        if self._store is not None:
            await self._store.remove(self._room.incarnation)
        await asyncio.to_thread(self._files.remove)

    async def release(self) -> None:
        """Close sessions with MCP servers. Claude Code itself runs only during turns."""
        await self._toolbox.close()

    # --- turns --------------------------------------------------------------------------------------------------------
    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Begin a turn. A failure in it is an error event, and leaves the session as it was."""
        return Stream(self._events(session, prompt, turn), session)

    async def _events(self, session: Mapping[str, Any], prompt: str, turn: Turn) -> AsyncGenerator[Event]:
        loop = OwnLoop(turn)
        try:
            async with contextlib.aclosing(self._of_turn(session, prompt, turn, loop)) as events:
                async for event in events:
                    yield event
        finally:
            loop.end()

    async def _of_turn(self, session: Mapping[str, Any], prompt: str, turn: Turn, loop: OwnLoop) -> AsyncGenerator[Event]:
        """The events of the turn, up to one terminal event."""
        taken = turn.steps.taken
        base: str | None = session.get("session_id")
        if attempts.lost(taken) >= attempts.MOST_LOST:
            yield failed("lost", f"{attempts.MOST_LOST} owners in a row were lost with this prompt before the model had answered")
            return
        try:
            await asyncio.to_thread(self._files.prepare)
            own_id = attempts.prompt_id(turn, self._room.incarnation, base)
            source, entries = await attempts.source(base, attempts.attempts(taken), own_id, self._load)
            for event in past_events(source.standing, attempts.marked(taken)):
                yield event
            if source.standing.final is not None:
                # The node was lost between the answer and its record.
                yield Event.result(source.standing.final, session_id=source.session)
                return
            turn.allowance.check()
            await loop.begin()  # before the attempt is told, which would count as one that was lost
            fresh = _random_uuid()
            committed = turn.committed["session_id"] if turn.committed is not None else None
            garbage = await self._begin(turn, fresh, {base, source.session, committed})
            await self._bring(source.session, entries)
            await self._clear(garbage)
            typed = turn.answer_type
            demand = [typed.demand()] if typed is not None and typed.strict is None else []
            told = content("\n\n".join([prompt, *notes(turn.kept), *demand]), turn.attachments)
        except (BackendError, BudgetExceeded) as error:
            yield _terminal(error)
            return
        except UNREADABLE as error:
            yield failed("bad_output", f"the conversation's transcript cannot be read: {type(error).__name__}: {error}")
            return
        except (Unavailable, ApiError) as error:  # no other error of the mesh: a refused step ends the run in another way
            yield failed("store_unavailable", f"the conversation's transcript cannot be reached: {error}")
            return
        run = _ClaudeRun(turn, fresh, source, own_id, told, loop)
        async with contextlib.aclosing(self._run(run)) as events:
            async for event in events:
                yield event

    async def _begin(self, turn: Turn, session: str, needed: set[str | None]) -> list[tuple[str, str]]:
        """Commit which session this attempt writes. Returns the sessions that are no longer needed.

        They are listed before the step is committed: the commit proves that this process still was the owner when it listed them,
        so sessions of a later owner are never among them.
        """
        known = await self._store.sessions() if self._store is not None else set()
        await turn.steps.take(attempts.begins(session))
        life = self._room.incarnation
        return [(project, name) for project, name in known if project != life or name not in needed]

    async def _clear(self, garbage: list[tuple[str, str]]) -> None:
        """Remove sessions. Those that cannot be removed now are found again in the next turn."""
        if self._store is None or not garbage:
            return
        try:
            for project, session in garbage:
                await self._store.remove(project, session)
        except EDGE_ERRORS as error:
            log.warning("old transcripts are left for now: %s", error, extra={"agent": self._room.agent})
        await asyncio.to_thread(self._files.forget, await self._project(), [session for _, session in garbage])

    # --- transcripts --------------------------------------------------------------------------------------------------
    async def _load(self, session: str) -> list[Any] | None:
        if self._store is None:
            return await asyncio.to_thread(self._files.read, await self._project(), session)
        return await self._store.load({"project_key": self._room.incarnation, "session_id": session})

    async def _project(self) -> str:
        """Claude Code's name for the working directory."""
        sdk = await _module("claude_agent_sdk")
        return str(await asyncio.to_thread(sdk.project_key_for_directory, self._files.cwd))

    async def _bring(self, session: str | None, entries: list[Any] | None) -> None:
        """Put the transcript of `session` on this machine, unless it is there."""
        if session is None:
            return
        project = await self._project()
        here = entries is None and (self._here == session or self._store is None)
        if here and await asyncio.to_thread(self._files.renew, project, session):
            return
        main = entries if entries is not None else await self._load(session)
        if not main:
            raise refused("session_lost", f"the transcript {session} of this conversation is gone; start the agent anew")
        parts = {"": main}
        if self._store is not None:
            key = {"project_key": self._room.incarnation, "session_id": session}
            for subpath in await self._store.list_subkeys(key):  # type: ignore[arg-type]  # a TypedDict of the SDK
                loaded = await self._store.load({**key, "subpath": subpath})  # type: ignore[typeddict-item]
                parts[subpath] = [entry for entry in loaded or () if entry["type"] != "agent_metadata"]
        await asyncio.to_thread(self._files.write, project, session, parts)

    # --- the run ------------------------------------------------------------------------------------------------------
    async def _run(self, run: _ClaudeRun) -> AsyncGenerator[Event]:
        messages = await _module("agentmesh_node.backends.claude.messages")
        process = await _module("agentmesh_node.backends.claude.process")
        tools = None
        try:
            specs = await self._toolbox.specs()
            if specs:
                own_tools = await _module("agentmesh_node.backends.claude.own_tools")
                tools = own_tools.OwnTools(self._toolbox, specs, run.loop)
            settled = await tools.settle(run.source.standing.open) if tools is not None else []
        except BackendError as error:
            yield _terminal(error)
            return
        for result in settled:
            yield Event("tool_result", {"id": result.id, "ok": result.ok, "text": result.text})
        told, message = _message_of(run, settled, self._toolbox.notice(run.turn))
        sent = SentInputs()
        child = self._child(process.Child, run, sent, own_tools=tools is not None)
        most_usd = self._options.max_budget_usd if self._priced else None
        reader = messages.MessageReader(run.session, tokens(run.source.standing), prices=self._room.prices, most_usd=most_usd)
        driven = self._driven(run)
        async with self._room.place(), mirrored(self._store, message, run.turn.steps, run.loop) as mirror:
            server = {"type": "sdk", "name": SERVER, "instance": tools.server(mirror, sent)} if tools is not None else None
            servers = {SERVER: server} if server is not None else {}
            conversation = self._conversation(child, mirror, servers, told, message)
            try:
                said = messages.heard(conversation, reader, child, driven, self._room.agent)
                async with contextlib.aclosing(said) as events:
                    async for event in events:
                        if event.kind == "result":
                            self._here = run.session
                        yield event
            except BackendError as error:
                yield _terminal(error)

    def _driven(self, run: _ClaudeRun) -> Driven:
        """The counts of this turn, with what earlier owners' runs did. Claude Code itself counts the answers."""
        options = self._options
        driven = Driven(TurnBounds(None, options.max_tool_runs, options.max_result_bytes))
        for event in past_events(run.source.standing, None):
            if event.kind == "tool_use":
                driven.may_run()
            elif event.kind == "tool_result":
                driven.take(event.data["text"])
        return driven

    @property
    def _priced(self) -> bool:
        """Whether the operator has put a price on the model: then the mesh counts, and not Claude Code."""
        return self._options.model is not None and self._room.prices.given(self._options.model) is not None

    def _child(self, make: Any, run: _ClaudeRun, sent: SentInputs, *, own_tools: bool) -> Any:
        """The child process, not yet started."""
        options, node = _bounded(self._options, run.turn.allowance.usd_left()), os.environ
        if self._priced:
            options = msgspec.structs.replace(options, max_budget_usd=None)
        held = credential(node)
        files = self._files
        env = environment(options, node, home=str(files.home), config=str(files.config), cwd=str(files.cwd))
        env.update(tracing.environment())
        typed = run.turn.answer_type
        schema = typed.strict if typed is not None else None
        line = command(options, self._cli, session=run.session, source=run.source.session, own_tools=own_tools, schema=schema)
        hidden = secrets(env, held)
        return make(line, env=env, cwd=str(files.cwd), secrets=hidden, credential=held, observe=sent.observe)

    async def _conversation(
        self, child: Any, mirror: Any, servers: dict[str, Any], told: Any, message: str
    ) -> AsyncGenerator[Any]:
        """The messages of one run. When this is closed the child is gone."""
        sdk = await _module("claude_agent_sdk")
        options = sdk.ClaudeAgentOptions(
            cwd=str(self._files.cwd),
            env={"CLAUDE_CONFIG_DIR": str(self._files.config)},
            mcp_servers=servers,
            session_store=mirror,
            session_store_flush="eager",
            verbatim_prompts=not self._options.expand_prompts,
        )
        client = sdk.ClaudeSDKClient(options, transport=child)
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                await client.connect()
                await client.query(_once(told, message))
            async for one in client.receive_messages():
                yield one
        finally:
            # The child first: it must end whatever happens to the SDK, which still has a transcript to store.
            try:
                await child.close()
            finally:
                await client.disconnect()


def _message_of(run: _ClaudeRun, settled: Sequence[Result], notice: str | None) -> tuple[Any, str]:
    """The message to Claude Code (the prompt with the mesh's notice, or to go on), and its uuid."""
    if not run.source.standing.begun:
        return noted(run.text, notice), run.message
    lines = [f"- {result.name} ({result.id}): {result.text}" for result in settled]
    return "\n".join([GO_ON_WITH, *lines]) if lines else GO_ON, _random_uuid()


def _terminal(error: BackendError | BudgetExceeded) -> Event:
    """The terminal event for `error`."""
    details = {name: value for name, value in error.details.items() if name != "reason"}
    return Event.error(str(error.details.get("reason", error.code)), message=error.message, code=error.code, **details)


def _bounded(options: ClaudeOptions, usd_left: float | None) -> ClaudeOptions:
    """`options` with the tighter of both bounds on money."""
    own = options.max_budget_usd
    if usd_left is None or (own is not None and own <= usd_left):
        return options
    return msgspec.structs.replace(options, max_budget_usd=usd_left)


async def _once(told: Any, message: str) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "uuid": message,
        "session_id": "",
        "message": {"role": "user", "content": told},
        "parent_tool_use_id": None,
    }


async def _module(name: str) -> Any:
    """A module that is slow to import, imported off the event loop the first time."""
    return await asyncio.to_thread(importlib.import_module, name)


def _random_uuid() -> str:
    """A UUID that no stranger can guess: Claude Code takes no other ids."""
    return str(uuid.UUID(SYSTEM.token(16), version=4))
