"""Both builds in one mesh, under kills: no accepted message is lost, no turn is run twice, and neither build forgets what the
other has written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from agentmesh.formats import ADDED, FIRST, SECOND
from agentmesh.ledger import apply
from agentmesh.records import Ledger, Record, Resolve
from agentmesh.wire import Outcome
from compat.two_builds import builds
from compat.two_builds.caller import IMMORTAL
from compat.two_builds.stage import NEW_NODES, NEW_SUPERVISOR, OLD_NODES, OLD_SUPERVISOR, Stage
from compat.two_builds.users import as_before_keys, served, wronged
from judge.evidence import Evidence
from judge.verdict import judge
from support import Server, run

WHOLE_S = 330.0
SET_S, UNSET_S = 501.0, 502.0
"""Watchdogs that are set of the running agents: the one that they take, and one that is refused."""
TRIMMED = ("activated", "tombstone")
"""Kinds whose snapshots leave something out: a new life begins, or the old one is over."""
DROPPED = frozenset(row.what.partition(".")[2] for row in ADDED if row.old == "ignored" and row.what.startswith("Outcome."))
"""Fields of an outcome that the build before does not tell."""
IGNORED = frozenset(row.what.partition(".")[2] for row in ADDED if row.old == "ignored" and row.what.startswith("Ledger."))
"""Fields of a ledger that are declared to be dropped by the build before: nothing depends on them."""
INNER = frozenset(row.what for row in ADDED if row.old == "ignored")
"""The same, of what a ledger holds, as `Struct.field`."""


@pytest.mark.slow
@pytest.mark.case(684)
@pytest.mark.timeout(WHOLE_S + 60)  # its own bound says more
def test_neither_build_loses_what_the_other_has_written(tmp_path: Path) -> None:
    old, logs = tmp_path / "old", tmp_path / "logs"
    old.mkdir()
    logs.mkdir()
    builds.unpack(old)
    with Server() as server:
        stage = Stage(server, old, logs)
        try:
            evidence, wrong = run(_play(stage), timeout=WHOLE_S)
        except BaseException:
            print("\n".join(stage.notes), stage.said())
            raise
    wrong += judge(structs.replace(evidence, operations=as_before_keys(evidence.operations, stage.secured)), IMMORTAL)
    wrong += dropped(evidence.journals)
    wrong += untold(evidence)
    wrong += wronged(evidence, stage.secured)
    assert not wrong, "\n".join([*wrong, *stage.notes])
    assert len(evidence.results) > 100, "there was work"
    known, refused = served(evidence, stage.secured)
    assert known > 5 and refused > 0, "users were known by their requests, and others turned down"
    assert crossings(evidence.journals) >= {"old to new", "new to old"}, "agents went both ways"


async def _play(stage: Stage) -> tuple[Evidence, list[str]]:
    async with stage.running():
        await _mixed(stage)
        await _upgraded(stage)
        await _joined_again(stage)
        await stage.end_calls()
        wrong = await stage.settle()
        if any(row.version == SECOND for row in ADDED):
            wrong += [f"{agent} has lost what was set" for agent, s in (await stage.watchdogs()).items() if s != (SET_S, SET_S)]
        wrong += stage.ended([*OLD_NODES, *NEW_NODES, OLD_SUPERVISOR, NEW_SUPERVISOR])
        evidence, missing = await stage.evidence()
        return evidence, wrong + missing


async def _mixed(stage: Stage) -> None:
    """Both builds serve; agents go to and fro; either supervisor leads. All is written as the build before writes it."""
    await stage.progress()
    await stage.kill(*NEW_NODES)
    await stage.progress()
    await stage.start(*NEW_NODES)
    await stage.kill(*OLD_NODES)
    await stage.progress()
    await stage.start(*OLD_NODES)
    await stage.kill(NEW_SUPERVISOR)
    await stage.until(lambda: stage.leads(OLD_SUPERVISOR), "the older supervisor leads")
    await stage.kill(NEW_NODES[0])
    await stage.progress()
    await stage.start(NEW_SUPERVISOR, NEW_NODES[0])
    await stage.kill(OLD_SUPERVISOR)
    await stage.until(lambda: stage.leads(NEW_SUPERVISOR), "the newer supervisor leads")
    await stage.kill(OLD_NODES[0])
    await stage.progress()
    assert set(stage.versions().values()) == {FIRST}, "a newer record was written while an older process lived"
    assert set((await stage.required(IMMORTAL)).values()) == {FIRST}
    assert await stage.set_all(UNSET_S) == [], "an older process would lose what is set of a running agent"


async def _upgraded(stage: Stage) -> None:
    """The older processes have left, and newer ones begin behind them: what needs the second version is written now."""
    await stage.terminate(OLD_NODES[1])
    await stage.terminate(NEW_NODES[0])
    await stage.start(NEW_NODES[0])
    await stage.terminate(NEW_NODES[1])
    await stage.start(NEW_NODES[1])
    await stage.progress()
    if any(row.version == SECOND for row in ADDED):
        # Older processes that have gone count for half a minute. From then on what is set is of the second version.
        await stage.until(lambda: _all_set(stage), "all agents are set")
        await stage.until(lambda: set(stage.versions().values()) == {SECOND}, "all journals are of the second version")
        assert set((await stage.required(IMMORTAL)).values()) == {SECOND}
    stage.secured = time.time()
    await stage.progress()


async def _joined_again(stage: Stage) -> None:
    """Older processes join again, and lead: what they cannot read they leave to the newer nodes, and wait for these."""
    await stage.start(OLD_SUPERVISOR, *OLD_NODES)
    await stage.kill(NEW_SUPERVISOR, NEW_NODES[0])
    await stage.until(lambda: stage.leads(OLD_SUPERVISOR), "the older supervisor leads again")
    await stage.progress()
    await stage.kill(NEW_NODES[1])
    await stage.start(NEW_NODES[0])
    await stage.progress()
    await stage.start(NEW_SUPERVISOR, NEW_NODES[1])
    # A newer leader gives the agents, which older nodes cannot read, to nodes that can.
    await stage.kill(OLD_SUPERVISOR)
    await stage.until(lambda: stage.leads(NEW_SUPERVISOR), "the newer supervisor leads again")
    await stage.progress()


async def _all_set(stage: Stage) -> bool:
    return await stage.set_all(SET_S) == list(IMMORTAL)


# --- what must hold -----------------------------------------------------------------------------------------------
def dropped(journals: Mapping[str, Sequence[tuple[int, Record]]]) -> Iterator[str]:
    """A snapshot says all that the journal said before it, whichever build wrote it; and no build goes on with what it cannot
    read."""
    for agent, records in journals.items():
        ledger: Ledger | None = None
        version = FIRST
        for seq, record in records:
            where = f"{agent}: record {seq} ({record.kind}) of {record.node}"
            if record.snapshot is not None and record.kind not in TRIMMED:
                old = record.node in OLD_NODES
                lost = list(_different(ledger, record.snapshot))
                if old:
                    lost = [field for field in lost if field not in IGNORED and not _only_inner(field, ledger, record.snapshot)]
                if lost:
                    yield f"{where} drops {lost}"
            if version > FIRST and record.node in OLD_NODES:
                yield f"{where} is an older node's, behind one of version {version}"
            version = record.v if record.kind == "activated" and record.snapshot is not None else max(version, record.v)
            if record.v < version:
                yield f"{where} is of version {record.v}, behind one of version {version}"
            ledger = apply(ledger, record, seq)


def _different(before: Ledger | None, snapshot: Ledger) -> Iterator[str]:
    return (field for field in Ledger.__struct_fields__ if getattr(before, field, None) != getattr(snapshot, field))


def _only_inner(field: str, before: Ledger | None, snapshot: Ledger) -> bool:
    """Whether a field of two ledgers differs only in what the build before drops of the structs in it."""
    first, second = (_bare(getattr(ledger, field, None)) for ledger in (before, snapshot))
    return bool(first == second)


def _bare(value: Any) -> Any:
    """`value` without what the build before drops of the structs in it."""
    if isinstance(value, msgspec.Struct):
        kind = type(value).__name__
        kept = (name for name in value.__struct_fields__ if f"{kind}.{name}" not in INNER)
        return kind, {name: _bare(getattr(value, name)) for name in kept}
    if isinstance(value, dict):
        return {key: _bare(part) for key, part in value.items()}
    return [_bare(part) for part in value] if isinstance(value, list | tuple) else value


def untold(evidence: Evidence) -> Iterator[str]:
    """An outcome is stored as the journal has it, whichever build tells it; the older one may leave out what it does not know."""
    recorded: dict[tuple[str, str], list[Outcome]] = {}
    for records in evidence.journals.values():
        for _, record in records:
            for effect in record.effects:
                if isinstance(effect, Resolve):
                    recorded.setdefault((effect.outcome.agent, effect.outcome.ref), []).append(effect.outcome)
    for outcome in evidence.results:
        known = recorded.get((outcome.agent, outcome.ref))
        if known is not None and outcome not in known and outcome not in map(_as_older_builds_tell, known):
            yield f"the outcome of {outcome.agent} {outcome.ref} is stored as {outcome}, and recorded as {known}"


def _as_older_builds_tell(outcome: Outcome) -> Outcome:
    bare = Outcome(agent=outcome.agent, ref=outcome.ref, ok=outcome.ok)
    return structs.replace(outcome, **{field: getattr(bare, field) for field in DROPPED})


def crossings(journals: Mapping[str, Sequence[tuple[int, Record]]]) -> set[str]:
    """The ways in which agents went between builds."""
    found = set()
    for records in journals.values():
        nodes = [record.node for _, record in records if record.kind == "activated"]
        for before, after in itertools.pairwise(nodes):
            if (before in OLD_NODES) != (after in OLD_NODES):
                found.add("old to new" if before in OLD_NODES else "new to old")
    return found
