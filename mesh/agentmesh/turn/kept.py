"""What turns did that ended without their answers: kept for the next turn (docs/design/030-what-was-done-is-kept.md).

A turn's session is committed only with its answer, or where its backend says that a failed one's session holds all that it did.
Whatever else ends a turn (an interrupt, the watchdog, a crash, a refusal) leaves its steps here. The next turn is given them, and
shows them to its model: as whole exchanges, or, where the model refused these very messages, as a note. What a session has that
was committed later is kept no longer.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from agentmesh.formats import SECOND
from agentmesh.ledger import turn_name
from agentmesh.records import KeptTurn, Ledger, Shown, Step
from agentmesh.tool_runs import MAX_NOTE, ToolRun, are_hidden, is_without_messages, merged, note_of, runs_in
from agentmesh.turn.values import Active, Core
from agentmesh.wire import ErrorBody

MAX_KEPT = 16
"""Most turns that are kept."""
MAX_BYTES = 4 << 20
"""Most bytes of steps that are kept to be shown: more fits no model's context, and is told by notes."""
MAX_BYTES_RETRIED = 64 << 20
"""The same of a request that is tried again: its calls keep their keys."""
TRIES = 2
"""Failures for an unknown reason after which a turn is shown in a shorter form."""
REJECTED = frozenset({"too_long", "bad_request", "refused"})
"""Reasons for which these very messages will never be answered."""
UNKNOWN = frozenset({"server_error", "bad_output", "crashed", "failed"})
"""Reasons of backends that leave open whether the messages themselves are at fault."""
SHORTER: Mapping[Shown, Shown] = {"whole": "note", "note": "not", "not": "not", "told": "told"}


def name_of(agent: str, ledger: Ledger, active: Active) -> str:
    """The name of the turn `active` (`agentmesh.ledger.turn_name`)."""
    turning = ledger.turning
    number = turning.number if turning is not None and turning.key == active.key else active.number
    return turn_name(agent, ledger.incarnation, ledger.epoch, number, active.key)


def keep_unfinished(core: Core) -> None:
    """Add to the draft that the turn which has taken steps is not tried again: its input was given up, cancelled or refused."""
    work, turning = core.work, core.work.turning
    if turning is None or not work.steps or core.writes < SECOND:
        return
    steps = tuple(work.steps[index] for index in sorted(work.steps, key=int))
    note = note_of(turning.number, turning.prompt, "its request ended", runs_in(step.value for step in steps))
    turn = KeptTurn(
        number=turning.number,
        ref=turning.key.partition(":")[2],
        prompt=turning.prompt,
        steps=steps,
        note=note,
        shown=_form(work.steps),
    )
    name = turn_name(core.config.name, work.incarnation, work.epoch, turning.number, turning.key)
    core.work = structs.replace(work, kept=_bounded({**work.kept, name: turn}, None))


def end_turn(core: Core, active: Active, again: str | None) -> None:
    """Add to the draft what is kept behind the turn that ends now.

    Args:
        active: the turn.
        again: the ref of the prompt that is tried in the place of one that failed, if there is one.
    """
    before = core.work.kept
    own = core.ledger.turning
    steps = core.ledger.steps if own is not None and own.key == active.key else {}
    error = active.error if active.response is None else None
    # A backend that runs tools of its own need not have taken a step when it is ended.
    told_of = error is not None and bool(active.tools)
    if not (before or steps or told_of) or core.writes < SECOND:
        return
    if error is None:
        core.work = structs.replace(core.work, kept={})
        return
    whole = core.work.session != core.ledger.session
    told = whole and not (steps and are_hidden(steps["0"].value))
    kept = {name: _told_again(turn, error, told=told, answered=bool(steps or told_of)) for name, turn in before.items()}
    if steps or told_of:
        number, prompt = (own.number, own.prompt) if steps and own is not None else (active.number, active.text)
        turn = KeptTurn(
            number=number,
            ref=active.ref,
            prompt=prompt,
            attachments=active.attachments,
            steps=tuple(steps[index] for index in sorted(steps, key=int)),
            note=note_of(number, prompt, reason_of(error), runs_of(core, active)),
            shown="note" if is_rejected(error) else "told" if whole else _form(steps),
        )
        ledger = core.ledger
        kept[turn_name(core.config.name, ledger.incarnation, ledger.epoch, number, active.key)] = turn
    if again is not None:
        kept = {name: structs.replace(turn, ref=again) if turn.ref == active.ref else turn for name, turn in kept.items()}
    core.work = structs.replace(core.work, kept=_bounded(kept, again))


