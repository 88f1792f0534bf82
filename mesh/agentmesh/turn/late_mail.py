"""Mail that no life of its name will take: it came behind the last sweep of one that has ended
(docs/architecture.md#the-end-of-a-life), or no agent has the name (docs/architecture.md#mail-for-nobody). Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from agentmesh.ledger import diff
from agentmesh.records import Change, Effect, Ledger, Seen
from agentmesh.subjects import LANES
from agentmesh.turn.draft import bury, caller_of, consume, end_request, end_unanswered, is_repetition, remember
from agentmesh.turn.values import Config, Core
from agentmesh.wire import ErrorBody, Mail


def put_away(agent: str, ledger: Ledger, waiting: Collection[Mail], late: Collection[Mail]) -> tuple[Change, tuple[Effect, ...]]:
    """Change and effects of a record behind the tombstone: `late` is consumed, and its prompts are answered `stopped`.

    Args:
        agent: the agent's name.
        ledger: what the journal says; its life is over.
        waiting: all mail beyond the ledger's positions.
        late: the part of it that was meant for this life. The rest is left to the next life.
    """
    core = Core(config=Config(name=agent, kind=""), ledger=ledger, work=ledger)
    core.prompts = tuple(mail for mail in waiting if LANES[mail.lane].kind == "prompt")
    core.events = tuple(mail for mail in waiting if LANES[mail.lane].kind != "prompt")
    error = ErrorBody(code="stopped", message="the agent had been stopped when this came")
    for mail in late:
        core.prompts = tuple(other for other in core.prompts if other is not mail)
        core.events = tuple(other for other in core.events if other is not mail)
        if LANES[mail.lane].kind == "prompt":
            end_unanswered(core, mail, error)
        else:
            consume(core, mail)
    return diff(ledger, core.work), core.effects


def unclaimed(
    agent: str,
    ledger: Ledger,
    mail: Sequence[Mail],
    reason: ErrorBody,
    *,
    behind: Sequence[Mail] = (),
    seen: Mapping[str, Seen],
    since: float,
) -> tuple[Change, tuple[Effect, ...]]:
    """Change and effects of the record that ends `mail`, for which there is no agent: each message becomes a dead letter with
    `reason`, and a prompt's outcome is that error.

    Args:
        agent: the name.
        ledger: what its journal says: no life, or one that is over.
        mail: the oldest mail beyond the ledger's positions, in the order of the stream.
        behind: what waits behind it, where the ledger has mail that was taken ahead of other mail.
        seen: ids of what will be purged while a repetition may still come, as the ledger remembers them.
        since: from when on the server knows an id (seconds since the epoch); older ones are forgotten.
    """
    core = Core(config=Config(name=agent, kind=""), ledger=ledger, work=ledger)
    waiting = sorted({(item.lane, item.seq): item for item in (*mail, *behind)}.values(), key=lambda item: item.seq)
    core.prompts = tuple(item for item in waiting if LANES[item.lane].kind == "prompt")
    core.events = tuple(item for item in waiting if LANES[item.lane].kind != "prompt")
    for item in mail:
        # Those behind it still wait, as the position must show.
        core.prompts = tuple(other for other in core.prompts if (other.lane, other.seq) != (item.lane, item.seq))
        core.events = tuple(other for other in core.events if (other.lane, other.seq) != (item.lane, item.seq))
        repeated = is_repetition(core.work, item)
        consume(core, item)
        if repeated:
            continue
        bury(core, item, reason)
        if LANES[item.lane].kind == "prompt":
            end_request(core, caller_of(item), reason)
    remember(core, seen, since=since)
    return diff(ledger, core.work), core.effects


def rested(ledger: Ledger) -> Ledger:
    """The ledger that a tombstone keeps: the parts that belong to the name."""
    return Ledger(
        incarnation=ledger.incarnation,
        epoch=ledger.epoch,
        generation=ledger.generation,
        node=ledger.node,
        boot=ledger.boot,
        phase="over",
        failed=ledger.failed,
        history=ledger.history,
        sets=ledger.sets,
        positions=ledger.positions,
        taken=ledger.taken,
        origins=ledger.origins,
        seen=ledger.seen,
    )
