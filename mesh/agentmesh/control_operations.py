"""The operations of control requests to agents: one table, from which subjects, exports, lists of roles and pages are made.

Each may be sent in two forms. `mesh.live.control.<agent>` names the operation in its body, which no permission of the server
sees; `mesh.live.control-<op>.<agent>` names it in its subject, and there the subject alone counts.
"""

from __future__ import annotations

import msgspec

from agentmesh.errors import BadRequest


class ControlOperation(msgspec.Struct, frozen=True):
    """One operation."""

    name: str
    meaning: str
    """What it does, for pages and helps."""
    content: bool = False
    """It shows or takes what agents know: it is given only on purpose."""
    between_agents: bool = False
    """Nodes send it to each other on behalf of agents: no user is given it."""


OPERATIONS: dict[str, ControlOperation] = {
    operation.name: operation
    for operation in (
        ControlOperation("status", "what the agent does: state, queue, current request, usage; not its state's content"),
        ControlOperation("state", "the status with the content of the agent's state", content=True),
        ControlOperation("poll", "what became of a request, by its ref"),
        ControlOperation("interrupt", "end the running turn"),
        ControlOperation("cancel", "take a request back that waits, or end one"),
        ControlOperation("resume", "let a halted or failed agent go on"),
        ControlOperation("reply", "answer a deferred request", content=True),
        ControlOperation("resend", "send a dead letter again", content=True),
        ControlOperation("set_timer", "have an event come later"),
        ControlOperation("cancel_timer", "take a timer back"),
        ControlOperation("set", "change the configuration of a running agent"),
        ControlOperation("open", "which requests between agents are open", between_agents=True),
    )
}
GIVEN: tuple[str, ...] = tuple(name for name, operation in OPERATIONS.items() if not operation.between_agents)
"""The operations that a caller can be given."""


def operation(name: str) -> ControlOperation:
    """The operation of that name, as a caller can be given it.

    Raises:
        BadRequest: there is none.
    """
    if name not in GIVEN:
        raise BadRequest(f"there is no control request {name!r}; there are: {', '.join(GIVEN)}")
    return OPERATIONS[name]
