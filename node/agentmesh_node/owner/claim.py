"""Becoming the owner of an agent: by a record that fences every older one (docs/architecture.md#who-may-act)."""

from __future__ import annotations

import logging
from typing import NamedTuple

from msgspec import structs

from agentmesh.edge.journal_reader import Contents
from agentmesh.edge.registry import decode_node
from agentmesh.errors import BadRequest, Fenced, StoreLost, Unavailable
from agentmesh.formats import FIRST, required
from agentmesh.ledger import charged, diff, fold, journal_version, newest_answered
from agentmesh.outcomes import AnsweredMessage
from agentmesh.ownership import Claim, activation, judge, kept_spec, owned
from agentmesh.records import Ledger, encode_record, version_of
from agentmesh.registry_values import Spec
from agentmesh.subjects import node_key
from agentmesh.trace.lost import Taken
from agentmesh.turn.delegation import pruned
from agentmesh_node.owner.reader_label import require_readers
from agentmesh_node.services import Services
from agentmesh_node.store_loss import Acknowledged

log = logging.getLogger("agentmesh.node")


class OwnershipLost(Exception):
    """This process does not own the agent (any more).

    `final`: its placement is worthless and must be deleted. `broken`: the store has lost data; nothing may be written until an
    operator has restored it. `epoch`: that of the journal, if it is newer than the claim's.
    """

    def __init__(self, reason: str, *, final: bool, broken: bool = False, epoch: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.broken = broken
        self.epoch = epoch

    @staticmethod
    def by(error: Fenced | StoreLost | Unavailable) -> OwnershipLost:
        """The loss of ownership that a failed append means."""
        reason = "another owner has appended" if isinstance(error, Fenced) else str(error)
        return OwnershipLost(reason, final=False, broken=isinstance(error, StoreLost))


class Claimed(NamedTuple):
    """The start of a new owner: the ledger, the journal's newest sequence, whether the previous owner died with its node."""

    ledger: Ledger
    fence: int
    died: bool
    version: int
    """The version that a reader of the journal must know."""
    answered: AnsweredMessage | None
    """The newest message that the journal answers."""
    taken: bool = False
    """Whether another process owned this life before."""
    left: Taken | None = None
    """What the owner before has left; None if there was none."""


async def claim_ownership(services: Services, name: str, spec: Spec, claim: Claim) -> Claimed:
    """Append the `activated` record and return the ledger with its sequence.

    If the journal says that this life is being finished, or is over, nothing is appended.

    Raises:
        OwnershipLost: this process may not act.
        StoreLost: the store has lost committed records; nothing was written.
        UnreadableRecord: the journal holds what this program cannot read; nothing was written.
        Unavailable: the store cannot be read or written now.
    """
    while True:
        contents = await services.journal.read(name)
        ledger, last = fold(contents.records)
        if spec.incarnation == claim.incarnation:
            _check_whole(name, spec, contents, claim.epoch)
        answered = newest_answered(contents.records)
        await _check_mail(services, name, ledger, answered)
        boot, foreign = await _lease_boot(services, claim, ledger)
        verdict = judge(claim, spec, ledger, lease_boot=boot)
        if verdict.act == "yield":
            newer = ledger is not None and ledger.epoch > claim.epoch
            raise OwnershipLost(verdict.reason, final=True, epoch=ledger.epoch if ledger is not None and newer else None)
        assert verdict.ledger is not None
        gone = ledger is not None and not foreign and ledger.boot not in (claim.boot, boot)
        at = services.now()
        left = None
        if ledger is not None:
            left = Taken(
                agent=name,
                kind=spec.kind,
                ledger=ledger,
                records=contents.records,
                at=at,
                generation=claim.generation,
                boot=claim.boot,
                died=gone,
                root=services.settings.root,
            )
        if verdict.act in ("finish", "over"):
            return Claimed(verdict.ledger, last, False, journal_version(contents.records), answered, left=left)
        # Where a lease is of foreign form nothing is known of its process: no input is charged with a death that may be feigned.
        died = gone and not verdict.snapshot
        start = pruned(charged(verdict.ledger, died))
        start = structs.replace(start, spec=kept_spec(spec, start), history_limit=services.settings.history)
        change = diff(verdict.ledger, start)
        v = FIRST if verdict.snapshot else journal_version(contents.records)
        if contents.foreign:
            verdict = structs.replace(verdict, snapshot=True)  # it rolls them up, so that no recovery has to read them again
        record = activation(claim, verdict, record_id=services.token(), at=at, change=change, v=v)
        version = version_of(record)
        if version > required(spec.labels):
            await require_readers(services, name, claim.incarnation, version)
        try:
            fence = await services.journal.append(
                name,
                encode_record(record),
                record_id=record.id,
                expected=last,
                fence=contents.fence,
                rollup=verdict.snapshot,
            )
        except Fenced:
            continue  # another process appended meanwhile, or the read was stale: read again
        except StoreLost:
            if ledger is None or ledger.phase != "over":
                raise
            again = await services.journal.read(name)
            if again.records or again.wiped:
                raise
            continue  # the tombstone has lapsed in this very moment: the name has no past
        _tell(name, claim, ledger, died)
        taken = ledger is not None and ledger.incarnation == claim.incarnation and ledger.boot != claim.boot
        return Claimed(owned(start, claim), fence, died, version, answered, taken, left)


async def _check_mail(services: Services, name: str, ledger: Ledger | None, answered: AnsweredMessage | None) -> None:
    """Make sure that the mail has given all that the agent has consumed, and has not given it again since.

    Raises:
        StoreLost: it has not.
        Unavailable: that cannot be told now.
    """
    known = Acknowledged(0, ledger.positions if ledger is not None else {}, answered)
    if await services.ends.lost_mail({name: known}):
        raise StoreLost(
            f"agent {name} has consumed mail that its stream has never given, or has given again since: its stream was put back, "
            "or lost data; stop, and restore all streams of the mesh from one moment"
        )


def _tell(name: str, claim: Claim, former: Ledger | None, died: bool) -> None:
    """Log that this process has taken the agent, unless it had it already and has merely woken it."""
    if former is not None and (former.boot, former.generation) == (claim.boot, claim.generation):
        return
    before = None if former is None or former.incarnation != claim.incarnation else former.node
    log.info("agent taken", extra={"agent": name, "generation": claim.generation, "from": before, "its_node_is_gone": died})


def _check_whole(name: str, spec: Spec, contents: Contents, epoch: int) -> None:
    """Make sure that the journal has what the agent has committed, as far as it and the spec can tell.

    An operator who stops an agent whose loss the spec shows gives up what is lost.

    Raises:
        StoreLost: it has not.
    """
    mark = spec.reason if spec.reason is not None and spec.reason.code == StoreLost.code else None
    if spec.status == "stopping" and mark is None:
        return
    if contents.wiped:
        raise StoreLost(
            f"the journal of agent {name} was rolled up by a message that is not the mesh's (sequence {contents.fence}); restore "
            "the store from its backup"
        )
    if not contents.records:
        if spec.ran or spec.status in ("running", "failed"):
            raise StoreLost(f"agent {name} has run, and its journal is empty; restore the store from its backup")
        return
    first = contents.records[0][1]
    if first.snapshot is None and first.incarnation == spec.incarnation:
        raise StoreLost(f"the journal of agent {name} has lost its beginning; restore the store from its backup")
    if mark is not None and mark.details.get("epoch") == epoch:
        committed = mark.details.get("record")
        if isinstance(committed, int) and contents.last < committed:
            raise StoreLost(mark.message, details=mark.details)


async def _lease_boot(services: Services, claim: Claim, ledger: Ledger | None) -> tuple[str | None, bool]:
    """The boot id in the lease of the last owner's node, and whether that lease is of foreign form, which counts as none. The id
    shows whether that process is alive; and, if it is this very node, whether it has been started again."""
    if ledger is None or ledger.boot == claim.boot or not ledger.node:
        return None, False
    entry = await services.registry.get(node_key(ledger.node))
    try:
        return (decode_node(entry).boot if entry is not None else None), False
    except BadRequest:
        return None, True