def _form(steps: Mapping[str, Step]) -> Shown:
    """How a turn with these steps can be shown."""
    return "note" if not steps or is_without_messages(steps["0"].value) else "whole"


def _told_again(turn: KeptTurn, error: ErrorBody, *, told: bool, answered: bool) -> KeptTurn:
    """`turn`, which a failed turn was given, as the next one is given it.

    Args:
        error: how that one failed.
        told: whether it left another session behind, which has all of it.
        answered: whether the model had answered in it.
    """
    if is_rejected(error):
        return structs.replace(turn, shown=SHORTER[turn.shown], tries=0)
    if told:
        return turn if turn.shown == "not" else structs.replace(turn, shown="told")
    if answered or (error.code != "task_crashed" and error.details.get("reason") not in UNKNOWN):
        return turn
    if turn.tries + 1 < TRIES:
        return structs.replace(turn, tries=turn.tries + 1)
    return structs.replace(turn, shown=SHORTER[turn.shown], tries=0)


def is_rejected(error: ErrorBody) -> bool:
    """Whether these very messages can never be answered."""
    return bool(error.details.get("rejected")) or error.details.get("reason") in REJECTED


def reason_of(error: ErrorBody) -> str:
    """How a turn ended, in a word."""
    return str(error.details.get("reason") or error.code)


def runs_of(core: Core, active: Active) -> tuple[ToolRun, ...]:
    """The tool runs of a turn that failed: as its events told of them, and its steps."""
    own = core.ledger.turning
    if own is None or own.key != active.key:
        return active.tools
    return merged(active.tools, (step.value for step in core.ledger.steps.values()))


def _bounded(kept: dict[str, KeptTurn], again: str | None) -> dict[str, KeptTurn]:
    """The kept turns within their bounds: the oldest lose first. Turns that nobody is shown go."""
    room = _Room()
    newest_first = [*kept.items()][: -MAX_KEPT - 1 : -1]
    fitted = [(name, room.fit(turn, retried=again is not None and turn.ref == again)) for name, turn in newest_first]
    return {name: turn for name, turn in reversed(fitted) if turn.shown in ("whole", "note") or turn.steps}


class _Room:
    """What is left for turns that are older than those which have been fitted in."""

    def __init__(self) -> None:
        self._whole = MAX_BYTES
        self._retried = MAX_BYTES_RETRIED
        self._notes = MAX_NOTE

    def fit(self, turn: KeptTurn, *, retried: bool) -> KeptTurn:
        """`turn` as it is kept. One that is only shown by its note has no steps; except where its request is tried again, for its
        calls have their keys there."""
        size = turn.size
        shown = "note" if turn.shown == "whole" and size > self._whole else turn.shown
        if shown == "whole":
            self._whole -= size
        elif shown == "note":
            note = len((turn.note or "").encode())
            shown = "note" if 0 < note <= self._notes else "not"
            self._notes -= note + 2  # and a line between two of them
        with_steps = shown == "whole" or (retried and size <= self._retried)
        if retried:
            self._retried -= size
        if with_steps:
            return turn if shown == turn.shown else structs.replace(turn, shown=shown)
        return structs.replace(turn, shown=shown, steps=(), attachments=())
