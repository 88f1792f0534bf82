"""Who may act (docs/architecture.md#who-may-act): from journal, placement and spec to what a node may do with an agent. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw, structs

from agentmesh.formats import FIRST
from agentmesh.ledger import NO_CHANGE
from agentmesh.records import NOTHING, Change, Ledger, Record
from agentmesh.registry_values import Spec
from agentmesh.wire import encode


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A node's claim to an agent: a placement, by its generation, held by the process that `boot` names."""

    node: str
    boot: str
    epoch: int
    generation: int
    incarnation: str
    placed: float | None = None
    """When the leader placed the agent there, in seconds since the epoch; None: it does not say."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the node may do.

    - `activate`: append `record` (made from `ledger`, the state that it starts with) and act as the owner;
    - `outcome`: append only what finishes the stop that the journal already records;
    - `over`: the journal ends in a tombstone of this life: only the registry must still be brought up to date;
    - `yield`: the placement is worth nothing: delete it by revision.
    """

    act: Literal["activate", "finish", "over", "yield"]
    reason: str = ""
    ledger: Ledger | None = None
    snapshot: bool = False


def judge(claim: Claim, spec: Spec | None, ledger: Ledger | None, *, lease_boot: str | None) -> Verdict:
    """What `claim` allows, given the spec and the folded journal.

    `lease_boot` is the boot id in the node's lease. Two processes with one node id have the same generation: the one that wrote
    the lease last wins.
    """
    if spec is None or spec.status == "stopped":
        return Verdict(act="yield", reason="no such agent is wanted")
    if spec.incarnation != claim.incarnation:
        return Verdict(act="yield", reason="the placement is for another life")
    if ledger is None:
        return Verdict(act="activate", ledger=Ledger(incarnation=claim.incarnation), snapshot=True)
    if (ledger.epoch, ledger.generation) > (claim.epoch, claim.generation):
        return Verdict(act="yield", reason="a newer owner has acted")
    same_generation = (ledger.epoch, ledger.generation) == (claim.epoch, claim.generation)
    if same_generation and ledger.boot != claim.boot and lease_boot not in (None, claim.boot):
        return Verdict(act="yield", reason="this node was started again: the newer process owns its placements")
    if ledger.incarnation != claim.incarnation:
        # A new life of the name. Positions and newest origins belong to the name; the rest ended with the old one. What a sweep
        # behind its end has left open are answers that are still due: nobody else may ever give them.
        fresh = Ledger(
            incarnation=claim.incarnation,
            effects=ledger.effects if ledger.phase == "over" else {},
            positions=ledger.positions,
            taken=ledger.taken,
            origins=ledger.origins,
            seen=ledger.seen,
        )
        return Verdict(act="activate", ledger=fresh, snapshot=True)
    if ledger.phase == "over":
        return Verdict(act="over", ledger=ledger)
    if ledger.phase == "stopped":
        return Verdict(act="finish", ledger=ledger)
    return Verdict(act="activate", ledger=ledger)


def activation(
    claim: Claim, verdict: Verdict, *, record_id: str, at: float, change: Change = NO_CHANGE, v: int = FIRST
) -> Record:
    """The `activated` record, which fences every older owner.

    Args:
        change: charges an input with a node's death.
        v: the version of the newest record, if that stays.
    """
    return Record(
        kind="activated",
        id=record_id,
        at=at,
        incarnation=claim.incarnation,
        epoch=claim.epoch,
        generation=claim.generation,
        node=claim.node,
        boot=claim.boot,
        snapshot=verdict.ledger if verdict.snapshot else None,
        change=change,
        placed=claim.placed,
        v=v,
    )


def owned(ledger: Ledger, claim: Claim) -> Ledger:
    """The ledger after the `activated` record."""
    return structs.replace(
        ledger,
        incarnation=claim.incarnation,
        epoch=claim.epoch,
        generation=claim.generation,
        node=claim.node,
        boot=claim.boot,
    )


_spec = msgspec.json.Decoder(Spec)


def kept_spec(spec: Spec, ledger: Ledger) -> Raw:
    """`spec` as a journal keeps it: what was asked for, and not how the agent is or where it goes next. The very value that
    `ledger` has, if that says the same."""
    lasting = structs.replace(spec, status="running", reason=None, since=None, ran=True, move_to=None, turn_code=None)
    body = encode(lasting)
    return ledger.spec if bytes(ledger.spec) == body else Raw(body)


def restored_spec(ledger: Ledger | None) -> Spec | None:
    """The spec of the life that `ledger` is about, as its journal kept it, with the status that the ledger says; None if it kept
    none that can be read."""
    if ledger is None or ledger.spec == NOTHING or ledger.phase == "over":
        return None
    try:
        spec = _spec.decode(ledger.spec)
    except (msgspec.DecodeError, RecursionError):
        return None
    if spec.incarnation != ledger.incarnation:
        return None
    if ledger.phase == "stopped":
        return structs.replace(spec, status="stopping", reason=ledger.failed)
    if ledger.failed is not None:
        return structs.replace(spec, status="failed", reason=ledger.failed)
    return structs.replace(spec, status="running" if ledger.phase in ("init", "ready") else "wanted")
