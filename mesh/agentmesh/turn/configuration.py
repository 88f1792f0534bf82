"""Changes of a running agent's configuration: one record between two turns, checked by the backend before it is written.

What is in force is what the journal says (`agentmesh.configuration`). A request that comes during a turn, a crash or another
record waits in the stash; `dispatch.go_on` lets it in before the next prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import structs

from agentmesh.configuration import adjusted, knows, noted
from agentmesh.control_values import MAX_SHOWN, Configuration
from agentmesh.errors import Conflict, Unavailable
from agentmesh.formats import SECOND, users_labels
from agentmesh.records import NOTHING, Ledger
from agentmesh.turn.dispatch import go_on
from agentmesh.turn.draft import Out, answer_later, commit
from agentmesh.turn.values import (
    AnswerControl,
    Config,
    Configure,
    Core,
    Emit,
    Input,
    Misbehaved,
    Phase,
    Raised,
    Returned,
    RunCallback,
    SetStatus,
)
from agentmesh.wire import ErrorBody, encode

PENDING = {"status": "pending"}
"""The answer to a request that was asked again before it could be answered."""


def in_force(config: Config, ledger: Ledger) -> Config:
    """`config`, made of class and spec, with what was changed since the start."""
    changed = {name: value for name, value in structs.asdict(ledger.overrides).items() if value is not None}
    return structs.replace(config, **changed) if changed else config


def shown(core: Core, labels: Mapping[str, str]) -> Configuration:
    """The configuration in force, for people and for `expect`. `labels`: the spec's."""
    config, ledger = core.config, core.ledger
    told = Configuration(
        backend_options=ledger.backend_options if len(encode(ledger.backend_options)) <= MAX_SHOWN else None,
        budget=msgspec.to_builtins(config.budget),
        watchdog_s=config.watchdog_s,
        restart=config.restart,
        labels=users_labels(labels),
        sets=ledger.sets[-1].number if ledger.sets else 0,
        tag="",
    )
    values = [ledger.backend_options, told.budget, told.watchdog_s, told.restart, told.labels]
    body = msgspec.json.encode(values, order="deterministic")
    return structs.replace(told, tag=hashlib.blake2b(body, digest_size=5).hexdigest())


def on_configure(core: Core, item: Configure, out: Out) -> None:
    """Make the change, if it is one; new backend options only when the backend has taken them."""
    if knows(core.ledger, item.id):
        _answer(core, item, out, changed=True)
        _back(core, out)
        return
    if item.expect is not None and item.expect != (found := shown(core, item.labels).tag):
        conflict = Conflict(
            f"the configuration is {found} now, and not {item.expect}: somebody has changed it; see `mesh status`",
            details={"expected": item.expect, "found": found},
        )
        _refuse(core, item, ErrorBody.of(conflict), out)
        return
    changed = adjusted(core.ledger, item.change)
    if changed == core.ledger:
        _answer(core, item, out, changed=False)
        _back(core, out)
    elif core.writes < SECOND:
        mixed = Unavailable(
            "a node or the supervisor is of an older build, which would lose the change: upgrade it (`mesh nodes` shows the "
            "versions), and ask again half a minute after it has ended"
        )
        _refuse(core, item, ErrorBody.of(mixed), out)
    else:
        core.configuring = item
        if changed.backend_options is core.ledger.backend_options:
            _write(core, item, out)
            return
        core.phase = Phase.CONFIGURING
        out.append(RunCallback(hook="change_options", args=(core.ledger.session, changed.backend_options)))


def on_checked(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """The backend has taken the new options, or refuses them: then nothing has changed."""
    request, core.configuring = core.configuring, None
    assert request is not None
    if isinstance(item, Returned):
        if item.choice.session not in (NOTHING, core.ledger.session):
            core.work = structs.replace(core.work, session=item.choice.session)
        _write(core, request, out)
        return
    message = f"the backend refuses these options, and nothing has changed: {item.error.message}"
    _refuse(core, request, structs.replace(item.error, message=message), out)


def refuse_waiting(core: Core, error: ErrorBody, out: Out) -> None:
    """The change that the backend checks is not made."""
    request, core.configuring = core.configuring, None
    if request is not None and request.token:
        out.append(AnswerControl(request.token, _as_answer(error)))


def _as_answer(error: ErrorBody) -> dict[str, object]:
    return {"error": {"code": error.code, "message": error.message, "details": error.details}}


def _write(core: Core, item: Configure, out: Out) -> None:
    core.configuring = None
    core.work = noted(adjusted(core.work, item.change), item.change, item.id, core.now)
    config = structs.replace(core, config=in_force(core.config, core.work), ledger=core.work)
    answer_later(core, item.token, {"set": True, "configuration": msgspec.to_builtins(shown(config, item.labels))})
    core.emits = (*core.emits, Emit("configured", {"parts": sorted(core.work.sets[-1].values)}))
    commit(core, "set", out, then="configured")


def after_set(core: Core, out: Out) -> None:
    """The change is committed: turns use it from now on, and the registry shows it."""
    core.config = in_force(core.config, core.ledger)
    out.append(SetStatus("running") if core.reason is None else SetStatus("failed", core.reason))
    _back(core, out)


def _back(core: Core, out: Out) -> None:
    """Go on as before: a failed agent stays failed."""
    if core.reason is None:
        go_on(core, out)
    else:
        core.phase = Phase.FAILED


def stashed(core: Core, item: Configure, out: Out) -> tuple[Input, ...]:
    """The stash with `item`, in the place of the same request if that waits there: its caller has asked again."""
    same = [i for i in core.stash if isinstance(i, Configure) and i.id == item.id]
    for former in same:
        if former.token:
            out.append(AnswerControl(former.token, PENDING))
    return (*(i for i in core.stash if i not in same), item)


def _answer(core: Core, item: Configure, out: Out, *, changed: bool) -> None:
    if item.token:
        told = msgspec.to_builtins(shown(core, item.labels))
        out.append(AnswerControl(item.token, {"set": changed, "configuration": told}))


def _refuse(core: Core, item: Configure, error: ErrorBody, out: Out) -> None:
    if item.token:
        out.append(AnswerControl(item.token, _as_answer(error)))
    _back(core, out)
