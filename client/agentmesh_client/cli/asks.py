"""Verbs that talk to agents."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import (
    DEFAULTS,
    AgentName,
    Flag,
    GlobalOptions,
    Globals,
    Pairs,
    TextArgument,
    json_object,
    json_or_text,
    read_text,
    session,
)
from agentmesh_client.cli.mesh_keys import MeshKey, key_in

if TYPE_CHECKING:
    from agentmesh.wire import Outcome
    from agentmesh_client import Mesh
    from agentmesh_client.cli.output import Printer
    from agentmesh_client.results import EndedRequest, Subrequest

WITHDRAW_S = 5.0
"""Longest time that Ctrl-C takes to withdraw a prompt."""
ACCEPTED_S = 1.0
"""How long a Ctrl-C that comes before the prompt is known to be stored waits for that."""
SILENCE_S = 3.0
"""After this long without an answer the user is told what the command waits for."""
LOOK_S = 2.0
"""Longest time that it takes to look for the reason of a wait, once the command has done its work."""

Ref = Annotated[str, Parameter(help="The request's ref, as `tell` prints it.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PromptFlags:
    """Flags of the verbs that send a prompt."""

    metadata: str | None = None
    """A JSON object that the agent sees beside the prompt."""
    attach: Pairs = None
    """A file to send along; may be given several times."""
    deadline: float | None = None
    """Seconds after which the prompt is answered `expired` without a turn."""
    end_by: float | None = None
    """Seconds after which the request ends, with `expired`, also if its turn runs by then."""
    key: str | None = None
    """Idempotency key: within two minutes, a second prompt with it takes no effect and gets the first one's ref."""
    mesh_key: MeshKey = None
    budget_usd: float | None = None
    """US dollars that the answer may cost, including agents asked on the way."""
    budget_tokens: int | None = None
    """Tokens that it may take."""
    budget_wall: float | None = None
    """Seconds that its turn may take."""
    budget_tools: int | None = None
    """Tool calls that it may make."""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Mesh.ask` and `Mesh.tell`."""
        from agentmesh.errors import BadRequest
        from agentmesh_client import attachment

        try:
            files = [attachment(Path(name).name, Path(name).read_bytes()) for name in self.attach or ()]
        except OSError as error:
            raise BadRequest(f"a file cannot be attached: {error}") from None
        return {
            "metadata": json_object(self.metadata, "--metadata", '{"ticket": 17}'),
            "attachments": files,
            "deadline": _from_now(self.deadline, "--deadline"),
            "end_by": _from_now(self.end_by, "--end-by"),
            "idempotency_key": self.key,
            "key": key_in(self.mesh_key, make=True),
            "budget": self._budget(),
        }

    def _budget(self) -> dict[str, float] | None:
        bounds = {
            "usd": self.budget_usd,
            "tokens": self.budget_tokens,
            "wall_s": self.budget_wall,
            "tool_calls": self.budget_tools,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None} or None


def _from_now(seconds: float | None, flag: str) -> dt.datetime | None:
    from agentmesh.errors import BadRequest

    try:
        return None if seconds is None else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise BadRequest(f"{flag} is a number of seconds from now, before the year 9999; this is {seconds!r}") from None


NO_EXTRAS = PromptFlags()


def ask(
    name: AgentName,
    text: TextArgument,
    /,
    *,
    timeout: float = 600.0,
    stream: Flag = False,
    extras: PromptFlags = NO_EXTRAS,
    options: Globals = DEFAULTS,
) -> Coroutine[Any, Any, int]:
    """Prompt an agent and print its answer.

    Ctrl-C withdraws the prompt: it is cancelled if it waits, its turn is interrupted if it runs. A second one leaves at once.

    Parameters
    ----------
    timeout
        Seconds to wait for the answer; the turn goes on after that, and `mesh poll` shows what became of it.
    stream
        Show the turn as it runs: its text on stdout as it comes, its tool calls on stderr. With `-o jsonl`, a line of JSON per
        event.
    """
    prompt = {"agent": name, "prompt": read_text(text), "timeout": timeout, **extras.arguments()}
    return _ask(prompt, _streamed if stream else _awaited, options)


type _Accepted = asyncio.Future[str]
"""The ref of the prompt, once it is stored."""
type _Asking = Callable[[Mesh, dict[str, Any], _Accepted, GlobalOptions], Coroutine[Any, Any, Outcome]]
"""Asks with the arguments of `Mesh.ask`, gives the future the ref once it is known, prints an answer, returns the outcome."""


async def _awaited(mesh: Mesh, prompt: dict[str, Any], accepted: _Accepted, options: GlobalOptions) -> Outcome:
    from agentmesh_client.cli.output import Printer

    outcome = await mesh.ask_outcome(**prompt, on_accepted=accepted.set_result)
    if outcome.ok:
        Printer(options).value(outcome, outcome.text or "")
    elif options.output != "text":
        Printer(options).failure(outcome)
    return outcome


async def _streamed(mesh: Mesh, prompt: dict[str, Any], accepted: _Accepted, options: GlobalOptions) -> Outcome:
    from agentmesh_client.cli.output import Printer
    from agentmesh_client.cli.streaming import Screen, print_json

    printer, screen = Printer(options), Screen(quiet=options.quiet)
    async with mesh.stream(**prompt) as turn:
        accepted.set_result(turn.ref)
        try:
            async for event in turn:
                if options.output == "jsonl":
                    print_json(event, prompt["agent"], turn.ref, printer)
                elif options.output == "text":
                    screen.show(event)
        except BaseException:
            screen.break_off()
            raise
        outcome = await turn.outcome()
    if options.output == "text":
        screen.end(outcome, turn.text)
    elif options.output == "json":
        printer.value(outcome, "")
    return outcome


async def _ask(prompt: dict[str, Any], asking: _Asking, options: GlobalOptions) -> int:
    from agentmesh.edge.tasks import cancel_and_wait
    from agentmesh.errors import AskTimeout
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    accepted: _Accepted = asyncio.get_running_loop().create_future()
    async with session(options, prompt["timeout"]) as mesh:
        running = asyncio.create_task(asking(mesh, prompt, accepted, options))
        try:
            async with _explained(mesh, prompt["agent"], printer):
                outcome = await asyncio.shield(running)
        except AskTimeout:
            if prompt["timeout"] <= SILENCE_S:  # else it has been said
                await _say_why_it_waits(mesh, prompt["agent"], printer)
            raise
        except asyncio.CancelledError:
            # A prompt that has just been sent may be stored: it can be withdrawn once its ref is known.
            await asyncio.wait((running, accepted), timeout=ACCEPTED_S, return_when=asyncio.FIRST_COMPLETED)
            await cancel_and_wait(running)
            if accepted.done():
                printer.note("withdrawing the prompt; Ctrl-C again leaves at once")
                printer.note(await _withdraw(mesh, prompt["agent"], accepted.result()))
            raise
    if outcome.ok:
        return exits.OK
    if not printer.as_json:  # as JSON it is data, and is printed
        printer.failure(outcome)
    return exits.FAILED


@asynccontextmanager
async def _explained(mesh: Mesh, name: str, printer: Printer) -> AsyncIterator[None]:
    """While the answer is waited for, say once what may prevent it."""
    from agentmesh.edge.tasks import cancel_and_wait

    explaining = asyncio.create_task(_explain(mesh, name, printer))
    try:
        yield
    finally:
        await cancel_and_wait(explaining)


async def _explain(mesh: Mesh, name: str, printer: Printer) -> None:
    from agentmesh.errors import MeshError

    await asyncio.sleep(SILENCE_S)
    try:
        if (obstacle := await _no_owner(mesh, name)) is not None:
            printer.note(obstacle)
            return
        found = await mesh.status(name)
        if found.failed is not None:
            printer.note(
                f"{name} has failed ({found.failed.code}: {found.failed.message}); {_after_failure(name, found.failed.code)}"
            )
        elif found.halted:
            printer.note(f"{name} is halted; the prompt waits until `mesh resume {name}`")
    except MeshError as error:
        printer.note(f"still trying: {exits.sentence(error)}")


def _after_failure(name: str, code: str) -> str:
    from agentmesh.errors import StoreLost

    if code == StoreLost.code:
        return f"the prompt is not answered unless the store is restored; `mesh stop {name}` gives up what is lost"
    return f"the prompt waits until `mesh resume {name}`"


async def _no_owner(mesh: Mesh, name: str) -> str | None:
    """Why nobody will answer a prompt to the agent now; None if a node runs it."""
    if await mesh.whereis(name) is not None:
        return None
    if not await mesh.nodes():
        return "no node is live, so no agent runs; the prompt waits until one is started (`mesh node`, or `mesh up`)"
    return f"no node runs {name} now (`mesh ps` says why); the prompt waits for one"


async def _say_why_it_waits(mesh: Mesh, name: str, printer: Printer) -> None:
    """Beside what a command has printed: a prompt that is stored may still wait for a node."""
    from agentmesh.errors import MeshError

    with suppress(MeshError, TimeoutError):
        async with asyncio.timeout(LOOK_S):
            if (obstacle := await _no_owner(mesh, name)) is not None:
                printer.note(obstacle)


async def _withdraw(mesh: Mesh, name: str, ref: str) -> str:
    """Cancel a prompt that waits, or interrupt its turn. Returns what happened, as text."""
    from agentmesh.errors import MeshError

    try:
        if await mesh.cancel(name, ref, tree=True, timeout=WITHDRAW_S):
            return f"request {ref} was cancelled"
        if await mesh.interrupt(name, ref, timeout=WITHDRAW_S):
            return f"the turn of request {ref} was interrupted"
    except MeshError as error:
        return f"the mesh could not be told ({exits.sentence(error)}); see `mesh poll {name} {ref}`"
    return f"request {ref} had ended already; see `mesh poll {name} {ref}`"


def tell(
    name: AgentName,
    text: TextArgument,
    /,
    *,
    timeout: float = 30.0,
    extras: PromptFlags = NO_EXTRAS,
    options: Globals = DEFAULTS,
) -> Coroutine[Any, Any, int]:
    """Prompt an agent without waiting for its answer; print the ref, which `mesh poll` takes.

    Parameters
    ----------
    timeout
        Seconds to wait until the prompt is stored.
    """
    return _tell(name, read_text(text), timeout, extras, options)


async def _tell(name: str, text: str, timeout: float, extras: PromptFlags, options: GlobalOptions) -> int:
    from agentmesh_client.cli.output import Printer

    printer, prompt = Printer(options), extras.arguments()
    async with session(options, timeout) as mesh:
        ref = await mesh.tell(name, text, timeout=timeout, **prompt)
        printer.value({"v": 1, "agent": name, "ref": ref}, ref)
        if extras.mesh_key is not None and extras.mesh_key.startswith("@"):
            printer.note(f"its answer: mesh poll {name} {ref} --mesh-key {extras.mesh_key}")
        await _say_why_it_waits(mesh, name, printer)
    return exits.OK


async def poll(
    name: AgentName,
    ref: Ref,
    /,
    *,
    key: str | None = None,
    mesh_key: MeshKey = None,
    timeout: float = 10.0,
    options: Globals = DEFAULTS,
) -> int:
    """Show what became of a request: its answer, its error, or `pending`; and when it was asked.

    Parameters
    ----------
    key
        The prompt's idempotency key, if it had one: the answer to a prompt with another one is refused.
    timeout
        Seconds to wait for the agent's owner.
    """
    from agentmesh_client.cli.output import Printer, age

    printer, secret = Printer(options), key_in(mesh_key)
    async with session(options, timeout) as mesh:
        result = await mesh.poll(name, ref, idempotency_key=key, key=secret, timeout=timeout)
        if result.outcome is None and result.reason is None:
            await _say_why_it_waits(mesh, name, printer)
    outcome = result.outcome
    if outcome is not None and outcome.stored is not None:
        printer.note(f"asked {age(outcome.stored)} ago, at {outcome.stored}")
    if outcome is not None and not outcome.ok:
        if printer.as_json:
            printer.value(result, "")
        else:
            printer.failure(outcome)
        return exits.FAILED
    printer.value(result, "pending" if outcome is None else outcome.text or "")
    if result.reason is not None:
        printer.note(result.reason.message)
    return exits.OK


def notify(
    name: AgentName, event: TextArgument, /, *, timeout: float = 30.0, options: Globals = DEFAULTS
) -> Coroutine[Any, Any, int]:
    """Send an event to an agent: a JSON value, or text that is not JSON.

    Parameters
    ----------
    timeout
        Seconds to wait until the event is stored.
    """
    return _notify(name, read_text(event), timeout, options)


async def _notify(name: str, event: str, timeout: float, options: GlobalOptions) -> int:
    from agentmesh_client.cli.output import Printer

    async with session(options, timeout) as mesh:
        await mesh.notify(name, json_or_text(event), timeout=timeout)
    printer = Printer(options)
    if printer.as_json:
        printer.value({"v": 1, "agent": name, "stored": True}, "")
    printer.note(f"the event is in {name}'s mailbox")
    return exits.OK


async def cancel(
    name: AgentName,
    ref: Ref,
    /,
    *,
    running: Flag = False,
    mesh_key: MeshKey = None,
    timeout: float = 10.0,
    options: Globals = DEFAULTS,
) -> int:
    """Remove a prompt that waits, or close a deferred one; one that runs is not touched, unless `--running` says so.

    Parameters
    ----------
    running
        End the request also if it runs or is kept open, and with it all that was asked of other agents on its behalf.
    timeout
        Seconds to wait for the agent's owner.
    """
    secret = key_in(mesh_key)
    async with session(options, timeout) as mesh:
        if running:
            ended = await mesh.end(name, ref, how="cancel", key=secret, wait=options.wait, timeout=timeout)
            return show_ended(options, "cancelled", ended, f"request {ref} has ended")
        done = await mesh.cancel(name, ref, key=secret, timeout=timeout)
    still = f"request {ref} does not wait; if it runs, `mesh cancel {name} {ref} --running` ends it"
    return _done(options, "cancelled", done, still)


def reply(
    name: AgentName, ref: Ref, text: TextArgument, /, *, timeout: float = 10.0, options: Globals = DEFAULTS
) -> Coroutine[Any, Any, int]:
    """Answer a request that an agent has deferred, in its place. The agent is told by an event.

    Parameters
    ----------
    timeout
        Seconds to wait for the agent's owner.
    """
    return _reply(name, ref, read_text(text), timeout, options)


async def _reply(name: str, ref: str, text: str, timeout: float, options: GlobalOptions) -> int:
    async with session(options, timeout) as mesh:
        done = await mesh.reply(name, ref, text, timeout=timeout)
    return _done(options, "replied", done, f"{name} has no such request open; `mesh status {name}` shows those that are")


async def interrupt(name: AgentName, /, *, ref: str | None = None, timeout: float = 10.0, options: Globals = DEFAULTS) -> int:
    """End an agent's running turn, or the callback in which that is; its caller gets the error `interrupted`.

    Parameters
    ----------
    ref
        Only if the turn answers this request.
    timeout
        Seconds to wait for the agent's owner.
    """
    import msgspec

    from agentmesh_client.cli.output import Printer

    async with session(options, timeout) as mesh:
        found = await mesh.interruption(name, ref, timeout=timeout)
        withdrawn = await mesh.see_ended(name, found.withdrawn, wait=options.wait)
    shown = {"v": 1, **msgspec.to_builtins(msgspec.structs.replace(found, withdrawn=withdrawn))}
    Printer(options).value(shown, "interrupted" if found.interrupted else "no such turn was running")
    if found.callback is not None and not found.interrupted:
        Printer(options).note(f"{name} is in {found.callback}, which was not touched: it belongs to no such turn")
    elif found.plain:
        Printer(options).note(f"{found.callback} is a plain function, and goes on in its thread; what it returns is thrown away")
    tell_withdrawn(options, withdrawn)
    return exits.OK


async def resume(name: AgentName, /, *, timeout: float = 10.0, options: Globals = DEFAULTS) -> int:
    """Let a halted agent go on, or revive a failed one.

    Parameters
    ----------
    timeout
        Seconds to wait for the agent's owner.
    """
    async with session(options, timeout) as mesh:
        done = await mesh.resume(name, timeout=timeout)
    return _done(options, "resumed", done, f"{name} was neither halted nor failed")


def tell_withdrawn(options: GlobalOptions, withdrawn: Sequence[Subrequest]) -> None:
    """Say what was withdrawn, and what of it has not been seen to end."""
    from agentmesh_client.cli.output import Printer

    for one in withdrawn:
        unseen = f": not seen to end within {options.wait:g} s (--wait)" if options.wait else ""
        Printer(options).note(f"withdrawn from {one.agent}" + (": it has ended there" if one.ended else unseen))


def show_ended(options: GlobalOptions, what: str, ended: EndedRequest, otherwise: str) -> int:
    """Print how a request was ended, and what was withdrawn with it."""
    from agentmesh_client.cli.output import Printer

    more = {"withdrawn": ended.withdrawn} if ended.withdrawn else {}
    Printer(options).value({"v": 1, what: ended.done, **more}, what if ended.done else otherwise)
    tell_withdrawn(options, ended.withdrawn)
    return exits.OK


def _done(options: GlobalOptions, what: str, done: bool, otherwise: str) -> int:
    """Print the reply of a control request. Nothing to do is no failure."""
    from agentmesh_client.cli.output import Printer

    Printer(options).value({"v": 1, what: done}, what if done else otherwise)
    return exits.OK
