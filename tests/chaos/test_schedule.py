"""The schedule is a function of the seed, and keeps its own rules."""

from __future__ import annotations

from collections import defaultdict

import pytest

from chaos.schedule import (
    ALL_SERVERS,
    CLIENTS,
    LEADER_OF,
    LEADING_SUPERVISOR,
    MESH,
    MOVES,
    NODES,
    PARTS,
    SERVERS,
    SUPERVISORS,
    WAYS,
    schedule,
)
from sim.workload import IMMORTAL

MINUTES_3 = 180.0


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_repeats_its_schedule(seed: int) -> None:
    assert schedule(seed, MINUTES_3) == schedule(seed, MINUTES_3)
    assert schedule(seed, MINUTES_3) != schedule(seed + 1, MINUTES_3)


@pytest.mark.parametrize("seed", range(50))
def test_faults_of_one_target_do_not_overlap_and_all_end_in_time(seed: int) -> None:
    until: dict[str, float] = defaultdict(float)
    for fault in schedule(seed, MINUTES_3):
        if fault.kind in MOVES:  # may be asked for at any time, also of a node that is gone
            assert fault.target in (MESH, *NODES) and (fault.agent in IMMORTAL) == (fault.kind == "move")
            continue
        part = fault.target in (LEADING_SUPERVISOR, ALL_SERVERS) or fault.target.startswith(LEADER_OF)
        assert part or fault.target in (*NODES, *SUPERVISORS, *SERVERS, *CLIENTS)
        assert fault.at + fault.seconds <= MINUTES_3
        # Supervisors and servers have one fault at a time: who leads is known only when the time has come.
        servers = fault.target in (ALL_SERVERS, *SERVERS) or fault.target.startswith(LEADER_OF)
        supervisors = fault.target in (LEADING_SUPERVISOR, *SUPERVISORS)
        group = "servers" if servers else "supervisors" if supervisors else fault.target
        assert fault.at >= until[group], fault
        until[group] = fault.at + fault.seconds


def test_everything_happens_to_everybody() -> None:
    faults = [fault for seed in range(20) for fault in schedule(seed, MINUTES_3)]
    seen = {(fault.kind, fault.target) for fault in faults}
    assert {(kind, node) for kind in ("kill", "stop", "restart", "cut") for node in NODES} <= seen
    assert {(kind, LEADING_SUPERVISOR) for kind in ("kill", "stop", "restart", "cut")} <= seen
    assert {(kind, server) for kind in ("kill", "stop", "restart") for server in SERVERS} <= seen
    assert {("kill", LEADER_OF + "journal"), ("stop", LEADER_OF + "registry"), ("kill", ALL_SERVERS)} <= seen
    assert {("rebalance", MESH), *((kind, node) for kind in ("drain", "move") for node in NODES)} <= seen
    cuts = {(fault.way, fault.part, fault.late) for fault in faults if fault.kind == "cut" and fault.target in NODES}
    assert cuts == {(way, part, late) for way in WAYS for part in PARTS for late in (False, True)}
