"""Mail that arrived after the last sweep of a life that has ended (docs/architecture.md#the-end-of-a-life). Pure."""

from __future__ import annotations

from collections.abc import Collection

from agentmesh.ledger import diff
from agentmesh.records import Change, Effect, Ledger
from agentmesh.subjects import LANES
from agentmesh.turn.draft import caller_of, consume, end_request, is_repetition
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
        repeated = is_repetition(core.work, mail)
        core.prompts = tuple(other for other in core.prompts if other is not mail)
        core.events = tuple(other for other in core.events if other is not mail)
        consume(core, mail)
        if LANES[mail.lane].kind == "prompt" and not repeated:
            end_request(core, caller_of(mail), error)
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
        positions=ledger.positions,
        taken=ledger.taken,
        origins=ledger.origins,
        seen=ledger.seen,
    )
