"""An agent's configuration while it runs: what a `set` request makes of it, and how the spec shows it. Pure.

Class and spec say what an agent begins with. From its first change on the journal decides (`Ledger.overrides`,
`Ledger.backend_options`), and the spec shows it. Labels are the spec's alone (docs/design/026-a-running-agents-configuration.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from agentmesh.budget import limits_from
from agentmesh.control_values import MAX_SHOWN, Adjustment
from agentmesh.errors import BadRequest
from agentmesh.records import Ledger, Overrides, SetInfo
from agentmesh.registry_values import Spec
from agentmesh.wire import check_depth, encode

KEPT = 32
"""Changes that a journal remembers: for `mesh history`, and to know a request that is repeated."""
SHORT = 200
"""Most bytes of a value, as JSON, that the history keeps."""


def checked(change: Adjustment) -> Adjustment:
    """`change`, if it makes sense to every backend.

    Raises:
        BadRequest: it does not, or it changes nothing at all.
    """
    if change == Adjustment():
        raise BadRequest("nothing to set: give backend options, a budget, a watchdog or a restart policy")
    limits_from(change.budget)
    check_depth(change.backend_options)
    if change.watchdog_s is not None and not (math.isfinite(change.watchdog_s) and change.watchdog_s > 0):
        raise BadRequest(f"watchdog_s is a number of seconds above 0; this is {change.watchdog_s!r}")
    restart = change.restart
    if restart is not None and not (restart.max >= 0 and math.isfinite(restart.within_s) and restart.within_s > 0):
        raise BadRequest("a restart policy has `max`, 0 or more restarts, and `within_s`, a number of seconds above 0")
    return change


def merged(options: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with those of `change`, key by key; None removes a key."""
    return {key: value for key, value in {**options, **change}.items() if not (key in change and value is None)}


def adjusted(ledger: Ledger, change: Adjustment) -> Ledger:
    """`ledger` with `change`; equal to `ledger` if everything is so already."""
    old = ledger.overrides
    overrides = Overrides(
        watchdog_s=old.watchdog_s if change.watchdog_s is None else change.watchdog_s,
        budget=old.budget if change.budget is None else limits_from(change.budget),
        restart=old.restart if change.restart is None else change.restart,
    )
    options = merged(ledger.backend_options, change.backend_options)
    return structs.replace(
        ledger,
        overrides=old if overrides == old else overrides,
        backend_options=ledger.backend_options if options == ledger.backend_options else options,
    )


def noted(ledger: Ledger, change: Adjustment, request: str, at: float) -> Ledger:
    """`ledger` with a note of `change`, made by the request with that id."""
    number = ledger.sets[-1].number + 1 if ledger.sets else 1
    parts = {name: value for name, value in structs.asdict(change).items() if value is not None and value != {}}
    if change.budget is not None:
        parts["budget"] = change.budget
    values = {name: _short(value) for name, value in parts.items() if name != "backend_options"}
    if change.backend_options:
        values["backend_options"] = {key: _short(value) for key, value in change.backend_options.items()}
    info = SetInfo(number=number, id=request, at=at, turn=ledger.turn, node=ledger.node, values=values)
    return structs.replace(ledger, sets=(*ledger.sets[1 - KEPT :], info))


def _short(value: Any) -> Any:
    """`value` as plain data; one that is long is described."""
    plain = msgspec.to_builtins(value)
    size = len(encode(plain))
    return plain if size <= SHORT else f"({size} bytes)"


def knows(ledger: Ledger, request: str) -> bool:
    """Whether the request with that id was done already."""
    return any(info.id == request for info in ledger.sets)


def shown_in(spec: Spec, ledger: Ledger) -> Spec:
    """`spec` as it shows what is in force; the very value if it does, or if it shows a newer change than `ledger` knows: then
    another owner has written it."""
    number = ledger.sets[-1].number if ledger.sets else 0
    if spec.sets >= number:
        return spec
    overrides = ledger.overrides
    return structs.replace(
        spec,
        backend_options=ledger.backend_options if len(encode(ledger.backend_options)) <= MAX_SHOWN else None,
        watchdog_s=spec.watchdog_s if overrides.watchdog_s is None else overrides.watchdog_s,
        budget=spec.budget if overrides.budget is None else (msgspec.to_builtins(overrides.budget) or None),
        restart=spec.restart if overrides.restart is None else overrides.restart,
        sets=number,
    )
