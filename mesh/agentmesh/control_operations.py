"""The operations of control requests to agents: one table, from which subjects, exports, lists of roles and pages are made.

Each may be sent in two forms. `mesh.live.control.<agent>` names the operation in its body, which no permission of the server
sees; `mesh.live.control-<op>.<agent>` names it in its subject, and there the subject alone counts.
"""

from __future__ import annotations

import msgspec

from agentmesh.errors import BadRequest


class Operation(msgspec.Struct, frozen=True):
    """One operation."""

    name: str
    meaning: str
    """What it does, for pages and helps."""
    content: bool = False
    """It shows or takes what agents know: it is given only on purpose."""
    between_agents: bool = False
    """Nodes send it to each other on behalf of agents: no user is given it."""


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("status", "what the agent does: state, queue, current request, usage; not its state's content"),
        Operation("state", "the status with the content of the agent's state", content=True),
        Operation("poll", "what became of a request, by its ref"),
        Operation("interrupt", "end the running turn"),
        Operation("cancel", "take a request back that waits, or end one"),
        Operation("resume", "let a halted or failed agent go on"),
        Operation("reply", "answer a deferred request", content=True),
        Operation("resend", "send a dead letter again", content=True),
        Operation("set_timer", "have an event come later"),
        Operation("cancel_timer", "take a timer back"),
        Operation("set", "change the configuration of a running agent"),
        Operation("open", "which requests between agents are open", between_agents=True),
    )
}
GIVEN: tuple[str, ...] = tuple(name for name, operation in OPERATIONS.items() if not operation.between_agents)
"""The operations that a caller can be given."""


def operation(name: str) -> Operation:
    """The operation of that name, as a caller can be given it.

    Raises:
        BadRequest: there is none.
    """
    if name not in GIVEN:
        raise BadRequest(f"there is no control request {name!r}; there are: {', '.join(GIVEN)}")
    return OPERATIONS[name]
