"""The verbs of `mesh dead`: mail that an agent could not deal with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, AgentName, Flag, Globals, session

if TYPE_CHECKING:
    from agentmesh_client import DeadLetter, UnclaimedMail

Letter = Annotated[int, Parameter(help="The letter's number, as `mesh dead ls` shows it.")]
Only = Annotated[str | None, Parameter(help="Only this name.")]

app = App(name="dead", help="List, read, send again or remove mail that an agent could not deal with.")


@app.command
async def ls(name: AgentName, /, *, content: Flag = False, options: Globals = DEFAULTS) -> int:
    """List an agent's dead letters.

    Parameters
    ----------
    content
        Show their bodies too.
    """
    from agentmesh_client.cli.output import Printer, age, one_line

    def row(letter: DeadLetter) -> list[str]:
        cells = [str(letter.seq), letter.lane, letter.ref or "-", age(letter.time.isoformat()), letter.sender or "-"]
        cells += [letter.reason.code, one_line(letter.reason.message)]
        return [*cells, one_line(letter.text or letter.base64)] if content else cells

    async with session(options) as mesh:
        found = await mesh.dead_letters(name, content)
        waiting = await mesh.unclaimed_mail(name)
    columns = ("LETTER", "LANE", "REF", "SINCE", "FROM", "REASON", "MESSAGE", *(("BODY",) if content else ()))
    printer = Printer(options)
    printer.table(found, columns, row, nothing=f"{name} has no dead letters")
    for one in waiting:
        printer.note(
            f"no agent has the name {name}, and mail waits for one (messages: {one.messages}, the oldest stored "
            f"{age(one.oldest.isoformat())} ago): start it with `mesh start {name} --kind KIND`, or it becomes dead letters"
        )
    return exits.OK


@app.command
async def unclaimed(name: Only = None, /, *, options: Globals = DEFAULTS) -> int:
    """List the names that no agent has, and for which mail waits. It becomes dead letters after an hour by default."""
    from agentmesh_client.cli.output import Printer, age

    def row(one: UnclaimedMail) -> list[str]:
        return [one.agent, str(one.messages), age(one.oldest.isoformat())]

    async with session(options) as mesh:
        found = await mesh.unclaimed_mail(name)
    Printer(options).table(found, ("NAME", "MESSAGES", "OLDEST"), row, nothing="no mail waits for a name that no agent has")
    return exits.OK


@app.command
async def show(name: AgentName, letter: Letter, /, *, options: Globals = DEFAULTS) -> int:
    """Show one dead letter with its body."""
    from agentmesh.errors import NotFound
    from agentmesh_client.cli.output import Printer, age, fields

    async with session(options) as mesh:
        found = next((one for one in await mesh.dead_letters(name, True) if one.seq == letter), None)
    if found is None:
        raise NotFound(f"agent {name!r} has no dead letter {letter}; see `mesh dead ls {name}`")
    lines = [
        ("letter", str(found.seq)),
        ("lane", found.lane),
        ("ref", found.ref or "-"),
        ("from", found.sender or "-"),
        *([("behalf", found.chain)] if found.chain else []),
        ("since", age(found.time.isoformat())),
        ("reason", f"{found.reason.code}: {found.reason.message}"),
        ("body", found.text if found.text is not None else f"base64 {found.base64}"),
    ]
    Printer(options).value(found, fields(lines))
    return exits.OK


@app.command
async def retry(name: AgentName, letter: Letter, /, *, options: Globals = DEFAULTS) -> int:
    """Send a dead letter again, and print the new ref. It leaves the list, and comes back if it fails again."""
    from agentmesh_client.cli.output import Printer

    async with session(options) as mesh:
        ref = await mesh.retry_dead_letter(name, letter)
    Printer(options).value({"v": 1, "agent": name, "ref": ref}, ref)
    return exits.OK


@app.command
async def purge(
    name: AgentName,
    letter: Annotated[int | None, Parameter(help="The letter's number; without it, --all.")] = None,
    /,
    *,
    every: Annotated[Flag, Parameter(name="--all")] = False,
    options: Globals = DEFAULTS,
) -> int:
    """Remove a dead letter, or all of an agent.

    Parameters
    ----------
    every
        All that the agent has now.
    """
    from agentmesh.errors import BadRequest
    from agentmesh_client.cli.output import Printer

    if (letter is None) != every:
        raise BadRequest("name one letter, or say --all")
    async with session(options) as mesh:
        count = await mesh.purge_dead_letters(name, letter)
    Printer(options).value({"v": 1, "agent": name, "purged": count}, f"{count} removed")
    return exits.OK
